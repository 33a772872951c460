"""Evolving models in a study: rows of every update, the control, members, resume, mistakes."""

import shutil

import pytest

from d3jax import study
from d3jax.config_file import loads
from d3jax.errors import ConfigError
from d3jax.evolution_page import series, survived
from d3jax.journal import Progress
from d3jax.report import read_csv

from .small import register


@pytest.fixture(scope="module", autouse=True)
def small():
    """Not when this file is read: tests of every model would find it among them."""
    register()


STUDY = """
dataset: {name: synthetic, size: 12, classes: 4, train: 600, test: 130, noise: 0.15}
model: small
attacks: [{name: badnets, rate: 0.1}, clean]
train: {steps: 150, batch_size: 64, augment: none, optimizer: {lr: 0.05}}
reserved: {count: 64}
fresh: 0.6
measured: 100
evolutions:
  - {name: evolution, updates: 3, epochs: 2, batch_size: 32, augment: none, drift: {brightness: 0.05}, strategy: {lr: 0.002}, label: slow}
  - {name: evolution, updates: 3, epochs: 2, batch_size: 32, augment: none, drift: {brightness: 0.05}, strategy: {name: sgdr, lr: 0.3},
     persistent: 0.05, label: kept}
defenses: []
loop: {log_every: 3, save_every: 6, save_seconds: 0}
"""


def read(text=STUDY, *overrides):
    return loads(text, overrides, registries=study.REGISTRIES)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lineages") / "study"
    return folder, study.run_study(read(), folder, Progress(quiet=True))


def test_a_lineage_has_a_row_for_every_update(finished):
    folder, rows = finished
    assert [(row["attack"], row["defense"]) for row in rows] == [
        (attack, defense) for attack in ("badnets", "clean") for defense in ("none", "slow", "kept")
    ]
    table = read_csv(folder / "evolution.csv")
    assert [row["update"] for row in table] == 4 * [0, 1, 2, 3]
    by = {(row["attack"], row["evolution"], row["update"]): row for row in table}
    first = by["badnets", "slow", 0]
    assert (first["acc"], first["asr"]) == (rows[0]["acc"], rows[0]["asr"]) and first["moved"] is None
    for update in (1, 2, 3):
        row = by["badnets", "slow", update]
        assert 0 < row["stale_acc"] <= 1 and row["moved"] > 0 and row["lr_sum"] == pytest.approx(0.002 * 6, rel=1e-5)
        assert row["control"] < 0.5 and by["clean", "slow", update]["asr"] is None
    assert by["badnets", "slow", 1]["asr"] > 0.9  # six steps at a low rate forget nothing


def test_survivability_is_a_column(finished):
    _, rows = finished
    slow = rows[1]
    assert slow["survived_0.5"] == 3 and slow["survived_0.5_censored"] is True
    assert "survived_0.5" not in rows[0] and "survived_0.5" not in rows[4]


def test_together_they_have_the_numbers_they_have_apart(finished, tmp_path):
    folder, _ = finished
    shutil.copytree(folder / "checkpoints", tmp_path / "checkpoints", ignore=shutil.ignore_patterns("*slow*", "*kept*"))
    study.run_study(read(STUDY, ("loop.members", "together")), tmp_path, Progress(quiet=True))
    pairs = zip(read_csv(folder / "evolution.csv"), read_csv(tmp_path / "evolution.csv"), strict=True)
    for apart, together in pairs:
        for name in ("acc", "asr", "stale_acc", "moved"):
            if apart[name] is not None:
                assert together[name] == pytest.approx(apart[name], abs=0.05), (name, apart, together)


def test_a_report_reads_it_again(finished, tmp_path):
    folder, _ = finished
    before = (folder / "evolution.csv").read_text()
    study.run_study(read(), folder, Progress(quiet=True), compute=False)
    assert (folder / "evolution.csv").read_text() == before


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (("fresh", "0"), "fresh: 0 leaves no images for evolutions"),
        (
            ("evolutions.0.batch_size", "200"),
            "evolutions: slow: batch_size: 200 is more than the 120 fresh images of one of 3 updates",
        ),
        (("evolutions.0.drift", "{tilt: 1.0}"), "drift: 'tilt' is not one of rotation, hue"),
        (("evolutions.1.strategy.cycles", "50"), "cycles: 50 do not fit an update of 6 steps"),
        (("evolutions.1.label", "slow"), "evolutions: slow stands twice"),
        (("defenses", "[{name: finetune, label: slow}]"), "evolutions: slow is a label of defenses too"),
    ],
)
def test_mistakes_are_named_before_any_work(tmp_path, override, message):
    with pytest.raises(ConfigError, match=message):
        study.check_study(read(STUDY, override), tmp_path)


def test_the_page_shows_curves_rates_and_survivability(finished):
    folder, _ = finished
    page = (folder / "report.html").read_text()
    assert "updates survived" in page and "≥ 3" in page and "Learning rate of every step of an update" in page
    pictures = {path.name for path in (folder / "figures").iterdir()}
    assert {"badnets-evolution.png", "badnets-rates.png", "clean-evolution.png"} <= pictures


def test_survivability_over_seeds():
    rows = [{"survived_0.5": 2, "survived_0.5_censored": False}, {"survived_0.5": 10, "survived_0.5_censored": True}]
    assert survived(rows, "0.5") == "≥ 6.0" and survived(rows[:1], "0.5") == "2" and survived([{}], "0.5") == "–"
    evolved = [{"evolution": "a", "update": t, "seed": seed, "asr": v} for seed, v in ((0, 0.2), (1, 0.6)) for t in (0, 1)]
    at, mean, deviation = series(evolved, "a", "asr")
    assert at.tolist() == [0, 1] and mean == pytest.approx([0.4, 0.4]) and deviation == pytest.approx([0.8 / 8**0.5] * 2)
