"""Tests of the benchmark programs: what they count, their worker processes and their tables.

A test that measures is marked `slow`.
"""

import ast
import itertools
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax.core.types import DataInfo
from d3jax.models import PreActResNet18Config, WideResNetConfig
from d3jax.results.tables import write_csv

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize(
    "net",
    [
        PreActResNet18Config(width=4),
        PreActResNet18Config(width=64),
        WideResNetConfig(depth=16, width=1),
    ],
)
def test_counted_multiplications_are_those_of_the_traced_network(net):
    import train_step

    model = net.build(DataInfo("x", (32, 32, 3), tuple("0123456789"), (0.5,) * 3, (0.5,) * 3))
    variables = jax.eval_shape(model.init, jax.random.key(0))
    traced = jax.make_jaxpr(lambda v, x: model.apply(v, x, train=False).logits)(
        variables, jnp.zeros((1, 32, 32, 3))
    )
    wide = isinstance(net, WideResNetConfig)
    counted = train_step.WIDE_RESNET_MACS if wide else train_step.macs(net.width)
    assert count(traced.jaxpr) == counted


def count(jaxpr) -> int:
    """Return the number of multiplications in the convolutions and matrix products of a jaxpr."""
    total = 0
    for equation in jaxpr.eqns:
        out = equation.outvars[0].aval
        if equation.primitive.name == "conv_general_dilated":
            total += math.prod(out.shape) * math.prod(equation.invars[1].aval.shape[:3])
        elif equation.primitive.name == "dot_general":
            total += math.prod(out.shape) * equation.invars[0].aval.shape[-1]
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            total += count(inner) if hasattr(inner, "eqns") else 0
    return total


def test_ratios_are_taken_within_a_round():
    import train_step

    found = train_step.summary(
        {"ours/float32": [1.0, 2.0, 4.0], "torch/eager": [2.0, 2.0, 2.0]}, batch=8
    )
    assert found["ratios"] == {
        "ours/float32 over torch/eager": {"min": 0.5, "median": 1.0, "max": 2.0}
    }
    assert found["images_a_second"]["torch/eager"]["median"] == 4.0


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_benchmarks_name_the_settings_of_every_config(path):
    """A config of d3jax refuses settings by position, and most benchmarks run in no test."""
    calls = [
        node for node in ast.walk(ast.parse(path.read_text("utf8"))) if isinstance(node, ast.Call)
    ]
    given = [call for call in calls if getattr(call.func, "id", "").endswith("Config")]
    assert not [ast.unparse(call) for call in given if call.args]


def test_a_worker_answers_and_reports_errors(tmp_path):
    import worker

    (tmp_path / "side.py").write_text(
        "from worker import serve\n"
        "def prepare(settings):\n"
        "    print('noise')\n"
        "    if settings['name'] == 'bad': raise ValueError('no such thing')\n"
        "    return (lambda: 0.5), {'steps': settings['steps']}\n"
        "serve(prepare)\n"
    )
    side = worker.Worker([sys.executable, str(tmp_path / "side.py")], {"PYTHONPATH": str(FOLDER)})
    assert side.ask({"prepare": {"name": "good", "steps": 3}}) == {"ready": {"steps": 3}}
    assert side.ask({"prepare": {"name": "bad"}}) == {"error": "ValueError: no such thing"}
    assert side.ask({"run": "good"}) == {"seconds": 0.5}
    side.close()


@pytest.mark.slow
def test_parts_of_the_gpu_benchmark_run_at_toy_size(tmp_path):
    """The comparison needs PyTorch and the tables need an hour, so both are left out."""
    import gpu

    toy = ["--size", "64", "--width", "1", "--steps", "1"]
    options = gpu.parser().parse_args(["--out", str(tmp_path), "--work", str(tmp_path / "w"), *toy])
    for name in ("ceilings", "members", "streaming", "profile", "inversion", "lineages"):
        assert gpu.run_part(name, options) == 0
        made = json.loads((tmp_path / f"{name}_cpu.json").read_text())
        assert made["part"] == name and made["complete"]
    assert gpu.run_part("ceilings", options) == 0


def test_gpu_queue_names_every_part():
    import gpu

    queue = (FOLDER / "gpu_queue.md").read_text()
    for name in gpu.PARTS:
        assert name in queue or f"`-{name.partition('-')[2]}`" in queue, name


