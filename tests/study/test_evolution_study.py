"""Tests of evolution runs in a study: rows of every update, the control, ensembles and resuming.

They also check the error messages.
"""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax.core.errors import AttackError, ConfigError
from d3jax.core.images import as_float
from d3jax.data.drift import compose
from d3jax.evolution.measure import Measure
from d3jax.results.tables import read_csv
from d3jax.runtime import checkpoint
from d3jax.study import check_study, run_study
from d3jax.study.graph import make_nodes
from d3jax.study.nodes.evolution import EvolutionNode

from ..helpers import studies
from ..helpers.studies import Breaking

STUDY = """
dataset: {name: synthetic, size: 12, classes: 4, train: 600, test: 130, noise: 0.15}
model: small
attacks: [{name: badnets, rate: 0.1}, clean]
train: {steps: 150, batch_size: 64, augment: none, optimizer: {lr: 0.05}}
reserved: {count: 64}
fresh: 0.6
measured: 100
defenses: []
loop: {log_every: 3, save_every: 1000}
evolutions:
  - {name: evolution, updates: 3, epochs: 2, batch_size: 32, augment: none,
     drift: {brightness: 0.05}, strategy: {lr: 0.002}, label: slow}
  - {name: evolution, updates: 3, epochs: 2, batch_size: 32, augment: none,
     drift: {brightness: 0.05}, strategy: {name: sgdr, lr: 0.3}, persistent: 0.05, label: kept}
"""


DOUBLE = """
  - {name: evolution, updates: 3, epochs: 2, batch_size: 32, augment: none,
     drift: {brightness: 0.05}, strategy: {lr: 0.002}, label: twin}
  - {name: evolution, updates: 1, epochs: 1, batch_size: 32, augment: none, label: other}
"""


def read(text=STUDY, *overrides):
    return studies.read(text, *overrides)


def evolution_nodes(context) -> list[EvolutionNode]:
    """Return the evolution nodes of a study."""
    return [node for node in make_nodes(context) if isinstance(node, EvolutionNode)]


