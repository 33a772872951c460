"""Tests of the registry of data sets, and of what importing it loads."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from d3jax.config.loading import loads
from d3jax.core.errors import ConfigError
from d3jax.data import (
    DATASETS,
    NpzConfig,
    TfdsConfig,
)


@dataclasses.dataclass(frozen=True)
class Nothing:
    pass


def test_yaml_configures_every_registered_data_set():
    assert set(DATASETS) == {"digits", "synthetic", "npz", "folder", "tfds", "hf"}
    rest = {"models": ["preact_resnet18"], "attacks": ["badnets"], "defenses": ["finetune", "d3"]}
    registries = {kind: dict.fromkeys(names, Nothing) for kind, names in rest.items()}
    registries["datasets"] = {name: config for name, (config, _) in DATASETS.items()}
    assert loads("dataset: tfds:cifar10", registries=registries).dataset.config == TfdsConfig(
        dataset="cifar10"
    )
    chosen = loads(
        "dataset: {name: npz, path: a.npz, mean: [0.5], class_names: [a, b]}", registries=registries
    ).dataset.config
    assert chosen == NpzConfig(path="a.npz", mean=(0.5,), class_names=("a", "b"))
    with pytest.raises(ConfigError, match=r"dataset\.path: is missing"):
        loads("dataset: folder", registries=registries)
    with pytest.raises(ConfigError, match=r"dataset\.size: 20 is not a multiple of 8"):
        loads("dataset: {name: digits, size: 20}", registries=registries)


def test_importing_the_data_sets_loads_no_heavy_package():
    code = (
        "import sys, d3jax.data; "
        "print({'sklearn', 'PIL', 'tensorflow', 'tensorflow_datasets'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.strip() == "set()"
