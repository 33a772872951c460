"""Tests of robustness: the places and values of changed triggers, and their ASR."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax import attacks
from d3jax.analysis.robustness import (
    CHANGES,
    RobustnessConfig,
    robustness,
    scaled,
    shifted,
    strengthened,
)
from d3jax.core.errors import ConfigError
from d3jax.core.images import as_float, as_levels
from d3jax.core.types import DataInfo
from d3jax.metrics.attack_success import predict

INFO = DataInfo("rgb", (12, 12, 3), tuple("abcd"), (0.5,) * 3, (0.25,) * 3)


@pytest.fixture
def levels(rng):
    """Return random images; the pixels of two of them are white where the patches begin."""
    images = rng.integers(0, 256, (4, 12, 12, 3), dtype=np.uint8)
    images[:2, 4:8, 4] = images[:2, 8:, 8] = 255
    return images


def patch(**settings):
    """Return the stamp of a 4×4 patch, which is white at the centre if no setting is given."""
    config = attacks.badnets(**{"size": 4, "position": "center"} | settings)
    attack = config.build(INFO)
    return functools.partial(attack.stamp, attack.init(jax.random.key(0)))


def put(stamp, levels):
    return np.asarray(as_levels(jax.jit(stamp)(as_float(jnp.asarray(levels)))))


def pasted(levels, rows, columns, values=255):
    images = levels.astype(int)
    images[:, rows, columns] = values
    return images


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize(
    "attack", ["badnets", "blended", "sig", "wanet", "bpp", "ftrojan", "lc", "adaptive_patch"]
)
def test_the_amount_of_no_change_leaves_every_pixel(attack, name, rng):
    info = dataclasses.replace(INFO, shape=(32, 32, 3))
    built = getattr(attacks, attack)().build(info)
    stamp = functools.partial(built.stamp, built.init(jax.random.key(0)))
    images = as_float(jnp.asarray(rng.integers(0, 256, (3, *info.shape))))
    changed = CHANGES[name].apply(stamp, jnp.asarray(CHANGES[name].none))(images)
    np.testing.assert_array_equal(changed, stamp(images))
    assert (changed != images).any()


def test_a_shifted_patch_lies_so_many_pixels_up_and_to_the_left(levels):
    corner = patch(position="bottom_right")
    wanted = pasted(levels, slice(5, 9), slice(5, 9))
    np.testing.assert_array_equal(put(shifted(corner, 3), levels), wanted)
    traced = jax.jit(lambda pixels, images: shifted(corner, pixels)(images))
    np.testing.assert_array_equal(as_levels(traced(3, as_float(jnp.asarray(levels)))), wanted)


def test_a_shifted_patch_that_leaves_the_image_comes_back_at_the_other_side(levels):
    wrapped = [10, 11, 0, 1]
    found = put(shifted(patch(position="top_left"), 2), levels)
    np.testing.assert_array_equal(found, pasted(levels, *np.ix_(wrapped, wrapped)))


def test_a_shift_moves_additive_triggers_and_keeps_those_without_a_place(levels):
    images = as_float(jnp.asarray(levels))
    sig = attacks.sig(delta=40).build(INFO)
    trigger = sig.init(jax.random.key(0))
    rolled = {"offset": jnp.roll(trigger["offset"], -2, 0)}
    moved = shifted(functools.partial(sig.stamp, trigger), 2)(images)
    np.testing.assert_array_equal(moved, sig.stamp(rolled, images))
    assert (moved != sig.stamp(trigger, images)).any()
    quantised = functools.partial(attacks.bpp().build(INFO).stamp, {})
    np.testing.assert_array_equal(shifted(quantised, 5)(images), quantised(images))


@pytest.mark.parametrize(
    ("position", "factor", "rows"),
    [
        ("center", 0.5, (5, 7)),
        ("center", 1.5, (3, 9)),
        ("center", 2.0, (2, 10)),
        ("center", 3.0, (0, 12)),
        ("center", 9.0, (0, 12)),
        ("bottom_right", 0.5, (9, 11)),
        ("bottom_right", 2.0, (6, 12)),
    ],
)
def test_a_scaled_patch_is_opaque_at_its_new_place_only(position, factor, rows, levels):
    found = put(scaled(patch(position=position), factor), levels)
    np.testing.assert_array_equal(found, pasted(levels, slice(*rows), slice(*rows)))


def test_a_pixel_of_a_scaled_patch_becomes_a_square(levels):
    given = patch(pattern="random")
    pattern = put(given, levels)[0, 4:8, 4:8]
    found = put(scaled(given, 2.0), levels)
    wanted = pasted(levels, slice(2, 10), slice(2, 10), pattern.repeat(2, 0).repeat(2, 1))
    np.testing.assert_array_equal(found, wanted)
    halved = pattern.reshape(2, 2, 2, 2, 3).mean((1, 3))
    found = put(scaled(given, 0.5), levels)
    wanted = pasted(levels, slice(5, 7), slice(5, 7), np.rint(halved))
    assert np.abs(found - wanted).max() <= 1  # halves may round either way
    outside = np.ones((12, 12), bool)
    outside[5:7, 5:7] = False
    np.testing.assert_array_equal(found[:, outside], levels[:, outside])


def test_a_scaled_patch_of_one_channel_leaves_the_others(levels):
    def stamp(images):
        return images.at[:, 4:8, 4:8, 0].set(1.0)

    wanted = levels.copy()
    wanted[:, 2:10, 2:10, 0] = 255
    np.testing.assert_array_equal(put(scaled(stamp, 2.0), levels), wanted)


def test_a_scaled_patch_covers_a_pixel_by_its_share_of_the_pixel():
    levels = np.full((1, 12, 12, 3), 55, np.uint8)
    share = np.array([0, 0, 0, 0.5, 1, 1, 1, 1, 0.5, 0, 0, 0])  # 4 pixels · 1.25 = 5
    wanted = 55 + 200 * np.outer(share, share)
    found = put(scaled(patch(), 1.25), levels)
    np.testing.assert_array_equal(found[0], np.repeat(wanted[..., None], 3, 2))


def test_the_residual_of_an_additive_trigger_is_resized_about_its_box():
    images = jnp.full((2, 12, 12, 3), 0.5).at[1].set(0.25)
    residual = np.zeros((12, 12, 3), np.float32)
    residual[5, 7] = 0.2
    found = scaled(lambda x: jnp.clip(x + residual, 0, 1), 2.0)(images)
    down, right = np.zeros(12), np.zeros(12)
    down[4:7] = right[6:9] = 0.5, 1, 0.5
    wanted = 0.2 * np.outer(down, right)[..., None]
    np.testing.assert_allclose(found, images + wanted, atol=1e-6)


def test_strength_multiplies_the_residual_and_stays_in_the_range():
    images, residual = jnp.full((1, 12, 12, 3), 0.25), 0.2
    values = [
        float(strengthened(lambda x: x + residual, factor)(images)[0, 0, 0, 0])
        for factor in (0.0, 0.5, 1.5, 9.0)
    ]
    np.testing.assert_allclose(values, [0.25, 0.35, 0.55, 1.0], rtol=1e-6)
    grey = np.full((1, 12, 12, 3), 55, np.uint8)
    np.testing.assert_array_equal(
        put(strengthened(patch(), 0.5), grey), pasted(grey, slice(4, 8), slice(4, 8), 155)
    )
    black = patch(colour=(0,))
    np.testing.assert_array_equal(
        put(strengthened(black, 1.5), grey), pasted(grey, slice(4, 8), slice(4, 8), 0)
    )


def measured(fixture, attack=None, unchanged=0.5, batch_size=500, **settings):
    """Return the ASR of the fixture's model by change and amount."""
    config = RobustnessConfig(**{"shift": (), "scale": (), "strength": ()} | settings)
    found = robustness(
        fixture.model, fixture.variables, attack or fixture.attack, fixture.trigger,
        fixture.dataset.test, config, unchanged, batch_size,
    )  # fmt: skip
    assert {one.images for one in found} == {(fixture.dataset.test.labels != 0).sum()}
    return {(one.change, one.amount): one.asr for one in found}


