"""Tests of configs: strict checks, helpful messages and exact round trips."""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from d3jax.config.loading import describe, dumps, load, loads
from d3jax.config.recipes import LoopConfig, OptimConfig, ScheduleConfig, TrainConfig
from d3jax.core.errors import ConfigError
from d3jax.defenses import ABLConfig, D3Config, TeCoConfig
from d3jax.defenses.repair.d3 import PRESETS
from d3jax.study.run import REGISTRIES

EXPERIMENTS = sorted((Path(__file__).parents[2] / "experiments").glob("*.yaml"))


def read(text, *overrides):
    return loads(text, overrides, registries=REGISTRIES, origin="study.yaml")


def test_defaults_are_the_published_recipe():
    config = read("")
    assert (config.dataset.name, config.model.name) == ("digits", "preact_resnet18")
    assert config.train == TrainConfig(
        epochs=100,
        batch_size=128,
        optimizer=OptimConfig("sgd", 0.01, 0.9, False, 5e-4, "cosine_epoch"),
    )
    assert [choice.label for choice in config.defenses] == ["finetune", "d3-code"]


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_experiment_loads_and_round_trips(path):
    config = load(path, registries=REGISTRIES)
    assert read(dumps(config)) == config
    header = [line for line in path.read_text(encoding="utf8").splitlines() if line.startswith("#")]
    text = " ".join(header).lower()
    assert "published" in text and "cost:" in text and f"--config experiments/{path.name}" in text
    for key, value in re.findall(r'--(attacks|defenses|seeds) "([^"]+)"', " ".join(header)):
        load(path, ((key, value),), registries=REGISTRIES)


def test_overrides_replace_values_of_the_file():
    text = "attacks: [badnets]\ntrain: {epochs: 3}"
    config = read(
        text,
        ("attacks.0.rate", "5e-2"),
        ("train.optimizer.lr", "1"),
        ("seeds", "[1, 2]"),
        ("defenses", "[]"),
    )
    assert (
        config.attacks[0].config.rate == 0.05
        and config.train.optimizer.lr == 1.0
        and config.train.epochs == 3
    )
    assert config.seeds == (1, 2) and config.defenses == ()


def test_a_partly_given_nested_section_keeps_its_other_defaults():
    config = read("defenses: [{name: d3, schedule: {steps: 7}}]").defenses[0].config
    assert config.schedule.steps == 7 and config.schedule.optimizer.weight_decay == 0


def test_tfds_shorthand_names_the_data_set_and_round_trips():
    config = read("dataset: tfds:cifar10")
    assert config.dataset.config.dataset == "cifar10" and read(dumps(config)) == config


