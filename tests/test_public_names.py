"""Tests of the public names, the cost of importing them, and the errors of old calls."""

import subprocess
import sys

import pytest

import d3jax
from d3jax import attacks, data, defenses, models
from d3jax.core.errors import ConfigError


def test_every_public_name_exists():
    missing = [name for name in d3jax.__all__ if not hasattr(d3jax, name)]
    assert len(d3jax.__all__) > 150 and not missing
    assert set(dir(d3jax)) >= set(d3jax.__all__)


def test_importing_the_package_is_fast_and_loads_no_jax():
    code = (
        "import sys, time; start = time.perf_counter(); import d3jax; "
        "print(time.perf_counter() - start, "
        "[m for m in ('jax', 'numpy', 'flax') if m in sys.modules])"
    )
    tries = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        for _ in range(3)
    ]
    seconds, loaded = zip(*(done.stdout.split(" ", 1) for done in tries), strict=True)
    assert min(map(float, seconds)) < 0.1 and {one.strip() for one in loaded} == {"[]"}


def test_settings_build_what_they_describe():
    digits = data.digits(size=8).build()
    attack = attacks.badnets(rate=0.1, target=0).build(digits.info)
    assert isinstance(attack, d3jax.Attack)
    assert isinstance(defenses.d3(preset="paper").build(digits.info), d3jax.Repair)
    assert isinstance(models.wide_resnet(depth=10).build(digits.info), d3jax.Model)


@pytest.mark.parametrize(
    "registry", [attacks.ATTACKS, defenses.DEFENSES, models.MODELS, data.DATASETS]
)
def test_every_registry_entry_has_a_build_method_and_a_make_function(registry):
    for config, construct in registry.values():
        assert callable(config.build) and construct.__name__.startswith("make_")


@pytest.mark.parametrize(
    "old", ["badnets", "d3", "preact_resnet18", "digits", "abl", "clean", "vit"]
)
def test_old_calls_are_refused_and_name_the_new_call(old):
    config = getattr(d3jax, old)
    made = config(path="x") if old == "npz" else config()
    with pytest.raises(ConfigError, match="takes its settings by name: name.config, info. is now"):
        config(made, None) if old != "digits" else config(made)


def test_a_misspelt_setting_is_refused_with_a_suggestion():
    with pytest.raises(ConfigError, match="BadNetsConfig: unknown setting 'rat'.*mean 'rate'"):
        attacks.badnets(rat=0.1)
