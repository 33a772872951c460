"""Tests of external models in a study: reading, detection without a known trigger, and repair.

Models are read from d3jax's checkpoint folders and from files of other programs.
"""

import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax import export
from d3jax.attacks import BlendedConfig, LFConfig, make_blended, make_lf
from d3jax.config.loading import dumps, to_mapping
from d3jax.core.errors import AttackError, CheckpointError, ConfigError, DamagedError
from d3jax.core.random import stream
from d3jax.data import SyntheticConfig, make_synthetic
from d3jax.interop import to_torch, write_tensors
from d3jax.interop.external_model import ExternalModel, trigger_for
from d3jax.models import ResNetConfig, make_resnet
from d3jax.results.tables import read_csv
from d3jax.runtime import checkpoint
from d3jax.study import check_study

from ..helpers import studies

STUDY = """
dataset: {name: synthetic, size: 12, classes: 4, train: 400, test: 130, noise: 0.15}
model: small
attacks: [{name: badnets, rate: 0.1}]
train: {steps: 150, batch_size: 64, augment: none, optimizer: {lr: 0.05}}
reserved: {count: 96}
features: 40
detections: []
defenses:
  - name: d3
    label: repair
    schedule: {steps: 60, batch_size: 32, augment: none, optimizer: {lr: 0.1, schedule: constant}}
loop: {log_every: 20, save_every: 1000}
"""
UNKNOWN = (
    ("attacks", "[unknown]"),
    ("detections", "[{name: inversion, label: nc, passes: 30, batches: 2}]"),
)


def read(*overrides, text=STUDY):
    return studies.read(text, *overrides)


def folder_of(run, pattern):
    """Return the first checkpoint folder of a run that matches a pattern."""
    return next((run / "checkpoints").glob(pattern))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run = tmp_path_factory.mktemp("suspect") / "trained"
    rows = studies.run(read(), run)
    with studies.unchanged(run):
        yield run, rows


@pytest.fixture(scope="module")
def walked_in(trained):
    """Return the folder, rows and config of a study of the trained victim as an external model.

    The study does not know the attack.
    """
    run, _ = trained
    victim = folder_of(run, "synthetic-badnets-victim-*")
    config = read(*UNKNOWN, ("model.checkpoint", str(victim)))
    return (
        run.parent / "unknown",
        studies.run(config, run.parent / "unknown"),
        config,
    )


def test_a_checkpoint_folder_is_read_as_the_model_it_holds(trained, walked_in):
    (_, (victim, _)), (folder, (none, repair), config) = trained, walked_in
    assert none["acc"] == victim["acc"] and none["asr"] is None and none["poison_rate"] is None
    assert repair["status"] == "ok" and repair["asr"] is None
    assert studies.read(
        dumps(config)
    ) == config and f"checkpoint: {config.model.checkpoint}" in dumps(config)
    turned = {row["defense"]: row for row in read_csv(folder / "triggers.csv")}
    assert (
        list(turned) == ["none", "repair"]
        and turned["none"]["turned"] > 0.8
        and turned["none"]["acc"] == none["acc"]
    )
    assert turned["repair"]["turned"] < turned["none"]["turned"]
    assert all(row["is_target"] is None for row in read_csv(folder / "evidence.csv"))
    assert all(row["right"] is None for row in read_csv(folder / "detections.csv"))


def test_the_page_of_an_external_model_names_the_unknown_rates(walked_in):
    page = (walked_in[0] / "report.html").read_text()
    assert (
        "What this study shows" in page
        and "ASR, RA and DER cannot be measured" in page
        and "trained elsewhere" in page
    )
    assert (
        "not known whether this is right" in page
        and "of images with the inverted trigger" in page
        and "could not be drawn" not in page
    )


def test_an_external_model_with_its_trigger_has_the_original_rates(trained, tmp_path):
    run, (victim, repaired) = trained
    for pattern, before in (("synthetic-badnets-victim-*", victim), ("badnets-repair-*", repaired)):
        where = folder_of(run, pattern)
        found = studies.run(
            read(("model.checkpoint", str(where / "model")), ("defenses", "[]")),
            tmp_path / pattern[:5],
        )
        assert [found[0][name] for name in ("acc", "asr", "ra")] == [
            before[name] for name in ("acc", "asr", "ra")
        ]


