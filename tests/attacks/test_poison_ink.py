"""Tests of the Poison Ink attack: its ink, its transformations, its networks and its backdoor."""

import functools
import importlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from d3jax import testing
from d3jax.attacks.ink import ink, ink_colour, sobel
from d3jax.attacks.poison_ink import (
    PoisonInkConfig,
    hiding_net,
    ink_loop,
    ink_loss,
    make_poison_ink,
)
from d3jax.config.recipes import OptimConfig, TrainConfig
from d3jax.core.errors import AttackError, ConfigError
from d3jax.core.images import as_float
from d3jax.core.random import stream
from d3jax.core.types import Batch, DataInfo, Dataset, Split
from d3jax.data import synthetic
from d3jax.data.grid_sample import random_grid, sample
from d3jax.metrics.attack_success import make_evaluate
from d3jax.models.unet import unet
from d3jax.training import Hooks, fit, victim_loop
from d3jax.training.victim import poisoned_rows, prepare

from ..helpers.small import small_model

POISON_INK = importlib.import_module("d3jax.attacks.poison_ink")  # the name is the config, too
INFO = DataInfo("rgb", (12, 12, 3), tuple("abcde"), (0.5,) * 3, (0.25,) * 3)
GREY = DataInfo("grey", (9, 14, 1), tuple("abc"), (0.5,), (0.25,))
TWO = DataInfo("radar", (12, 12, 2), tuple("abc"), (0.5,) * 2, (0.25,) * 2)
COLOUR = np.array([80, 160, 80], np.float32) / 255
KEY = jax.random.key(0)
NONE = {"rotation": False, "crop": False, "flip": False}
SHORT = PoisonInkConfig(rate=0.2, width=8, steps=150, lr=1e-2, stages=("flip", "crop"))
TRAIN = TrainConfig(steps=250, batch_size=64, augment="none", optimizer=OptimConfig(lr=0.05))


def grey_image(levels):
    """Return an image [1, H, W, 3] with the same levels in every channel."""
    return np.repeat(np.asarray(levels, np.int32)[None, ..., None], 3, 3)


def step_image(height):
    """Return a 32×32 image with a vertical step of `height` levels in its middle."""
    return grey_image(np.where(np.arange(32) < 16, 100, 100 + height) * np.ones((32, 1)))


def plain_sobel(levels):
    """Return the Sobel magnitude [B, H, W] of images, by SciPy's convolution in float64."""
    levels = np.asarray(levels, np.float64)
    grey = levels @ [0.299, 0.587, 0.114] if levels.shape[3] == 3 else levels[..., 0]
    kernel = np.array([[1, 2, 1], [0, 0, 0], [-1, -2, -1]]) / 4
    h, v = (
        np.stack([ndimage.convolve(image, one, mode="reflect") for image in grey])
        for one in (kernel, kernel.T)
    )
    return np.sqrt((h**2 + v**2) / 2)


def plain_ink(levels, colour, threshold=28):
    """Return the edges [B, H, W, 1] of images in levels, and their ink."""
    edges = (plain_sobel(levels) > threshold)[..., None]
    return edges, np.where(edges, np.asarray(colour, np.float64), 1.0)


def test_the_sobel_magnitude_has_the_check_values():
    """A step of 39 levels makes no edge, and one of 40 makes two columns of edges."""
    for height, size, count in ((39, 27.577, 0), (40, 28.284, 64)):
        image = step_image(height)
        found = np.asarray(sobel(jnp.asarray(image[..., 0], jnp.float32)))
        np.testing.assert_allclose(found.max(), size, atol=5e-4)
        edges, drawn = ink(jnp.asarray(image), 28.0, jnp.asarray(COLOUR))
        assert int(edges.sum()) == count
        wanted = np.where(np.asarray(edges), COLOUR, np.float32(1))
        np.testing.assert_array_equal(np.asarray(drawn), wanted)
    square = np.zeros((32, 32))
    square[8:18, 12:22] = 200
    assert int(ink(jnp.asarray(grey_image(square)), 28.0, jnp.asarray(COLOUR))[0].sum()) == 80