@pytest.mark.parametrize("part", ["table-sig", "untrusted-sig"])
def test_a_table_part_runs_one_attack_of_its_experiment(part, tmp_path, monkeypatch):
    import gpu

    from d3jax.study import run as study

    studies = []

    def run_study(config, folder, part):
        studies.append(config)
        labels = ["none", *(choice.label for choice in config.defenses)]
        return [
            {"status": "ok", "seed": seed, "defense": label}
            for seed in config.seeds
            for label in labels
        ]

    monkeypatch.setattr(study, "run_study", run_study)
    given = ["--work", str(tmp_path), "--data", str(tmp_path / "x.npz"), "--set", "train.steps=5"]
    options = gpu.parser().parse_args(given)
    pieces = gpu.PARTS[part].pieces(options)
    results = list(gpu.PARTS[part].measure(options, pieces, {}))
    assert [piece for piece, _ in results] == pieces and len(studies) == len(pieces)
    for config in studies:
        assert [choice.label for choice in config.attacks] == ["sig"] and config.train.steps == 5
        assert config.published["sig/none"] == "84.48/98.27" and all(
            name.startswith("sig/") for name in config.published
        )
    rows = [(row["seed"], row["defense"]) for row in results[-1][1]["rows"]]
    defenses = ["none", *(choice.label for choice in load_experiment(part).defenses)]
    assert rows == [(seed, label) for seed in (0, 1, 2) for label in defenses]


def load_experiment(part):
    from d3jax.config.loading import load
    from d3jax.study.registries import REGISTRIES

    name = "cifar10_d3" if part.startswith("table") else "dlp_cifar10_full"
    return load(FOLDER.parent / "experiments" / f"{name}.yaml", registries=REGISTRIES)


def test_a_round_has_its_number_of_calls_and_returns_seconds_per_step(monkeypatch):
    import rounds

    done = []

    def program(state, data, n):
        return lambda state, data: (done.append((state, n)), (state + n, {}))[1]

    clock = itertools.count(0.0, 30.0)
    monkeypatch.setattr(rounds.time, "perf_counter", lambda: next(clock))
    members = SimpleNamespace(state=0, data=None, repeat=SimpleNamespace(program=program))
    assert rounds.timed(members, 3, 5)() == 30.0 / 15  # the round before it is not timed
    assert done == [(5 * i, 5) for i in range(6)]
    assert rounds.spread([3.0, 1.0, 2.0, 9.0]) == {"min": 1.0, "median": 2.5, "max": 9.0}


def test_tables_are_means_over_the_seeds_that_did_not_fail(tmp_path):
    import tables

    shared = {
        "attack": "badnets",
        "defense": "none",
        "seed": 0,
        "acc": 0.8,
        "asr": 1.0,
        "ra": 0.0,
        "der": None,
        "status": "ok",
    }
    shared |= {
        "suspects": None,
        "suspects_poisoned": None,
        "labelled_poisoned": None,
        "published": "none",
    }
    defended = shared | {
        "defense": "dlp",
        "acc": 0.7,
        "asr": 0.1,
        "der": 0.9,
        "suspects": 10,
        "suspects_poisoned": 0.5,
    }
    first = [shared, defended, defended | {"defense": "abl", "published": "83.32/0.00"}]
    again = [
        shared | {"seed": 1},
        defended | {"seed": 1, "acc": 0.74},
        defended | {"defense": "abl", "seed": 1, "status": "failed"},
    ]
    again.append(defended | {"acc": 0.0})  # the first folder has this run, which counts
    for name, rows in {"a": first, "b": again}.items():
        write_csv(tmp_path / name / "results.csv", rows, ())
    rows = tables.gather(
        [tmp_path / "a", tmp_path / "b"], "results.csv", ("attack", "defense", "seed")
    )
    assert tables.markdown(tables.outcomes(rows)).splitlines()[2:] == [
        "| badnets | none | 80.0±0.0 | 100.0±0.0 | 0.0±0.0 |  |  |  | none |",
        "| badnets | dlp | 72.0±2.8, −8.0 | 10.0±0.0 | 0.0±0.0 | 90.0±0.0 | 50.0±0.0 |  | none |",
        "| badnets | abl (1 of 2 seeds) | 70.0, −10.0 | 10.0 | 0.0 | 90.0 | 50.0 |  | 83.32/0.00 |",
    ]
    assert tables.brief([*rows, shared | {"attack": "clean", "asr": None}]) == [
        ["attack", "none", "dlp", "abl"],
        ["badnets", "80.0±0.0 / 100.0±0.0", "72.0±2.8 / 10.0±0.0", "70.0 / 10.0 (1 of 2 seeds)"],
        ["clean", "80.0 / – (1 of 2 seeds)", "– / –", "– / –"],
    ]
    scores = [
        {"attack": "badnets", "defense": "dlp", "seed": seed, "score": "entropy", "auroc": 0.9}
        for seed in (0, 1)
    ]
    scores = [row | dict.fromkeys(tables.PRECISIONS, row["seed"] / 2) for row in scores]
    others = [row | {"defense": name} for name in ("same", "alone") for row in scores]
    others[-1]["auroc"] = 0.7
    found = tables.filters(
        [
            *scores,
            *others,
            scores[0] | {"score": "rescored"},
            scores[0] | {"attack": "clean", "auroc": None},
        ]
    )
    assert found[1:] == [
        ["badnets", "dlp, 1 with the same", "entropy", "0.900±0.000", *["25.0±35.4"] * 3],
        ["badnets", "alone", "entropy", "0.800±0.141", *["25.0±35.4"] * 3],
    ]


