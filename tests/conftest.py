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

from d3jax.testing import make_fixture
from d3jax.training import Backdoored

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
def fixture():
    """A backdoored small model: nearly perfect on clean and on triggered images."""
    return make_fixture(small_model)


@pytest.fixture(scope="session")
def dataset(fixture):
    return fixture.dataset


@pytest.fixture(scope="session")
def model(fixture):
    return fixture.model


@pytest.fixture(scope="session")
def attack(fixture):
    return fixture.attack


@pytest.fixture(scope="session")
def victim(fixture):
    return Backdoored(fixture.variables, fixture.trigger, {})