def test_an_edge_is_above_the_threshold_not_at_it():
    """At the centre of this image h = v = 112 exactly, so the magnitude is 28."""
    for corner, edge in ((112, False), (113, True)):
        image = grey_image([[0, 0, 0], [0, 0, 0], [0, 0, corner]])
        for draw in (ink, jax.jit(ink)):
            edges, _ = draw(jnp.asarray(image), 28.0, jnp.asarray(COLOUR))
            assert bool(edges[0, 1, 1, 0]) == edge


@pytest.mark.parametrize("shape", [(17, 23, 3), (8, 5, 1)], ids=["colour", "grey"])
def test_ink_matches_an_independent_computation(rng, shape):
    levels = rng.integers(0, 160, (4, *shape))
    weights = jnp.array([0.299, 0.587, 0.114]) if shape[2] == 3 else jnp.ones(1)
    found = np.asarray(sobel((levels * weights).sum(-1)))
    np.testing.assert_allclose(found, plain_sobel(levels), rtol=1e-4, atol=1e-3)
    colours = rng.random((4, 1, 1, shape[2])).astype(np.float32)
    edges, drawn = ink(jnp.asarray(levels, jnp.int32), 28.0, jnp.asarray(colours))
    wanted = plain_ink(levels, colours)
    assert 0.1 < wanted[0].mean() < 0.9
    np.testing.assert_array_equal(np.asarray(edges), wanted[0])
    np.testing.assert_allclose(np.asarray(drawn), wanted[1], atol=1e-6)


def test_grey_images_get_ink_of_the_colours_grey_value():
    """0.299 · 80 + 0.587 · 160 + 0.114 · 80 = 126.96."""
    np.testing.assert_allclose(ink_colour((80, 160, 80), GREY), [127 / 255], rtol=1e-6)
    np.testing.assert_allclose(ink_colour((80, 160, 80), INFO), COLOUR, rtol=1e-6)
    with pytest.raises(AttackError, match="poison_ink: radar has 2 channels, want 1 or 3"):
        make_poison_ink(PoisonInkConfig(), TWO)


@pytest.mark.parametrize("info", [INFO, GREY], ids=["colour", "grey"])
def test_poison_ink_keeps_the_contract(info):
    testing.check_attack(make_poison_ink(PoisonInkConfig(width=2), info), info, eager=False)


def test_wrong_settings_are_refused():
    for words, settings in {
        "stages: want at least one of rotation, crop, flip, got none": {"stages": ()},
        "stages: want each stage once, got crop, crop": {"stages": ("crop", "crop")},
        "'blur' is not one of rotation, crop, flip": {"stages": ("blur",)},
        "colour: want 3 values, got 1": {"colour": (80,)},
        "threshold: 0.0 is out of range": {"threshold": 0},
        "crop: 1.1 is out of range": {"crop": 1.1},
    }.items():
        with pytest.raises(ConfigError, match=words):
            PoisonInkConfig(**settings)


def test_the_stamped_image_is_the_output_for_image_and_ink_in_levels(rng):
    """The network gets [x; w] and returns the first three of its channels."""
    attack, (_, hide) = make_poison_ink(PoisonInkConfig(width=2), INFO), hiding_net(INFO, 2)
    levels = rng.integers(0, 256, (5, *INFO.shape)).astype(np.uint8)
    images, params = as_float(jnp.asarray(levels)), attack.init(KEY)["hider"]
    _, drawn = plain_ink(levels, COLOUR)
    both = jnp.concatenate([images, jnp.asarray(drawn, jnp.float32)], -1)
    wide = DataInfo("wide", (12, 12, 6), INFO.classes, (0.5,) * 6, (0.25,) * 6)
    made = np.asarray(unet(wide, 2)[1](params, both), np.float64)[..., :3]
    np.testing.assert_allclose(hide(params, images, both[..., 3:]), made, atol=1e-5)
    stamped = np.asarray(attack.stamp({"hider": params}, images), np.float64) * 255
    np.testing.assert_allclose(stamped, np.round(stamped), atol=1e-4)
    assert np.abs(stamped - 255 * np.clip(made, 0, 1)).max() < 0.501
    assert (made < 0).any() and np.ptp(stamped) > 20


