"""Four fake CPU devices, a model small enough to compile in a second, and data that it learns."""

import atexit
import os
import shutil
import tempfile

# LLVM at -O0: most of the time of these tests is compiling, and that takes half as long so. What runs long sets XLA_FLAGS (.ci/run).
OURS = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = f"{OURS} {os.environ.get('XLA_FLAGS', '')}"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
import pytest

# Compiled programs are shared between tests, as they are between runs: studies here compile the same few steps over and over.
# The first process makes the folder, before it starts pytest-xdist's workers, and deletes it.
if "D3JAX_TESTS_CACHE" not in os.environ:
    os.environ["D3JAX_TESTS_CACHE"] = tempfile.mkdtemp(prefix="d3jax-tests-")
    atexit.register(shutil.rmtree, os.environ["D3JAX_TESTS_CACHE"], ignore_errors=True)
jax.config.update("jax_compilation_cache_dir", os.environ["D3JAX_TESTS_CACHE"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

from d3jax.attacks import BadNetsConfig, make_badnets
from d3jax.config.recipes import OptimConfig, TrainConfig
from d3jax.data import SyntheticConfig, make_synthetic
from d3jax.training import train_backdoored

from .helpers.small import registered, small_model


@pytest.fixture(scope="session", autouse=True)
def small_is_a_model():
    """Let studies name the model `small` while tests run, not while they are collected."""
    with registered():
        yield


@pytest.fixture
def rng():
    """Return a generator of random numbers, the same for every test whatever ran before it."""
    return np.random.default_rng(4)


@pytest.fixture(scope="session")
def dataset():
    return make_synthetic(
        SyntheticConfig(size=12, channels=3, classes=4, train=400, test=130, noise=0.15)
    )


@pytest.fixture(scope="session")
def model(dataset):
    return small_model(dataset.info)


@pytest.fixture(scope="session")
def attack(dataset):
    return make_badnets(BadNetsConfig(rate=0.1), dataset.info)


@pytest.fixture(scope="session")
def victim(dataset, model, attack):
    """A backdoored small model: nearly perfect on clean and on triggered images."""
    config = TrainConfig(steps=250, batch_size=64, augment="none", optimizer=OptimConfig(lr=0.05))
    return train_backdoored(jax.random.key(0), model, dataset, attack, config)