def asr_of_patch(fixture, rows, columns):
    """Return the ASR of a white patch at given places, on images of other classes than 0."""
    images, labels = (np.asarray(part) for part in fixture.dataset.test)
    stamped = pasted(images[labels != 0], rows, columns).astype(np.uint8)
    return share_of_target(fixture, stamped)


def share_of_target(fixture, levels):
    return np.mean(np.asarray(predict(fixture.model, fixture.variables, levels)) == 0)


def test_the_asr_is_that_of_the_patch_at_its_new_place(fixture):
    found = measured(fixture, shift=(0, 1, 4), scale=(1.0, 1 / 3), strength=(0.0, 1.0))
    others = np.asarray(fixture.dataset.test.labels) != 0
    clean = np.asarray(fixture.dataset.test.images)[others]
    assert found == {
        ("shift", 0): 0.5,
        ("shift", 1): asr_of_patch(fixture, slice(8, 11), slice(8, 11)),
        ("shift", 4): asr_of_patch(fixture, slice(5, 8), slice(5, 8)),
        ("scale", 1.0): 0.5,
        ("scale", 1 / 3): asr_of_patch(fixture, 10, 10),
        ("strength", 0.0): share_of_target(fixture, clean),
        ("strength", 1.0): 0.5,
    }
    before = fixture.before.asr
    assert found["shift", 4] < before - 0.5 and found["strength", 0.0] < before - 0.5
    again = measured(fixture, batch_size=7, shift=(1,), strength=(0.0,))
    assert again == {key: found[key] for key in again}