def damaged(source, target, change):
    """Write a copy of a checkpoint whose arrays `change(arrays)` has changed; return its path."""
    tensors, note = checkpoint.read(source / "model")
    flat = {name: np.asarray(value) for name, value in tensors.items()}
    change(flat)
    checkpoint.save(target, flat, note)
    return target


def test_invalid_checkpoints_are_named_before_any_work(trained, tmp_path):
    run, _ = trained
    victim = folder_of(run, "synthetic-badnets-victim-*")

    def check(path, message, error=CheckpointError, *overrides):
        with pytest.raises(error, match=message):
            check_study(
                read(*UNKNOWN, ("model.checkpoint", str(path)), *overrides), tmp_path / "run"
            )
        assert not (tmp_path / "run").exists()

    check(tmp_path / "nowhere", "model.checkpoint: .*nowhere: no such file or folder")
    (tmp_path / "empty").mkdir()
    check(tmp_path / "empty", "no checkpoint of d3jax; want a folder in <workdir>/checkpoints")
    broken = damaged(
        victim,
        tmp_path / "nan",
        lambda flat: flat.update({"variables.params.head.bias": np.full(4, np.nan, np.float32)}),
    )
    check(broken, "nan holds weights that are NaN or infinite: params.head.bias")
    fewer = damaged(victim, tmp_path / "fewer", lambda flat: flat.pop("variables.params.head.bias"))
    check(fewer, "fewer: a checkpoint of another model: it lacks params.head.bias")
    check(victim, "a checkpoint of another model", CheckpointError, ("dataset.classes", "5"))
    shutil.copytree(victim / "model", tmp_path / "cut")
    for path in (tmp_path / "cut").rglob("*"):
        if path.is_file() and path.stat().st_size > 2000:
            path.write_bytes(path.read_bytes()[:1000])
    check(tmp_path / "cut", "cut", DamagedError)
    (tmp_path / "a.npz").write_bytes(b"x")
    check(tmp_path / "a.npz", "begins with b'x', as no model does")
    check(victim, "defenses: abl-authors: trains from scratch", ConfigError, ("defenses", "[abl]"))
    replay = ("evolutions", "[{name: evolution, updates: 1, batch_size: 8, replay: 0.5}]")
    check(
        victim,
        "replay: the training set of an external model",
        ConfigError,
        ("fresh", "0.5"),
        replay,
    )
    with pytest.raises(ConfigError, match="the label read is kept"):
        read(("defenses", "[{name: finetune, label: read}]"))
    check(
        victim,
        "attacks: lf: makes its trigger before or with the training",
        AttackError,
        ("attacks", "[lf]"),
    )
    with pytest.raises(ConfigError, match="attacks: unknown: is for an external model"):
        check_study(read(*UNKNOWN), tmp_path)
    with pytest.raises(ConfigError, match="model.checkpoint: want a text, got 3"):
        read(("model.checkpoint", "3"))


def test_several_seeds_share_the_model(trained, tmp_path):
    where = folder_of(trained[0], "synthetic-badnets-victim-*")
    rows = studies.run(
        read(
            *UNKNOWN[:1], ("model.checkpoint", str(where)), ("seeds", "[0, 1]"), ("features", "0")
        ),
        tmp_path,
    )
    assert [(row["defense"], row["seed"], row["attack_seed"]) for row in rows] == [
        ("none", 0, 0),
        ("repair", 0, 0),
        ("none", 1, 0),
        ("repair", 1, 0),
    ]
    assert (
        len(list((tmp_path / "checkpoints").glob("synthetic-unknown-external_model-*"))) == 1
        and rows[0]["acc"] == rows[2]["acc"]
    )


def test_a_saved_trigger_is_used_only_by_the_attack_that_made_it(trained):
    info = make_synthetic(SyntheticConfig(size=12, channels=3, classes=4, train=8, test=8)).info
    there = {"pattern": jnp.arange(12 * 12 * 3, dtype=jnp.uint8).reshape(12, 12, 3)}
    settings = to_mapping(BlendedConfig())
    external = ExternalModel(None, there, {"attack": "blended", "settings": settings}, "", "")
    attack, key = make_blended(BlendedConfig(), info), jax.random.key(3)

    def take(name, settings, attack):
        return trigger_for(external, attack, {"attack": name, "settings": settings}, key)

    np.testing.assert_array_equal(take("blended", settings, attack)["pattern"], there["pattern"])
    drawn = attack.init(stream(key, "trigger"))["pattern"]
    np.testing.assert_array_equal(
        take("blended", settings | {"alpha": 0.5}, attack)["pattern"], drawn
    )
    assert not np.array_equal(drawn, there["pattern"])
    with pytest.raises(AttackError, match="the trigger there is of blended, or of other settings"):
        # The trigger of lf has the same shape.
        take("lf", to_mapping(LFConfig()), make_lf(LFConfig(), info))
    kept = checkpoint.read(folder_of(trained[0], "synthetic-badnets-victim-*") / "model")[1][
        "about"
    ]
    assert kept["attack"] == "badnets" and kept["settings"]["rate"] == 0.1