def evolution_node(context, label: str, attacked: bool) -> EvolutionNode:
    """Return the evolution node with this label: the attack's if `attacked`, else the control's."""
    return next(
        node
        for node in evolution_nodes(context)
        if (node.label, node.run.attacked) == (label, attacked)
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lineages") / "study"
    rows = studies.run(read(), folder)
    with studies.unchanged(folder):
        yield folder, rows


def test_an_evolution_run_has_a_row_for_every_update(finished):
    folder, rows = finished
    assert [(row["attack"], row["defense"]) for row in rows] == [
        (attack, defense) for attack in ("badnets", "clean") for defense in ("none", "slow", "kept")
    ]
    table = read_csv(folder / "evolution.csv")
    assert [row["update"] for row in table] == 4 * [0, 1, 2, 3]
    by = {(row["attack"], row["evolution"], row["update"]): row for row in table}
    first = by["badnets", "slow", 0]
    assert (first["acc"], first["asr"]) == (rows[0]["acc"], rows[0]["asr"]) and first[
        "moved"
    ] is None
    for update in (1, 2, 3):
        row = by["badnets", "slow", update]
        assert (
            0 < row["stale_acc"] <= 1
            and row["moved"] > 0
            and row["lr_sum"] == pytest.approx(0.002 * 6, rel=1e-5)
        )
        assert row["stale_asr"] > 0.8 and abs(row["stale_score"] - row["score"]) < 2
        assert row["control"] < 0.5 and by["clean", "slow", update]["asr"] is None
    # Six steps at a low learning rate do not remove the backdoor.
    assert by["badnets", "slow", 1]["asr"] > 0.9


def test_stale_rates_are_the_previous_models_on_current_images(finished):
    """Recompute the stale accuracy, the accuracy and the validation accuracy by hand.

    Stale accuracy is the previous model's on the current test images. Validation accuracy is the
    current model's on the images of the update that it did not learn.
    """
    folder, _ = finished
    context = studies.opened(read(), folder)
    node = evolution_node(context, "kept", attacked=False)
    rows = [
        row
        for row in read_csv(folder / "evolution.csv")
        if (row["attack"], row["evolution"]) == ("clean", "kept")
    ]
    drift, like = compose(["brightness"], 3), jax.eval_shape(context.model.init, jax.random.key(0))

    def accuracy(model, images, labels, update):
        variables, _ = checkpoint.load(node.folder / "updates" / str(model), like)
        keys = jax.random.split(jax.random.key(0), len(labels))
        moved = drift(keys, as_float(jnp.asarray(images)), jnp.array([0.05 * update]))
        return (
            np.asarray(context.model.apply(variables, moved, train=False).logits.argmax(-1))
            == np.asarray(labels)
        ).mean()

    test = [part[:100] for part in context.dataset.test]
    for update in (2, 3):
        assert rows[update]["stale_acc"] == pytest.approx(
            accuracy(update - 1, *test, update), abs=0.011
        )
        assert rows[update]["acc"] == pytest.approx(accuracy(update, *test, update), abs=0.011)
        kept = node.sets[1][update - 1]
        assert rows[update]["valid_acc"] == pytest.approx(
            accuracy(update, *(part[kept] for part in context.fresh), update), abs=0.09
        )


def test_the_linear_prediction_uses_the_backdoored_models_features(finished):
    """Recompute the prediction by hand for the attack's only evolution run without poison.

    The computation covers the trigger's direction, the moments of drifted images and the decay.
    """
    folder, _ = finished
    rows = read_csv(folder / "forgetting.csv")
    assert [(row["attack"], row["evolution"], row["update"]) for row in rows] == [
        ("badnets", "slow", i) for i in range(4)
    ]
    evolved = [
        row
        for row in read_csv(folder / "evolution.csv")
        if (row["attack"], row["evolution"]) == ("badnets", "slow")
    ]
    assert [row["score"] for row in rows] == [row["score"] for row in evolved]
    assert [row["left"] for row in rows] == pytest.approx(
        [row["score"] / evolved[0]["score"] for row in evolved]
    )
    assert all(rows[0][name] == 1 for name in ("left", "left_squared", "left_softmax"))

    context = studies.opened(read(), folder)
    node = evolution_node(context, "slow", attacked=True)
    victim, _ = checkpoint.load(node.victim.folder / "model", node.victim.like())

    def features(x):
        return np.asarray(
            context.model.apply(victim.variables, x, train=False).features["penultimate"],
            np.float64,
        )

    images = as_float(
        jnp.asarray(context.dataset.test.images[np.asarray(context.dataset.test.labels) != 0])
    )
    stamped = jnp.round(node.run.attack.stamp(victim.trigger, images) * 255) / 255
    direction = np.append((features(stamped) - features(images)).mean(0), 0)
    left = direction.copy()
    for update, learned in enumerate(node.sets[0], 1):
        seen = as_float(jnp.asarray(context.fresh.images[learned]))
        drifted = jnp.round(jnp.clip(seen * (1 + 0.05 * update), 0, 1) * 255) / 255
        x = np.concatenate([features(drifted), np.ones((len(seen), 1))], 1)
        second, speed = x.T @ x / len(x) + 5e-4 * np.eye(x.shape[1]), np.zeros_like(left)
        for _ in range(6):
            speed = 0.9 * speed + second @ left
            left = left - 0.002 * speed
        assert rows[update]["left_squared"] == pytest.approx(
            direction @ left / (direction @ direction), abs=2e-3
        )
        assert (
            rows[update]["left_squared"]
            < rows[update]["left_softmax"]
            < rows[update - 1]["left_softmax"]
        )


def test_survivability_is_a_column_of_attacked_evolution_runs(finished):
    _, rows = finished
    slow = rows[1]
    assert slow["survived_0.5"] == 3 and slow["survived_0.5_censored"] is True
    assert "survived_0.5" not in rows[0] and "survived_0.5" not in rows[4]


def test_a_rerun_does_not_count_the_control_again(finished, tmp_path, monkeypatch):
    folder, _ = finished
    shutil.copytree(folder, tmp_path / "copy")
    monkeypatch.setattr(Measure, "asr", lambda *_: pytest.fail("counted again"))
    studies.run(read(), tmp_path / "copy")
    assert (tmp_path / "copy" / "evolution.csv").read_text() == (
        folder / "evolution.csv"
    ).read_text()


@pytest.mark.slow
def test_evolution_runs_have_the_same_numbers_together_and_apart(finished, tmp_path):
    folder, _ = finished
    shutil.copytree(
        folder / "checkpoints",
        tmp_path / "checkpoints",
        ignore=shutil.ignore_patterns("*-evolution-*"),
    )
    studies.run(read(STUDY, ("loop.members", "together")), tmp_path)
    pairs = zip(
        read_csv(folder / "evolution.csv"), read_csv(tmp_path / "evolution.csv"), strict=True
    )
    for apart, together in pairs:
        for name in ("acc", "asr", "stale_acc", "moved"):
            if apart[name] is not None:
                assert together[name] == pytest.approx(
                    apart[name], **({"rel": 0.02} if name == "moved" else {"abs": 0.05})
                ), (
                    name,
                    apart,
                    together,
                )


def test_evolution_runs_of_equal_settings_are_computed_once(finished, tmp_path):
    folder, rows = finished
    cache = shutil.copytree(folder / "checkpoints", tmp_path / "cache")
    kept = set(cache.iterdir())
    cached = (("cache", str(cache)), ("attacks", "[{name: badnets, rate: 0.1}]"))
    again = read(STUDY.replace("label: slow", "label: steady") + DOUBLE, *cached)
    same = studies.run(again, tmp_path / "run")
    assert [row["defense"] for row in same] == ["none", "steady", "kept", "twin", "other"]
    assert (
        same[1]["asr"] == same[3]["asr"] == rows[1]["asr"]
        and same[1]["seconds"] == rows[1]["seconds"]
    )
    assert len(set(cache.iterdir()) - kept) == 1, "only the other is new"


def test_a_report_reproduces_the_evolution_table_and_a_part_has_its_own_rows(finished, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "copy")
    before = (folder / "evolution.csv").read_text()
    studies.run(read(), folder, compute=False)
    assert (folder / "evolution.csv").read_text() == before
    assert [row["defense"] for row in studies.run(read(), folder, part=(2, 6))] == ["slow"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (("fresh", "0"), "fresh: 0 leaves no images for evolutions"),
        (
            ("evolutions.0.batch_size", "200"),
            (
                "evolutions: slow: batch_size: 200 is more than the 108 images that one "
                "of 3 updates learns"
            ),
        ),
        (("evolutions.0.drift", "{tilt: 1.0}"), "drift: 'tilt' is not one of rotation, hue"),
        (("evolutions.1.strategy.cycles", "50"), "cycles: 50 do not fit an update of 6 steps"),
        (("evolutions.1.label", "slow"), "evolutions: slow appears twice"),
        (
            ("defenses", "[{name: finetune, label: slow}]"),
            "evolutions: slow is a label of defenses too",
        ),
        (
            ("evolutions.0.persistent", "0.001"),
            "slow: persistent: 0.001 of the 108 images that an update learns is less than one",
        ),
        (
            ("loop.placement", "stream"),
            "loop.placement: stream is for models and repairs; slow, kept keeps its images",
        ),
        (
            ("evolutions.0.defense", "d3"),
            "evolutions: slow: defense: 'd3' is not a label of `defenses`; the labels are none",
        ),
    ],
)
def test_mistakes_are_named_before_any_work(tmp_path, override, message):
    with pytest.raises(ConfigError, match=message):
        check_study(read(STUDY, override), tmp_path)