def test_a_tiny_change_has_the_asr_of_the_study(fixture):
    found = measured(fixture, batch_size=90, scale=(1.0 + 1e-6,), strength=(1.0 + 1e-6,))
    assert set(found.values()) == {fixture.before.asr}


def test_stamped_copies_of_the_test_images_have_no_asr_elsewhere(fixture):
    known = as_float(jnp.asarray(fixture.dataset.test.images))

    def stamp(trigger, images):
        found = (images[:, None] == known).all((2, 3, 4)).any(1)
        stamped = fixture.attack.stamp(trigger, images)
        return jnp.where(found[:, None, None, None], stamped, images)

    copies = fixture.attack._replace(stamp=stamp, copies_only=True)
    found = measured(fixture, copies, shift=(0, 1), scale=(1.0, 2.0), strength=(0.5,))
    assert math.isnan(found["shift", 1]) and math.isnan(found["scale", 2.0])
    assert found["shift", 0] == found["scale", 1.0] == 0.5
    assert found["strength", 0.5] == measured(fixture, strength=(0.5,))["strength", 0.5]


def test_a_test_set_of_the_target_only_has_no_asr(fixture):
    own = np.asarray(fixture.dataset.test.labels) == 0
    test = type(fixture.dataset.test)(*(np.asarray(part)[own] for part in fixture.dataset.test))
    found = robustness(
        fixture.model, fixture.variables, fixture.attack, fixture.trigger, test,
        RobustnessConfig(), math.nan,
    )  # fmt: skip
    assert len(found) == 17
    assert all(math.isnan(one.asr) and one.images == 0 for one in found)


def test_settings_are_checked():
    with pytest.raises(ConfigError, match="scale.0: 0.0 is out of range, want > 0"):
        RobustnessConfig(scale=(0.0,))
    with pytest.raises(ConfigError, match="shift: is empty"):
        RobustnessConfig(shift=(), scale=(), strength=())
