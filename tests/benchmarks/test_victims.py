"""Tests of the program that trains the victims of the shelf."""

import json
from pathlib import Path

import numpy as np
import pytest

from d3jax.config.loading import recipe_of, to_mapping
from d3jax.config.stored_model import stored_recipe
from d3jax.core.errors import ConfigError

from ..helpers.small import exportable

STUDY = """
dataset: {name: npz, path: data.npz}
model: small
attacks: [clean, {name: lf, label: lf-20, rate: 0.2}]
train: {steps: 2, batch_size: 16}
defenses: []
"""


@pytest.fixture
def victims():
    import victims

    return victims


@pytest.fixture
def data(victims, tmp_path, monkeypatch):
    """Return the path of a small data set; the experiments and the shelf are in `tmp_path`."""
    monkeypatch.setattr(victims, "EXPERIMENTS", tmp_path)
    monkeypatch.setenv("D3JAX_VICTIMS", str(tmp_path / "shelf"))
    (tmp_path / "victims_tiny_cifar10.yaml").write_text(STUDY)
    draws = np.random.default_rng(0)
    arrays = {
        f"{part}_{what}": draws.integers(0, high, (count, *shape), dtype=np.uint8)
        for part, count in (("train", 40), ("test", 20))
        for what, high, shape in (("images", 256, (8, 8, 3)), ("labels", 2, ()))
    }
    np.savez(tmp_path / "data.npz", **arrays)
    with exportable():
        yield str(tmp_path / "data.npz")


def test_a_victim_takes_its_clean_model_from_the_shelf(victims, data, tmp_path, capsys):
    with pytest.raises(ConfigError, match="tiny/lf-20/3: needs the clean victim"):
        victims.train("tiny/lf-20/3", data, tmp_path / "first")
    victims.train("tiny/clean/3", data, tmp_path / "first")
    victims.train("tiny/lf-20/3", data, tmp_path / "second")  # its cache has no clean model
    made = json.loads((tmp_path / "shelf" / "tiny" / "lf-20" / "3.json").read_text())
    assert made["address"] == "tiny/lf-20/3" and 0 <= made["asr"] <= 1
    trained = [path.name for path in (tmp_path / "second" / "cache").glob("*-victim-*")]
    assert sorted(name.split("-")[1] for name in trained) == ["clean", "lf"]
    capsys.readouterr()
    victims.train("tiny/lf-20/3", data, tmp_path / "third")
    assert capsys.readouterr().out == "tiny/lf-20/3: on the shelf\n"
    assert "| tiny/clean/3 | small " in victims.table(victims.rows_of_shelf())


@pytest.mark.parametrize(
    "address, message",
    [
        ("tiny/lf-20", "want NET/ATTACK/SEED"),
        ("other/lf-20/0", "want NET/ATTACK/SEED"),
        ("tiny/sig-20/0", "has no attack 'sig-20'; it has clean, lf-20"),
    ],
)
def test_unknown_addresses_are_refused(victims, data, address, message):
    with pytest.raises(ConfigError, match=message):
        victims.study_of(address, data)


def test_a_weak_backdoor_is_marked(victims):
    row = {"address": "a/b/0", "model": "m", "net": "w=1", "acc": 0.8, "ra": 0.1, "seconds": 60}
    row |= {"epochs": 30, "precision": "float32", "commit": "c"}
    lines = victims.table([row | {"asr": 0.9}, row | {"asr": 0.89}, row | {"asr": None}]).split(
        "\n"
    )
    assert [line.split(" | ")[5] for line in lines[2:]] == [
        "works",
        "**weak**: rank nothing",
        "none",
    ]


SHELF = Path(__file__).parents[2] / "benchmarks" / "victims"
FILES = sorted(SHELF.rglob("*.safetensors"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(SHELF).as_posix())
def test_every_victim_of_the_shelf_has_its_recipe_and_rates(victims, path):
    address = path.relative_to(SHELF).with_suffix("").as_posix()
    row = json.loads(path.with_suffix(".json").read_text())
    recipe = stored_recipe(path)
    study = victims.study_of(address, "cifar10.npz")
    (attack,) = study.attacks
    assert row["address"] == address and recipe is not None
    assert (recipe["attack"], recipe["seed"]) == (attack.name, study.seeds[0])
    assert recipe["settings"] == recipe_of(attack.config)
    assert recipe["train"] == recipe_of(study.train) and recipe["precision"] == "float32"
    assert recipe["net"] == to_mapping(study.model.config)


def test_the_shelf_is_small_enough_to_be_cloned():
    assert sum(path.stat().st_size for path in FILES) < 40e6