@pytest.mark.parametrize(
    ("text", "overrides", "words"),
    [
        (
            "trian: {epochs: 3}",
            [],
            (
                r"^study.yaml: trian: unknown key 'trian'; known keys: dataset, "
                r".*did you mean 'train'\?$"
            ),
        ),
        ("train: {epohcs: 3}", [], r"train.epohcs: unknown key 'epohcs'.*did you mean 'epochs'\?"),
        ("train: {epochs: three}", [], r"train.epochs: want a whole number, got 'three'"),
        ("train: {epochs: 0}", [], r"train.epochs: 0 is out of range, want ≥ 1"),
        ("train: {epochs: true}", [], r"train.epochs: want a whole number, got True"),
        ("train: {optimizer: {lr: .nan}}", [], r"train.optimizer.lr: nan is out of range"),
        (
            "train: {optimizer: {name: sdg}}",
            [],
            r"'sdg' is not one of sgd, adam, amsgrad, adamw; did you mean 'sgd'\?",
        ),
        ("train: 3", [], r"train: want a mapping, got 3"),
        ("attacks: badnets", [], r"attacks: want a list, got 'badnets'"),
        ("attacks: []", [], r"attacks: is empty"),
        (
            "detections: [{name: beatrix, orders: []}]",
            [],
            r"detections.0.orders: is empty, want at least one value: powers p of the activation",
        ),
        ("detections: [{name: spectre, dimensions: []}]", [], r"detections.0.dimensions: is empty"),
        (
            "attacks: [{name: adaptive_patch, shown: []}]",
            [],
            r"attacks.0.shown: is empty, want at least one value",
        ),
        (
            "attacks: [badnet]",
            [],
            (
                r"attacks.0.name: 'badnet' is not in attacks: clean, unknown, badnets, "
                r".*did you mean 'badnets'\?"
            ),
        ),
        ("attacks: [{rate: 0.1}]", [], r"attacks.0: want a name or a mapping with `name`"),
        (
            "attacks: [{name: badnets, rate: 2}]",
            [],
            r"attacks.0.rate: 2.0 is out of range, want ≥ 0 and ≤ 1",
        ),
        (
            "attacks: [badnets, badnets]",
            [],
            r"attacks: badnets appears twice; give each its own `label:`",
        ),
        ("attacks: [{name: badnets, label: ..}]", [], r"attacks.0.label: want a word.*got '..'"),
        (
            f"attacks: [{{name: badnets, label: {'a' * 81}}}]",
            [],
            r"label: want a word of at most 80",
        ),
        ("attacks: [{name: badnets, label: 'a/b'}]", [], r"attacks.0.label: want a word"),
        ("dataset: {name: npz}", [], r"dataset.path: is missing"),
        ("dataset: CIFAR-10", [], r"'CIFAR-10' is not in datasets.*did you mean 'tfds:cifar10'\?"),
        ("dataset: tfds:CIFAR10", [], r"'CIFAR10' is not a name .*did you mean 'cifar10'\?"),
        ("dataset: digits:x", [], r"'digits:x' is not in datasets"),
        ("train: {optimizer: {lr: .inf}}", [], r"train.optimizer.lr: inf is out of range"),
        ("seeds: [4294967296]", [], r"seeds.0: 4294967296 is out of range"),
        ("defenses: [{name: d3, label: train}]", [], r"the label train is kept"),
        ("seeds: [0, 0]", [], r"seeds: \[0, 0\] names a seed twice"),
        ("seeds: [0, x]", [], r"^study.yaml: seeds.1: want a whole number, got 'x'$"),
        (
            "loop: {sinks: [wand]}",
            [],
            r"loop.sinks.0: 'wand' is not one of tensorboard, wandb; did",
        ),
        (
            "",
            [("trian.epochs", "3")],
            r"^--trian.epochs: unknown key 'trian'.*did you mean 'train'",
        ),
        (
            "published: {badnets/d3: x}",
            [],
            r"published.badnets/d3: no such row; .*did you mean 'badnets/d3-code'\?",
        ),
        ("train: {epochs: 3", [], r"^study.yaml:1: not YAML"),
        ("train: {}\ntrain: {}", [], r"the key 'train' appears twice"),
        ("- 1", [], r"want a mapping of sections, got list"),
        ("", [("train.epohcs", "3")], r"^--train.epohcs: unknown key"),
        ("", [("train.epochs", "x")], r"^--train.epochs: want a whole number"),
        (
            "attacks: [badnets]",
            [("attacks.2.rate", "0.1")],
            r"--attacks.2.rate: attacks is a list of 1, want an index from 0 to 1",
        ),
        (
            "train: {epochs: 3}",
            [("train.epochs.x", "3")],
            r"--train.epochs.x: train.epochs is 3, which has nothing inside",
        ),
    ],
)
def test_mistakes_get_one_clear_line(text, overrides, words):
    with pytest.raises(ConfigError, match=words) as caught:
        read(text, *overrides)
    assert "\n" not in str(caught.value)


def test_every_registered_config_is_frozen_and_documented():
    for registry in REGISTRIES.values():
        for name, cls in registry.items():
            assert (
                dataclasses.is_dataclass(cls) and cls.__dataclass_params__.frozen and cls.__doc__
            ), name
            assert all(field.metadata.get("doc") for field in dataclasses.fields(cls)), name


def test_a_partly_given_optimiser_keeps_the_other_values_of_its_method():
    d3, tuned, fine = read(
        "defenses: [d3, {name: d3, label: tuned, schedule: {optimizer: {lr: 0.003}}}, "
        "{name: finetune, schedule: {steps: 3}}]"
    ).defenses
    assert (
        d3.config.schedule.optimizer.weight_decay
        == tuned.config.schedule.optimizer.weight_decay
        == 0
    )
    assert (tuned.config.schedule.optimizer.lr, fine.config.schedule.optimizer.weight_decay) == (
        0.003,
        5e-4,
    )


def test_a_preset_given_with_all_values_of_another_is_refused():
    text = dumps(read("defenses: [{name: d3, preset: code}]"))
    with pytest.raises(ConfigError, match="'paper' is given with all the values of 'code'"):
        read(text, ("defenses.0.preset", "paper"))


@pytest.mark.parametrize("name", ["paper", "code"])
def test_a_preset_is_the_same_in_python_and_in_a_file(name):
    (choice,) = read(f"defenses: [{{name: d3, preset: {name}, eps: 0.2}}]").defenses
    assert choice.config == D3Config(preset=name, eps=0.2)
    assert choice.config == dataclasses.replace(PRESETS[name], eps=0.2)