DIGITS = """
dataset: {name: digits, size: 8}
model: {name: wide_resnet, depth: 10}
attacks: [badnets]
train: {steps: 3, batch_size: 64}
defenses: []
"""


@pytest.mark.slow
def test_safetensors_export_and_import_keep_the_rates(tmp_path, capsys):
    rows = studies.run(read(text=DIGITS), tmp_path / "run")
    out, config = tmp_path / "new" / "model.safetensors", tmp_path / "run" / "config.yaml"
    assert export.main(["--config", str(config), "badnets/seed0/train", str(out)]) == 0
    assert "39 tensors" in capsys.readouterr().out and out.stat().st_mode & 0o777 == 0o644
    again = studies.run(read(("model.checkpoint", str(out)), text=DIGITS), tmp_path / "again")
    assert again[0]["acc"] == rows[0]["acc"] and again[0]["asr"] == rows[0]["asr"]
    unused = tmp_path / "unused.safetensors"
    for words, message in (
        (["badnets/seed0/train", str(out)], "model.safetensors: exists already; remove it"),
        (
            ["badnets/seed0/d3", str(unused)],
            "'badnets/seed0/d3' is no model of .*, which has badnets/seed0/train",
        ),
        (["badnets/seed0/train", "x.pt"], "x.pt: want a name that ends in .safetensors"),
    ):
        assert export.main(["--config", str(config), *words]) == 2
        assert re.search(message, capsys.readouterr().err)
    with pytest.raises(CheckpointError, match="badnets/seed0/train is not finished"):
        export.export(config, "badnets/seed0/train", unused, tmp_path / "elsewhere")
    other = tmp_path / "other.yaml"
    other.write_text(config.read_text().replace("rate: 0.1", "rate: 0.2"))
    with pytest.raises(
        CheckpointError, match="if it ran with other settings, give --config .*run/config.yaml"
    ):
        export.export(other, "badnets/seed0/train", unused, tmp_path / "run")
    assert jnp.isfinite(rows[0]["acc"])


@pytest.mark.slow
def test_a_torchvision_resnet_of_224_pixels_runs_through_the_suspect_study(tmp_path):
    """Run the study of `experiments/suspect.yaml` with short schedules.

    It detects the backdoor, then repairs the model with fine-tuning, D3 and MCL.
    """
    dataset = "{name: synthetic, size: 224, classes: 3, train: 60, test: 12}"
    settings = ResNetConfig(stem="imagenet", width=8)
    info = make_synthetic(SyntheticConfig(size=224, classes=3, train=60, test=12)).info
    variables = make_resnet(settings, info).init(jax.random.key(0))
    path = tmp_path / "model.safetensors"
    write_tensors(path, to_torch(variables, "resnet", settings))
    short = "{batches: 1, passes: 4}"
    text = f"""
dataset: {dataset}
model: {{name: resnet, stem: imagenet, width: 8, checkpoint: {path}}}
attacks: [unknown]
reserved: {{count: 40}}
features: 12
detections: [{{name: inversion, label: nc, {short[1:]}]
defenses:
  - {{name: finetune, schedule: {{steps: 4, batch_size: 8}}}}
  - {{name: d3, preset: code, schedule: {{steps: 4, batch_size: 8}}}}
  - name: mcl
    preset: ours
    schedule: {{steps: 4, batch_size: 8}}
    detection: {short}
    inversion: {{preset: nc, {short[1:]}
"""
    rows = studies.run(studies.read(text), tmp_path / "run")
    assert [(row["defense"], row["status"]) for row in rows] == [
        (label, "ok") for label in ("none", "finetune", "d3-code", "mcl-ours")
    ]
    assert (tmp_path / "run" / "report.html").exists()