def test_poison_relabels_the_replaced_images_only(rng):
    attack = make_poison_ink(PoisonInkConfig(width=2, target=3), INFO)
    images, own = jnp.asarray(rng.random((4, *INFO.shape)), jnp.float32), jnp.arange(4) % 2 == 0
    batch = attack.poison(attack.init(KEY), KEY, Batch(images, jnp.array([0, 1, 2, 1]), own))
    assert batch.labels.tolist() == [3, 1, 3, 1] and jnp.array_equal(batch.images, images)


def grids(name, count, shape=(12, 16), degrees=15.0, crop=0.75):
    """Return random grids [count, H, W, 2] of which one transformation is allowed."""
    keys = jax.random.split(KEY, count)
    return jax.vmap(lambda key: random_grid(key, shape, NONE | {name: True}, degrees, crop))(keys)


def test_without_transformations_images_stay_as_they_are(rng):
    images = jnp.asarray(rng.random((2, 9, 14, 3)), jnp.float32)
    still = sample(images, random_grid(KEY, images.shape[1:], NONE, 15.0, 0.875))
    np.testing.assert_allclose(still, images, atol=1e-5)


def test_flips_mirror_half_of_the_batches(rng):
    images = jnp.asarray(rng.random((2, 12, 16, 3)), jnp.float32)
    made = np.stack([np.asarray(sample(images, grid)) for grid in grids("flip", 40)])
    mirrored = [np.allclose(one, np.asarray(images)[:, :, ::-1], atol=1e-5) for one in made]
    still = [np.allclose(one, images, atol=1e-5) for one in made]
    assert all(a != b for a, b in zip(mirrored, still, strict=True))
    assert 10 <= sum(mirrored) <= 30


def test_crops_enlarge_a_random_window_of_half_of_the_batches(rng):
    """Windows are 9×12 of 12×16. SciPy enlarges them, with the border of the window repeated."""
    image = rng.random((12, 16))
    rows, columns = ((np.arange(n) + 0.5) * 0.75 - 0.5 for n in image.shape)
    places = np.meshgrid(np.clip(rows, 0, 8), np.clip(columns, 0, 11), indexing="ij")
    wanted = {(-1, -1): image}
    for top, left in itertools.product(range(4), range(5)):
        window = image[top : top + 9, left : left + 12]
        wanted[top, left] = ndimage.map_coordinates(window, places, order=1, mode="nearest")
    images, seen = jnp.asarray(image[None, ..., None], jnp.float32), []
    for grid in grids("crop", 60):
        found = np.asarray(sample(images, grid))[0, ..., 0]
        fits = [at for at, one in wanted.items() if np.allclose(found, one, atol=1e-4)]
        assert len(fits) == 1
        seen += fits
    assert 15 <= seen.count((-1, -1)) <= 45
    assert {top for top, _ in seen} == {-1, 0, 1, 2, 3}
    assert {left for _, left in seen} == {-1, 0, 1, 2, 3, 4}


def test_rotations_turn_about_the_centre_within_the_degrees():
    """In pixels, every point keeps its distance from the centre, and turns by a common angle."""
    half = np.array([15, 11]) / 2
    still = np.asarray(random_grid(KEY, (12, 16), NONE, 15.0, 0.75), np.float64) * half
    found = np.asarray(grids("rotation", 50), np.float64) * half
    before, after = (part[..., 0] + 1j * part[..., 1] for part in (still, found))
    turns = after / before
    np.testing.assert_allclose(np.abs(turns), 1, atol=1e-5)
    angles = np.degrees(np.angle(turns))
    assert np.ptp(angles, axis=(1, 2)).max() < 1e-3
    assert 10 < angles.max() <= 15 and -15 <= angles.min() < -10


