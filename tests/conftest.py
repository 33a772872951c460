"""Settings of all tests, and their shared fixtures: a small model, its data set and its backdoor.

Tests run on four fake CPU devices.
"""

import atexit
import os
import shutil
import tempfile
import zlib
from pathlib import Path

# LLVM compiles at -O0: these tests spend most of their time compiling, and this halves that time.
# The slow tests set XLA_FLAGS to a higher level (Makefile, .ci/run).
OURS = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = f"{OURS} {os.environ.get('XLA_FLAGS', '')}"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
import pytest

# Tests share compiled programs through a cache, as runs do: studies here compile the same few steps
# repeatedly. The first process creates the folder before it starts pytest-xdist's workers, and
# deletes it at its exit.
if "D3JAX_TESTS_CACHE" not in os.environ:
    os.environ["D3JAX_TESTS_CACHE"] = tempfile.mkdtemp(prefix="d3jax-tests-")
    atexit.register(shutil.rmtree, os.environ["D3JAX_TESTS_CACHE"], ignore_errors=True)
jax.config.update("jax_compilation_cache_dir", os.environ["D3JAX_TESTS_CACHE"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

from d3jax.testing import make_fixture
from d3jax.training import Backdoored

from .helpers.small import registered, small_model

LONG = frozenset((Path(__file__).parent / "long.txt").read_text(encoding="utf8").splitlines())
"""The tests that `make test` leaves out: ids, functions and files. See benchmarks/long_tests.py."""


def pytest_addoption(parser):
    parser.addoption("--part", default="1/1", metavar="I/N", help="run part I of N of the files")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Mark the tests of long.txt before pytest selects tests by their marks, and apply --part."""
    part, parts = map(int, config.getoption("--part").split("/"))
    others = {item for item in items if zlib.crc32(item.path.name.encode()) % parts != part - 1}
    config.hook.pytest_deselected(items=list(others))
    items[:] = [item for item in items if item not in others]
    for item in items:
        file, test = item.nodeid.partition("::")[0], item.nodeid.partition("[")[0]
        if not LONG.isdisjoint((item.nodeid, test, file)):
            item.add_marker(pytest.mark.long)


@pytest.fixture(scope="session", autouse=True)
def small_is_a_model():
    """Register the model `small` while tests run, but not while they are collected."""
    with registered():
        yield


@pytest.fixture
def rng():
    """Return a random generator with the same seed for every test."""
    return np.random.default_rng(4)


@pytest.fixture(scope="session")
def fixture():
    """Return a backdoored small model whose clean accuracy and ASR are close to 1."""
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
