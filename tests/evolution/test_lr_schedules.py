"""Tests of every learning-rate schedule against its closed form."""

import numpy as np
import pytest

from d3jax.core.errors import ConfigError
from d3jax.evolution.lr_schedules import LRScheduleConfig, rates

N = 40
T = np.arange(N)


def of(name, **settings):
    """Return the rates [N] of a schedule with `lr` 0.1."""
    return rates(LRScheduleConfig(name=name, lr=0.1, **settings), N)


def test_constant_and_cosine_match_their_closed_forms():
    np.testing.assert_allclose(of("constant"), np.full(N, 0.1), rtol=1e-6)
    np.testing.assert_allclose(of("cosine"), 0.05 * (1 + np.cos(np.pi * T / N)), rtol=1e-4)


def test_onecycle_matches_the_closed_form_of_pytorch():
    """PyTorch's OneCycleLR rises from lr/25 to lr at 30 %, then falls to lr/25e4, by cosines."""
    share = T / (0.3 * N)
    up = 0.1 / 25 + (0.1 - 0.1 / 25) * (1 - np.cos(np.pi * share)) / 2
    down = 0.1 / 25e4 + (0.1 - 0.1 / 25e4) * (1 + np.cos(np.pi * (T - 12) / 28)) / 2
    np.testing.assert_allclose(of("onecycle"), np.where(T < 12, up, down), rtol=1e-4)


def test_slanted_triangle_matches_its_closed_form():
    p = np.where(T < 4, T / 4, 1 - (T - 4) / (4 * (1 / 0.1 - 1)))
    np.testing.assert_allclose(of("slanted"), 0.1 * (1 + p * 31) / 32, rtol=1e-6)


def test_cyclical_triangles_match_their_closed_form():
    half = N / 8
    x = np.abs(T / half - 2 * np.floor(1 + T / (2 * half)) + 1)
    np.testing.assert_allclose(
        of("cyclical", low=0.01), 0.01 + 0.09 * np.maximum(0, 1 - x), rtol=1e-5
    )


@pytest.mark.parametrize(("growth", "lengths"), [(1, [10, 10, 10, 10]), (3, [1, 3, 9, 27])])
def test_warm_restarts_are_cosines_of_growing_length(growth, lengths):
    expected = np.concatenate(
        [0.05 * (1 + np.cos(np.pi * np.arange(length) / length)) for length in lengths]
    )
    np.testing.assert_allclose(of("sgdr", cycles=4, growth=growth), expected, rtol=1e-4, atol=1e-9)


def test_super_fine_tuning_has_large_triangles_and_then_small_ones():
    found = of("super", low=0.001, lr2=0.01, ramp=4)
    triangle = np.array([0, 0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25])
    np.testing.assert_allclose(found[:16], np.tile(0.001 + 0.099 * triangle, 2), rtol=1e-5)
    np.testing.assert_allclose(found[16:], np.tile(0.001 + 0.009 * triangle, 3), rtol=1e-5)


@pytest.mark.parametrize(
    "name", ["constant", "cosine", "onecycle", "slanted", "cyclical", "sgdr", "super"]
)
def test_rates_are_scaled_to_a_given_mean(name):
    found = of(name, mean=0.02)
    assert (
        found.mean() == pytest.approx(0.02, rel=1e-5)
        and found.dtype == np.float32
        and (found >= 0).all()
    )
    np.testing.assert_allclose(found / found.max(), of(name) / of(name).max(), rtol=1e-4, atol=1e-7)


def test_more_cycles_than_steps_are_refused():
    with pytest.raises(
        ConfigError,
        match="cycles: 8, each 2 times as long as the one before, do not fit an update of 56 steps",
    ):
        rates(LRScheduleConfig(name="sgdr", cycles=8, growth=2), 56)
    with pytest.raises(ConfigError, match="cycles: 8 do not fit an update of 5 steps"):
        rates(LRScheduleConfig(name="sgdr", cycles=8), 5)
    with pytest.raises(ConfigError, match="cycles: 3 do not fit an update of 5 steps"):
        rates(LRScheduleConfig(name="cyclical", cycles=3), 5)


@pytest.mark.parametrize(
    ("first", "which"),
    [(0.4, "the 8 steps of super's first"), (0.6, "the 8 steps of super's second")],
)
def test_a_triangle_that_cannot_reach_its_top_is_refused(first, which):
    with pytest.raises(ConfigError, match=f"ramp: 10 steps up do not fit {which} phase"):
        rates(LRScheduleConfig(name="super", first=first), 20)
    assert rates(LRScheduleConfig(name="super", first=0.0), 20).max() == pytest.approx(
        1e-3
    )  # without a first phase


@pytest.mark.parametrize(
    ("settings", "top"),
    [({"name": "cyclical", "lr": 1e-4}, "lr"), ({"name": "super", "lr2": 1e-4}, "lr2")],
)
def test_a_lowest_rate_above_the_highest_is_refused(settings, top):
    with pytest.raises(ConfigError, match=f"low: 0.0003 is above {top}: 0.0001"):
        LRScheduleConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cycles": 2}, "cycles: 2 does not apply to name: constant, which has no such setting"),
        ({"name": "sgdr", "low": 1e-5}, "low: 1e-05 does not apply to name: sgdr"),
        ({"name": "cyclical", "growth": 2}, "growth: 2 does not apply to name: cyclical"),
        ({"name": "super", "ratio": 4.0}, "ratio: 4 does not apply to name: super"),
    ],
)
def test_settings_of_other_strategies_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        LRScheduleConfig(**settings)