def test_the_loss_matches_an_independent_computation(rng):
    config = PoisonInkConfig(ink=11.0, clean=90.0)
    images, hidden, found, blank = rng.normal(0.5, 0.3, (4, 5, 6, 7, 3)).astype(np.float32)
    edges, wanted = plain_ink(rng.integers(0, 160, (5, 6, 7, 3)), COLOUR)
    value, reported = ink_loss(
        config, *(jnp.asarray(x) for x in (images, hidden, edges, wanted, found, blank))
    )
    total, count = 0.0, images.size
    for at in np.ndindex(images.shape):
        total += (float(hidden[at]) - float(images[at])) ** 2
        if edges[at[:3]][0]:
            total += 11 * (float(found[at]) - wanted[at]) ** 2
        else:
            total += (float(found[at]) - 1) ** 2
        total += 90 * (float(blank[at]) - 1) ** 2
    np.testing.assert_allclose(float(value), 1e4 * total / count, rtol=1e-5)
    residual = ((hidden.astype(np.float64) - images) ** 2).mean()
    np.testing.assert_allclose(float(reported["psnr"]), -10 * np.log10(residual), rtol=1e-5)


def watched(monkeypatch):
    """Record what each step of the loop passes to `random_grid` and `ink_loss`, and the grid."""
    seen = []

    def grid(key, shape, allowed, degrees, crop):
        made = random_grid(key, shape, allowed, degrees, crop)
        keep = functools.partial(jax.debug.callback, lambda **now: seen.append(now), ordered=True)
        keep(**allowed, grid=made)
        return made

    def loss(config, *parts):
        jax.debug.callback(lambda *now: seen[-1].update(parts=now), *parts, ordered=True)
        return ink_loss(config, *parts)

    monkeypatch.setattr(POISON_INK, "random_grid", grid)
    monkeypatch.setattr(POISON_INK, "ink_loss", loss)
    return seen


def noise_set(rng):
    """Return a data set of 16 images of noise, 6×8 pixels, in which the U-Net halves once."""
    info = DataInfo("noise", (6, 8, 3), tuple("abc"), (0.5,) * 3, (0.25,) * 3)
    images = rng.integers(0, 160, (16, *info.shape)).astype(np.uint8)
    split = Split(images, np.arange(16, dtype=np.int32) % 3)
    return Dataset(split, split, info)


def largest_move(before, after):
    """Return the largest change of a parameter between two train states."""
    pair = before.variables.params, after.variables.params
    moves = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), *pair)
    return max(jax.tree.leaves(moves))