def test_the_page_shows_curves_rates_and_survivability(finished):
    folder, _ = finished
    page = (folder / "report.html").read_text()
    assert (
        "updates survived" in page
        and "≥ 3" in page
        and "Learning rate at every step of an update" in page
    )
    pictures = {path.name for path in (folder / "figures").iterdir()}
    assert {
        "badnets-evolution.png",
        "badnets-rates.png",
        "badnets-forgetting.png",
        "clean-evolution.png",
    } <= pictures


def folder_of(tmp_path, attack: str, **setting: str) -> str:
    """Return the folder name of the first evolution run of an attack, with settings changed."""
    overrides = ((f"evolutions.0.{name}", value) for name, value in setting.items())
    nodes = evolution_nodes(studies.opened(read(STUDY, *overrides), tmp_path))
    return next(node.folder.name for node in nodes if node.run.label == attack)


def test_another_order_of_drifts_is_another_evolution_run(tmp_path):
    """Noise followed by blur gives other images than blur followed by noise."""
    assert folder_of(tmp_path, "badnets", drift="{noise: 0.1, blur: 0.5}") != folder_of(
        tmp_path, "badnets", drift="{blur: 0.5, noise: 0.1}"
    )


def test_poison_settings_change_the_evolution_run_of_the_attack_but_not_the_control(tmp_path):
    for setting in ({"persistent": "0.1"}, {"trigger_first": "true"}):
        assert folder_of(tmp_path, "clean", **setting) == folder_of(tmp_path, "clean")
        assert folder_of(tmp_path, "badnets", **setting) != folder_of(tmp_path, "badnets")