def test_null_means_the_value_of_the_preset():
    text = "defenses: [{name: d3, preset: paper, lam: null, schedule: {steps: 3, optimizer: null}}]"
    (choice,) = read(text).defenses
    schedule = dataclasses.replace(PRESETS["paper"].schedule, steps=3)
    assert choice.config == dataclasses.replace(PRESETS["paper"], schedule=schedule)
    with pytest.raises(ConfigError, match="train.epochs: want a whole number, got None"):
        read("train: {epochs: null}")


def test_a_partly_given_section_does_not_change_the_defaults():
    before = dumps(D3Config())
    read("defenses: [{name: d3, schedule: {steps: 7, optimizer: {lr: 0.5}}}]")
    assert dumps(D3Config()) == dumps(read("").defenses[1].config) == before


def test_a_schedule_made_in_python_requires_an_optimiser():
    with pytest.raises(TypeError, match="optimizer"):
        ScheduleConfig(steps=3)


def test_values_given_in_python_are_checked_and_converted():
    lr = OptimConfig(lr=1).lr
    assert isinstance(lr, float) and LoopConfig(sinks=["wandb"]).sinks == ("wandb",)
    with pytest.raises(ConfigError, match="^lr: want a number, got 'x'$"):
        OptimConfig(lr="x")
    with pytest.raises(ConfigError, match="^sinks.0: 'wand' is not one of .* did you mean 'wandb'"):
        LoopConfig(sinks=("wand",))
    with pytest.raises(
        ConfigError, match="^isolate: want a TrainConfig, as in TrainConfig.setting=value., got"
    ):
        ABLConfig(isolate={"steps": 30})


def test_labels_name_a_swept_preset_once():
    entry = "sweep: {preset: [authors, backdoorbench], gamma: [0.5, 1]}"

    def labels(text):
        return [
            defense.label for defense in read(f"defenses: [{{name: abl, {text}{entry}}}]").defenses
        ]

    presets = ("authors", "backdoorbench")
    assert labels("") == [
        f"abl-{preset}-gamma{gamma}" for preset in presets for gamma in ("0.5", "1")
    ]
    assert labels("label: mine, ") == [
        f"mine-preset{preset}-gamma{gamma}" for preset in presets for gamma in ("0.5", "1")
    ]


def test_the_index_after_the_last_entry_adds_one():
    given = [("attacks.1", "blended"), ("attacks.2.name", "sig"), ("attacks.2.rate", "0.05")]
    added = loads("attacks: [badnets]", given, registries=REGISTRIES).attacks
    assert [choice.label for choice in added] == ["badnets", "blended", "sig"]
    assert added[2].config.rate == 0.05


def test_overrides_set_values_that_the_file_leaves_out():
    config = read(
        "defenses: [d3]",
        ("defenses.0.schedule.steps", "5"),
        ("dataset.size", "24"),
        ("attacks.0.rate", "0.2"),
    )
    assert (
        config.defenses[0].config.schedule.steps == 5
        and config.dataset.config.size == 24
        and config.attacks[0].config.rate == 0.2
    )


def test_published_numbers_of_defenses_that_an_override_drops_are_kept():
    text = "attacks: [badnets]\ndefenses: [finetune]\npublished: {badnets/finetune: 89.96/1.48}"
    assert read(text, ("defenses", "[]")).published == {"badnets/finetune": "89.96/1.48"}
    with pytest.raises(ConfigError, match="published.badnets/finetuen: no such row"):
        read(text.replace("published: {badnets/finetune", "published: {badnets/finetuen"))


def test_published_numbers_of_attacks_that_an_override_replaces_are_dropped():
    text = "attacks: [badnets, sig]\ndefenses: [finetune]\npublished: {sig/finetune: 90/1}"
    assert read(text, ("attacks", "[badnets]")).published == {}
    assert read(text, ("attacks", "[sig]")).published == {"sig/finetune": "90/1"}


def test_the_default_of_a_long_list_is_described_on_one_line():
    default = {key: value for key, value, _ in describe(TeCoConfig)}["corruptions"]
    assert len(default) > 100 and "\n" not in default


def test_help_needs_no_jax_and_less_than_a_second():
    def used():
        # CPU time of finished children. Wall time depends on what else runs.
        return sum(os.times()[2:4])

    before = used()
    code = (
        "import sys; from d3jax import run\ntry: run.main(['--help'])\n"
        "except SystemExit: pass\nassert 'jax' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--train.epochs" in done.stdout and used() - before < 1