def test_each_step_hides_ink_and_recovers_it_from_the_transformed_image(rng, monkeypatch):
    """Stages add their transformations, and restart the optimiser but not the networks.

    Adam's first update is the learning rate, and the later ones are at most about as large. The
    rate falls after two and after four of five steps.
    """
    seen, noise = watched(monkeypatch), noise_set(rng)
    config = PoisonInkConfig(width=1, steps=5, stages=("crop", "rotation"), batch_size=8, lr=1e-3)
    (init, hide), (_, recover) = hiding_net(noise.info, 1), unet(noise.info, 1)
    loop = ink_loop(KEY, init(KEY), hide, noise, config)
    assert loop.steps == 10
    states, step = [loop.state], jax.jit(loop.step)
    for _ in range(10):
        states.append(step(states[-1], loop.data)[0])
    jax.effects_barrier()
    moments = [[np.asarray(part) for part in jax.tree.leaves(one.opt_state)] for one in states]
    counts = [{int(part) for part in one if part.ndim == 0} for one in moments]
    assert counts == 2 * [{0}, {1}, {2}, {3}, {4}] + [{0}]
    assert not any(part.any() for part in moments[5])
    largest = [1e3 * largest_move(*pair) for pair in itertools.pairwise(states)]
    for first, *others in (largest[:5], largest[5:]):
        np.testing.assert_allclose(first, 1, rtol=0.01)
        assert all(
            0.2 * rate < one < 1.6 * rate
            for one, rate in zip(others, (1, 0.1, 0.1, 0.01), strict=True)
        )
    allowed = [[bool(now[name]) for name in NONE] for now in seen]
    assert allowed == [[False, True, False]] * 5 + [[True, True, False]] * 5
    levels = set()
    for state, now in zip(states, seen, strict=False):
        params, parts = state.variables.params, [np.asarray(part) for part in now["parts"]]
        images, hidden, edges, wanted, found, blank = parts
        # The colour of each image is that of its first edge.
        colour = np.stack([w[e[..., 0]][0] for w, e in zip(wanted, edges, strict=True)])
        levels |= set(np.round(255 * colour).ravel().tolist())
        colour = colour[:, None, None]
        assert len(np.unique(colour, axis=0)) > 4
        drawn = plain_ink(np.round(255 * images), colour)[1].astype(np.float32)
        np.testing.assert_allclose(hidden, hide(params["hider"], images, drawn), atol=1e-4)
        plain = np.asarray(sample(images, now["grid"]))
        ours = plain_ink(255 * plain, colour)
        assert (ours[0] != edges).mean() < 0.002  # rounding, where a magnitude is nearly 28
        np.testing.assert_allclose(np.where(edges, colour, 1), wanted, atol=1e-6)
        np.testing.assert_allclose(recover(params["recovery"], plain), blank, atol=1e-4)
        moved = sample(hidden, now["grid"])
        np.testing.assert_allclose(recover(params["recovery"], moved), found, atol=1e-4)
    assert levels == {40, 80, 120, 160, 200}


@pytest.fixture(scope="module")
def smooth():
    """Return a small data set with little noise. Its images have few edges."""
    return synthetic(size=12, channels=3, classes=4, train=400, test=130, noise=0.02).build()


@pytest.mark.slow
def test_poison_ink_plants_a_backdoor_that_a_model_learns(smooth):
    """The networks get 300 steps of 938,000. The residual has 15 dB then, so it is visible."""
    attack, model = make_poison_ink(SHORT, smooth.info), small_model(smooth.info)
    prepared, lines = prepare(KEY, model, None, smooth, attack, Hooks(log_every=25))
    assert lines[-1]["loss"] < 0.02 * lines[0]["loss"]
    assert lines[-1]["ink"] < 0.7 * lines[0]["ink"] and lines[-1]["invented"] < 0.01
    rows = np.flatnonzero(poisoned_rows(KEY, attack, smooth.train.labels))
    before, replaced = smooth.train.images[rows], jnp.asarray(prepared.images)
    stamped = attack.stamp(prepared.trigger, as_float(jnp.asarray(before)))
    assert float(jnp.abs(stamped - as_float(replaced)).max()) < 1.1 / 255
    start = attack.stamp(attack.init(stream(KEY, "trigger")), as_float(jnp.asarray(before)))
    residuals = [np.asarray(255 * made - before) for made in (start, stamped)]
    untrained, trained = (np.sqrt((part**2).mean()) for part in residuals)
    assert trained < 55 and trained < 0.5 * untrained
    loop = victim_loop(KEY, model, smooth, attack, TRAIN, prepared)
    assert jnp.array_equal(loop.data.split.images[rows], replaced)
    state, _ = fit(loop)
    counts = make_evaluate(model, attack, 4)(state.variables, prepared.trigger, smooth.test)
    assert counts.acc > 0.9 and counts.asr > 0.9