def test_attacks_without_a_released_set_cannot_be_replayed(tmp_path):
    attacks, replay = ("attacks", "[{name: wanet, rate: 0.2}]"), ("evolutions.0.replay", "0.5")
    with pytest.raises(
        AttackError,
        match="attacks: wanet: evolutions: slow: has no poisoned set that could be released",
    ):
        check_study(read(STUDY, attacks, replay), tmp_path)
    check_study(
        read(STUDY, ("attacks", "[{name: wanet, rate: 0.2, rows: fixed}]"), replay), tmp_path
    )
    prepared = read(STUDY, ("attacks", "[{name: lc, rate: 0.1}]"), replay)
    slow, kept = evolution_nodes(studies.opened(prepared, tmp_path))
    assert [node.kind for node in slow.needs.values()] == ["victim", "trigger"]
    assert [node.kind for node in kept.needs.values()] == ["victim"]


def test_learn_statistics_is_refused_without_batchnorm(tmp_path):
    changes = (
        ("model", "{name: vit, width: 12, depth: 1, heads: 3}"),
        ("evolutions.0.learn", "statistics"),
    )
    with pytest.raises(
        ConfigError,
        match="evolutions: slow: learn: statistics changes nothing: vit has no BatchNorm",
    ):
        check_study(read(STUDY, *changes), tmp_path)


DEFENDED = """
dataset: {name: synthetic, size: 12, classes: 4, train: 600, test: 130, noise: 0.15}
model: small
attacks: [{name: badnets, rate: 0.1}]
train: {steps: 150, batch_size: 64, augment: none, optimizer: {lr: 0.05}}
reserved: {count: 96}
fresh: 0.6
measured: 100
evolutions:
  - {name: evolution, updates: 3, epochs: 2, batch_size: 32, augment: none,
     drift: {brightness: 0.05}, strategy: {lr: 0.002}, defense: repair, every: 2, label: defended}
defenses:
  - name: d3
    label: repair
    schedule: {steps: 60, batch_size: 32, augment: none, optimizer: {lr: 0.1, schedule: constant}}
loop: {log_every: 3, save_every: 6, save_seconds: 0}
"""


@pytest.mark.slow
def test_a_defence_is_called_between_updates_and_an_interrupted_run_continues(tmp_path):
    studies.run(read(DEFENDED), tmp_path / "whole")
    table = read_csv(tmp_path / "whole" / "evolution.csv")
    assert [row["trained_asr"] is not None for row in table] == [False, False, True, False]
    called = table[2]
    # The learning rate is too low to remove the backdoor without the defence.
    assert called["trained_asr"] > 0.9 and called["asr"] < 0.5, called
    assert table[3]["asr"] < 0.5 and min(row["acc"] for row in table) > 0.6
    # These stop in the training, then in an update, in the defence and in the last update.
    for stop in (60, 13, 5, 4):
        with pytest.raises(KeyboardInterrupt):
            run_study(read(DEFENDED), tmp_path / "cut", Breaking(stop))
    studies.run(read(DEFENDED), tmp_path / "cut")
    assert (tmp_path / "cut" / "evolution.csv").read_text() == (
        tmp_path / "whole" / "evolution.csv"
    ).read_text()


@pytest.mark.slow
def test_interrupted_evolution_runs_continue_exactly(finished, tmp_path):
    folder, _ = finished
    shutil.copytree(
        folder / "checkpoints",
        tmp_path / "checkpoints",
        ignore=shutil.ignore_patterns("*-evolution-*"),
    )
    often = (("loop.save_every", "6"), ("loop.save_seconds", "0"))
    for stop in (3, 5, 4):
        with pytest.raises(KeyboardInterrupt):
            run_study(read(STUDY, *often), tmp_path, Breaking(stop))
    studies.run(read(), tmp_path)
    assert (tmp_path / "evolution.csv").read_text() == (folder / "evolution.csv").read_text()