def test_learning_tables_show_first_stages_and_the_effect_of_stage_3():
    import learning

    said = {"clean_right": 0.5, "poisoned_entropy": 0.0, "clean_entropy": 1.25}
    runs = {
        ("first_stage-a", 0): [
            {"step": n, "poisoned_right": right} | said
            for n, right in enumerate((0.2, 0.95, 0.85, 1.0))
        ],
        ("beginning-b", 0): [{"step": 1, "poisoned_right": 0.9} | said],
        ("dlp", 0): [
            {"watch_acc": 0.6},
            {"watch_acc": 0.75},
            {"loss": 1.0},
            {"watch_acc": 0.5, "unlabelled_loss": 0.1},
        ],
        ("stages12", 0): [{"watch_acc": 0.6}],
    }
    assert learning.first_stages("badnets", runs) == [
        ["badnets", "0", "2", "100.0", "50.0", "0.00", "1.25"],
        ["badnets", "0", "never", "90.0", "50.0", "0.00", "1.25"],
    ]
    assert learning.later_stages("badnets", runs) == [
        ["badnets", "0", "dlp", "75.0", "50.0", "−25.0"]
    ]


def test_records_are_read_from_run_folders_of_both_layouts(tmp_path):
    import learning

    lines = ['{"stage": "badnets/seed1/dlp", "step": 2, "loss": 1.0}', '{"stage": "x", "step": 1}']
    lines += ['{"stage": "badnets/seed1/dlp", "step": 2, "loss": 0.5}', '{"stage": "bad', "[1]"]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    node = tmp_path / "nodes" / "badnets" / "seed0" / "dlp"
    node.mkdir(parents=True)
    lines = ['{"loop": "", "step": 3}', '{"loop": "", "step": 1}', '{"loop": "semi", "step": 7}']
    (node / "metrics.jsonl").write_text("\n".join(lines))
    found = learning.read_metrics(tmp_path)
    steps = {
        run: [record["step"] for record in records] for run, records in found["badnets"].items()
    }
    assert list(found) == ["badnets"]
    assert steps == {("dlp", 1): [2], ("dlp", 0): [1, 3], ("dlp/semi", 0): [7]}
    assert found["badnets"]["dlp", 1][0]["loss"] == 0.5
    assert learning.read_metrics(tmp_path / "nowhere") == {}


def test_held_back_images_are_drawn_from_training_images_only():
    import held_back

    data = {
        "train_images": np.arange(20),
        "train_labels": np.arange(20) % 3,
        "test_images": np.full(5, -1),
    }
    parts = held_back.split(data, 8, 6, seed=7)
    drawn = np.concatenate([parts["train_images"], parts["test_images"]])
    assert (
        len(parts["train_images"]) == 8
        and len(parts["test_images"]) == 6
        and len(set(drawn)) == 14
        and drawn.min() >= 0
    )
    assert all(
        (parts[f"{part}_labels"] == parts[f"{part}_images"] % 3).all() for part in ("train", "test")
    )
    with pytest.raises(
        SystemExit, match="--train 15 and --test 6 are more than the 20 training images"
    ):
        held_back.split(data, 15, 6, seed=7)


RUNS = ("damage", "faults", "kills")
"""Programs that make their tables from new runs and not from committed rows."""


