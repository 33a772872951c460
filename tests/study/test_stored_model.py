"""Tests of exported victims in later studies: their attack, trigger and poisoned rows."""

import pytest

from d3jax import export
from d3jax.config.loading import dumps
from d3jax.config.stored_model import stored_recipe
from d3jax.core.errors import CheckpointError, ConfigError
from d3jax.interop import read_tensors, write_tensors
from d3jax.interop.external_model import write_external_model
from d3jax.results.tables import read_csv
from d3jax.study import check_study

from ..helpers import studies
from ..helpers.small import exportable

DATA = "dataset: {name: synthetic, size: 12, classes: 4, train: 400, test: 130, noise: 0.15}\n"
TRAIN = (
    DATA
    + """
model: small
attacks: [{name: badnets, rate: 0.05, target: 1}, lf, clean]
train: {steps: 3, batch_size: 64, augment: none, optimizer: {lr: 0.05}}
detections: [spectral]
defenses: []
seeds: [7]
loop: {log_every: 20, save_every: 1000}
"""
)
LABELS = ("badnets", "lf", "clean")
READ = (
    DATA
    + """
attacks: ["victim:tiny/badnets-5/7", "victim:tiny/lf-10/7", "victim:tiny/clean/7"]
detections: [spectral]
defenses: []
seeds: [1, 2]
"""
)
ADDRESSES = ("badnets-5/7", "lf-10/7", "clean/7")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the run folder of a study, its rows, and a shelf with its three models."""
    root = tmp_path_factory.mktemp("stored")
    rows = studies.run(studies.read(TRAIN), root / "run")
    with exportable():
        for label, address in zip(LABELS, ADDRESSES, strict=True):
            out = root / "shelf" / "tiny" / f"{address}.safetensors"
            export.export(root / "run" / "config.yaml", f"{label}/seed7/train", out)
        with studies.unchanged(root / "run"):
            yield root, rows


@pytest.fixture
def shelf(trained, monkeypatch):
    root, rows = trained
    monkeypatch.setenv("D3JAX_VICTIMS", str(root / "shelf"))
    return root, rows


def test_victims_are_read_with_trigger_and_poisoned_rows(shelf, tmp_path):
    root, before = shelf
    config = studies.read(READ)
    assert [attack.label for attack in config.attacks] == ["badnets-5-7", "lf-10-7", "clean-7"]
    assert config.model.name == "small"
    assert studies.read(dumps(config)) == config
    rows = studies.run(config, tmp_path / "run")
    kept = ("acc", "asr", "ra", "poison_rate", "attack_seed")
    assert [[row[name] for name in kept] for row in rows[::2]] == [
        [row[name] for name in kept] for row in before
    ]
    scores = [
        [row["auroc"] for row in read_csv(run / "samples.csv") if row["seed"] in (7, 1)]
        for run in (root / "run", tmp_path / "run")
    ]
    assert scores[0] == scores[1] and None not in scores[0][:2]
    assert "trained elsewhere" not in (tmp_path / "run" / "report.html").read_text()


def test_a_victim_in_place_of_the_model_gives_attack_and_architecture(shelf):
    text = DATA + "model: {checkpoint: 'victim:tiny/lf-10/7'}\ndefenses: []\n"
    config = studies.read(text)
    (attack,) = config.attacks
    assert (attack.name, attack.label, config.model.name) == ("lf", "lf-10-7", "small")
    changed = studies.read(text, ("attacks", "[{name: badnets, rate: 0.05, target: 1}]"))
    assert changed.attacks[0].checkpoint == "" and changed.model == config.model
    named = studies.read(DATA, ("model.checkpoint", "victim:tiny/lf-10/7"))
    assert named.model == config.model


def test_a_repair_that_needs_training_images_runs_only_on_the_same_data(shelf, tmp_path):
    assert check_study(studies.read(READ, ("defenses", "[abl]")), tmp_path / "a")[0] == 15
    other = studies.read(READ, ("dataset.train", "300"))
    with pytest.raises(ConfigError, match="spectral: scores the images .* of badnets-5-7"):
        check_study(other, tmp_path / "b")
    fewer = studies.read(READ, ("dataset.test", "50"))
    assert check_study(fewer, tmp_path / "c")[0] == 9


@pytest.mark.parametrize(
    "override, message",
    [
        (
            ("attacks", "['victim:tiny/badnets-5']"),
            "attacks.0: .*the shelf has no such victim; it has .*did you",
        ),
        (
            ("attacks", "[{name: 'victim:tiny/badnets-5/7', rate: 0.1}]"),
            "attacks.0.rate: 0.1 is not that of the model, whose rate is 0.05",
        ),
    ],
)
def test_wrong_addresses_and_settings_are_refused(shelf, override, message):
    with pytest.raises(ConfigError, match=message):
        studies.read(READ, override)


def test_a_missing_shelf_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("D3JAX_VICTIMS", str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="no shelf of victims at .*nowhere; set D3JAX_VICTIMS"):
        studies.read(READ)


def test_a_file_without_a_recipe_needs_the_name_of_the_attack(shelf, tmp_path):
    root, _ = shelf
    tensors = read_tensors(root / "shelf" / "tiny" / "clean" / "7.safetensors")
    path = tmp_path / "plain.safetensors"
    for recipe, message in (
        ({"attack": 3}, "the recipe that d3jax stored in it is damaged"),
        ({"attack": "badnets", "seed": 0, "settings": []}, "is damaged"),
    ):
        write_external_model(path, tensors, {}, recipe)
        with pytest.raises(ConfigError, match=message):
            studies.read(READ, ("attacks", f"[{{checkpoint: {path}}}]"))
    write_tensors(path, tensors)
    with pytest.raises(ConfigError, match="does not say which attack it is of; give its `name`"):
        studies.read(READ, ("attacks", f"[{{checkpoint: {path}}}]"))


def test_a_trigger_of_another_shape_is_refused(shelf, tmp_path):
    root, _ = shelf
    source = root / "shelf" / "tiny" / "lf-10" / "7.safetensors"
    tensors = read_tensors(source)
    recipe = stored_recipe(source) or {}
    model = {name: value for name, value in tensors.items() if not name.startswith("trigger.")}
    trigger = {
        name.removeprefix("trigger."): value[:1]
        for name, value in tensors.items()
        if name.startswith("trigger.")
    }
    write_external_model(tmp_path / "a.safetensors", model, trigger, recipe)
    text = DATA + "model: small\ndefenses: []\n"
    entry = f"[{{checkpoint: {tmp_path / 'a.safetensors'}}}]"
    with pytest.raises(CheckpointError, match="the trigger there is not one of lf"):
        check_study(studies.read(text, ("attacks", entry)), tmp_path / "run")