def test_committed_tables_equal_what_the_commands_print(monkeypatch, capsys):
    import claim
    import claims
    import detectors
    import learning
    import tables
    import untrusted

    programs = {
        "claim": (claim, "claim_{}"),
        "untrusted": (untrusted, "untrusted_{}"),
        "claims": (claims, "evolution_c{{}}_{}"),
        "learning": (learning, "{}"),
        "detectors": (detectors, "detectors_{}"),
    }
    kept = sorted((FOLDER / "results").glob("*.md"))
    assert kept
    for path in kept:
        if path.stem in RUNS:
            continue
        first, _, rest = path.stem.partition("_")
        program, pattern = programs.get(first, (tables, f"{first}_{{}}"))
        name = pattern.format(rest)
        words = [program.__name__, *["table"] * (program is claim)]
        monkeypatch.setattr(sys, "argv", [*words, str(FOLDER / "results" / name)])
        program.main()
        assert capsys.readouterr().out == path.read_text(encoding="utf8")


def test_flags_are_those_of_the_committed_inversions(monkeypatch, capsys):
    import flags

    rows = [
        str(FOLDER / "results" / f"detection_{name}.csv")
        for name in ("cifar10", "fashion_mnist", "search_fashion_mnist")
    ]
    monkeypatch.setattr(sys, "argv", ["flags", *rows])
    flags.main()
    assert capsys.readouterr().out == (FOLDER / "results" / "flags.txt").read_text()


def test_instructions_of_a_step_are_sorted_by_kind():
    import step_profile as profile

    net = "jit(_steps)/jvp(_PreActResNet)/block1_1"
    back = "jit(_steps)/transpose(jvp(_PreActResNet))/block1_1"
    kinds = {
        f"{net}/Conv_0/conv_general_dilated": profile.FORWARD,
        f"{back}/Conv_0/transpose": profile.INPUT,
        f"{back}/Conv_0/cond/branch_0_fun/while": profile.WEIGHT,
        f"{net}/BatchNorm_0/mul": profile.NORM,
        f"{back}/BatchNorm_0/reduce_sum": profile.NORM_BACK,
        "jit(_steps)/jvp()/gather": profile.BATCH,
        "jit(_steps)/mul": profile.OPTIMISER,
    }
    assert {path: profile.kind_of(path, False) for path in kinds} == kinds
    assert profile.kind_of(f"{net}/add", True) == profile.FORWARD


@pytest.mark.parametrize("quantity", ["rows", "labels", "images", "members"])
def test_every_study_of_the_growth_table_is_valid(quantity, tmp_path):
    import cost_growth

    from d3jax.config.loading import load
    from d3jax.study import REGISTRIES

    size = cost_growth.CASES[quantity][1][-1]
    words = cost_growth.command_of(quantity, size, tmp_path)
    config = load(words[words.index("--config") + 1], registries=REGISTRIES)
    grown = {
        "rows": len(config.seeds),
        "members": len(config.seeds),
        "labels": getattr(config.dataset.config, "classes", None),
        "images": getattr(config.dataset.config, "train", None),
    }
    assert grown[quantity] == size


def test_the_exponent_of_growth_is_the_slope_between_the_largest_cases():
    import cost_growth

    assert cost_growth.slope([1, 10, 100], [7.0, 2.0, 200.0]) == pytest.approx(2.0)


def test_two_checkouts_are_compared_in_turns(monkeypatch, capsys):
    import end_to_end

    seconds = iter([10.0, 8.0, 20.0, 10.0, 10.0, 9.0])
    asked = []

    def fake(checkout, config, settings):
        asked.append((checkout.name, settings))
        return next(seconds)

    monkeypatch.setattr(end_to_end, "seconds_of", fake)
    monkeypatch.setattr(end_to_end, "commit_of", lambda checkout: "abc")
    end_to_end.main(["/a/old", "/a/new", "x.yaml", "--dataset.path", "/d.npz"])
    assert [name for name, _ in asked] == ["old", "new"] * 3
    assert asked[0][1] == ["--dataset.path", "/d.npz"]
    assert "| x | 10 | 9 | 0.50, 0.80, 0.90 |" in capsys.readouterr().out


@pytest.mark.parametrize("path", sorted((FOLDER / "studies").glob("*.yaml")), ids=lambda p: p.stem)
def test_short_studies_are_valid(path):
    from d3jax.config.loading import load
    from d3jax.study import REGISTRIES

    assert load(path, registries=REGISTRIES).train.steps
