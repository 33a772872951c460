"""Tests of SimCLR: views against PIL and closed forms, the loss against NumPy, and the training."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from d3jax import testing
from d3jax.config.recipes import OptimConfig
from d3jax.core.errors import ConfigError
from d3jax.core.types import DataInfo, Model, Split
from d3jax.data.contrastive_views import (
    LUMA,
    crop_boxes,
    make_views,
    random_blur,
    random_grey,
    resized,
)
from d3jax.data.contrastive_views import color_jitter as jitter
from d3jax.training import fit
from d3jax.training.loop import Hooks
from d3jax.training.simclr import (
    PROJECTION,
    PROJECTOR,
    SimCLRConfig,
    check_simclr,
    nt_xent,
    simclr_loop,
    with_projector,
    without_projector,
)

KEY = jax.random.key(5)
SHORT = SimCLRConfig(
    steps=40, batch_size=50, dimension=16, optimizer=OptimConfig(lr=0.1, schedule="constant")
)


def info_of(height=8, width=8, channels=3, **options):
    statistics = (0.5,) * channels
    return DataInfo("x", (height, width, channels), ("a", "b"), statistics, statistics, **options)


def test_boxes_are_inside_the_image_and_have_the_published_shares_and_ratios():
    top, left, height, width = map(np.asarray, crop_boxes(KEY, 4000, 32, 32))
    for first, side in ((top, height), (left, width)):
        assert (first == first.round()).all() and (side == side.round()).all()
        assert first.min() == 0 and side.min() >= 1 and (first + side).max() == 32
    share, ratio = height * width / 32**2, width / height
    assert 0.17 < share.min() < 0.22 and 0.98 < share.max() <= 1  # sides are rounded
    assert 0.7 < ratio.min() < 0.77 and 1.3 < ratio.max() < 1.43
    # Large areas often do not fit, so the mean is below that of U(0.2, 1).
    assert 0.53 < share.mean() < 0.6 and abs(np.log(ratio).mean()) < 0.01


@pytest.mark.parametrize(("height", "width"), [(9, 5), (5, 40), (1, 1)])
def test_boxes_fit_images_of_any_shape(height, width):
    top, left, high, wide = map(np.asarray, crop_boxes(KEY, 200, height, width))
    assert (top >= 0).all() and (left >= 0).all() and (high >= 1).all() and (wide >= 1).all()
    assert (top + high <= height).all() and (left + wide <= width).all()


def test_resized_boxes_match_pil(rng):
    images = rng.random((6, 11, 8, 2)).astype(np.float32)
    boxes = np.array([[0, 0, 11, 8], [2, 3, 5, 4], [10, 7, 1, 1], [0, 2, 3, 6], [4, 0, 7, 2]])
    boxes = np.concatenate([boxes, [[1, 1, 9, 6]]]).astype(np.float32)
    found = np.asarray(jax.jit(resized)(images, *boxes.T))
    for image, (top, left, height, width), out in zip(images, boxes, found, strict=True):
        for channel in range(2):
            cut = Image.fromarray(image[..., channel]).crop(
                (int(left), int(top), int(left + width), int(top + height))
            )
            wanted = np.asarray(cut.resize((8, 11), Image.Resampling.BICUBIC))
            np.testing.assert_allclose(out[..., channel], wanted.clip(0, 1), atol=2e-6)
    np.testing.assert_allclose(found[0], images[0], atol=1e-6)  # the whole image stays


def test_jitter_of_a_uniform_grey_image_is_a_change_of_brightness():
    """Contrast, saturation and hue leave such an image as it is."""
    images = jnp.full((2000, 2, 2, 3), 0.5)
    found = np.asarray(jax.jit(jitter)(KEY, images))
    assert np.ptp(found, axis=(1, 2, 3)).max() < 1e-6
    factors = found[:, 0, 0, 0] / 0.5
    changed = np.abs(factors - 1) > 1e-6
    assert 0.77 < changed.mean() < 0.83
    assert 0.6 <= factors.min() < 0.61 and 1.39 < factors.max() <= 1.4001
    assert abs(factors[changed].mean() - 1) < 0.02


def test_jitter_of_a_grey_image_is_affine_with_brightness_times_contrast():
    """The mean only changes by the brightness, whatever the order."""
    image = np.array([[0.48, 0.5], [0.5, 0.52]], np.float32)
    images = np.broadcast_to(image[None, ..., None], (1000, 2, 2, 1))
    found = np.asarray(jax.jit(jitter)(KEY, images))[..., 0]
    brightness = found.mean((1, 2)) / 0.5
    contrast = (found[:, 1, 1] - found[:, 0, 0]) / 0.04 / brightness
    assert 0.6 <= brightness.min() < 0.62 and 1.38 < brightness.max() <= 1.4001
    assert 0.59 < contrast.min() < 0.62 and 1.38 < contrast.max() <= 1.41
    assert abs(np.corrcoef(brightness, contrast)[0, 1]) < 0.1


def test_jitter_of_a_uniform_colour_changes_saturation_and_hue():
    colour = np.array([0.6, 0.5, 0.4], np.float32)
    images = np.broadcast_to(colour, (1000, 2, 2, 3))
    found = np.asarray(jax.jit(jitter)(KEY, images), np.float64)[:, 0, 0]
    low, high = found.min(1), found.max(1)
    changed = np.abs(found - colour).max(1) > 1e-6
    assert 0.75 < changed.mean() < 0.85
    # The hue of this colour is 1/12 turn from red, between red and green.
    red, green, blue = found.T
    angle = np.arctan2(np.sqrt(3) * (green - blue), 2 * red - green - blue)
    turns = angle / (2 * np.pi) - 1 / 12
    assert np.abs(turns).max() < 0.11 and turns.min() < -0.08 and turns.max() > 0.08
    spread = (high - low) / (found @ np.array(LUMA)) / (0.2 / (colour @ np.array(LUMA)))
    assert spread.min() < 0.7 and spread.max() > 1.3


def test_a_fifth_of_the_colour_images_becomes_grey(rng):
    images = rng.random((1000, 2, 3, 3)).astype(np.float32)
    found = np.asarray(random_grey(KEY, images))
    grey = np.ptp(found, axis=3).max((1, 2)) < 1e-6
    assert 0.16 < grey.mean() < 0.24
    wanted = images[grey] @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(found[grey][..., 0], wanted, atol=1e-6)
    np.testing.assert_array_equal(found[~grey], images[~grey])


def test_the_share_of_views_is_blurred_by_at_most_two_pixels_of_32():
    images = jnp.zeros((300, 16, 16, 1)).at[:, 8, 8].set(1.0)
    found = np.asarray(jax.jit(random_blur, static_argnums=2)(KEY, images, 0.5))
    same = (found == images).all((1, 2, 3))
    assert 0.4 < same.mean() < 0.6
    np.testing.assert_allclose(found.sum((1, 2, 3)), 1, atol=0.01)
    row = found[~same, :, :, 0].sum(1)
    deviation = np.sqrt((row * (np.arange(16) - 8) ** 2).sum(1))
    assert deviation.min() < 0.2 and 0.85 < deviation.max() < 1.01  # σ is 0.05 to 1 pixel here


@pytest.mark.parametrize("shape", [(9, 13, 3), (7, 7, 1), (6, 5, 2)])
def test_views_keep_shape_and_range_and_differ(shape, rng):
    images = rng.random((24, *shape)).astype(np.float32)
    view = jax.jit(make_views(info_of(*shape, flip=True)))
    first, second = (np.asarray(view(key, images)) for key in jax.random.split(KEY))
    for found in (first, second):
        assert found.shape == images.shape and found.dtype == np.float32
        assert found.min() >= 0 and found.max() <= 1 + 1e-6
        assert (np.abs(found - images).mean((1, 2, 3)) > 1e-3).all()
    assert (np.abs(first - second).mean((1, 2, 3)) > 1e-3).all()
    np.testing.assert_array_equal(view(jax.random.split(KEY)[0], images), first)


def test_views_are_mirrored_only_where_the_data_set_allows_it():
    ramp = np.broadcast_to(np.linspace(0, 1, 8, dtype=np.float32)[:, None], (200, 8, 8, 1))
    for flip in (False, True):
        found = np.asarray(jax.jit(make_views(info_of(channels=1, flip=flip)))(KEY, ramp))
        mirrored = found[:, :, 0].mean((1, 2)) > found[:, :, -1].mean((1, 2)) + 1e-3
        assert (0.4 < mirrored.mean() < 0.6) if flip else not mirrored.any()


def loss_in_numpy(first, second, temperature):
    """Return NT-Xent by loops over views, as the paper writes it."""
    z = np.concatenate([first, second]).astype(np.float64)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    count, total = len(z), 0.0
    for i in range(count):
        partner = (i + count // 2) % count
        terms = [np.exp(z[i] @ z[k] / temperature) for k in range(count) if k != i]
        total -= np.log(np.exp(z[i] @ z[partner] / temperature) / np.sum(terms))
    return total / count


LOSS = jax.jit(nt_xent)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
def test_nt_xent_matches_numpy_and_ignores_lengths(temperature, rng):
    first, second = rng.normal(size=(2, 7, 5)).astype(np.float32)
    wanted = loss_in_numpy(first, second, temperature)
    value, _ = LOSS(first, second, temperature)
    assert float(value) == pytest.approx(wanted, rel=1e-5)
    longer, _ = LOSS(3 * first, second, temperature)
    assert float(longer) == pytest.approx(wanted, rel=1e-5)


def test_nt_xent_of_orthogonal_pairs_has_its_closed_form():
    z = jnp.eye(4)
    value, matched = LOSS(z, z, 0.5)
    assert float(value) == pytest.approx(np.log(1 + 6 * np.exp(-2)), rel=1e-6) and matched == 1
    value, matched = LOSS(z, jnp.roll(z, 1, 0), 0.5)  # each view has another image's vector
    assert float(value) == pytest.approx(np.log(6 + np.exp(2)), rel=1e-6) and matched == 0
    gradient = jax.jit(jax.grad(lambda x: nt_xent(x, x, 0.5)[0]))(jnp.zeros((4, 4)))
    assert jnp.isfinite(gradient).all()  # a vector of length 0 has no direction


def test_the_network_with_projector_is_a_model_and_has_the_logits_of_the_model(model, dataset):
    network = with_projector(model, 6)
    testing.check_model(network, dataset.info)
    assert with_projector(model, 6) is network and with_projector(model, 7) is not network
    variables = network.init(KEY)
    images = jax.random.uniform(KEY, (5, *dataset.info.shape))
    plain = without_projector(variables)
    jax.tree.map(np.testing.assert_array_equal, plain, model.init(KEY))
    jax.tree.map(np.testing.assert_array_equal, without_projector(plain), plain)
    for train in (False, True):
        with_it, without = (
            one.apply(given, images, train=train)
            for one, given in ((network, variables), (model, plain))
        )
        np.testing.assert_allclose(with_it.logits, without.logits, atol=1e-6)


def test_the_projection_matches_numpy(model, dataset):
    network = with_projector(model, 6)
    variables = network.init(KEY)
    norm = {"scale": jax.random.uniform(KEY, (144,)), "bias": jax.random.normal(KEY, (144,))}
    variables.params[PROJECTOR]["norm"] = norm
    images = jax.random.uniform(KEY, (9, *dataset.info.shape))
    found = network.apply(variables, images, train=True)
    weights = jax.tree.map(lambda x: np.asarray(x, np.float64), variables.params[PROJECTOR])
    features = np.asarray(found.features["penultimate"], np.float64)
    hidden = features @ weights["first"]["kernel"] + weights["first"]["bias"]
    normed = (hidden - hidden.mean(0)) / np.sqrt(hidden.var(0) + 1e-5)
    normed = np.maximum(normed * weights["norm"]["scale"] + weights["norm"]["bias"], 0)
    wanted = normed @ weights["second"]["kernel"] + weights["second"]["bias"]
    np.testing.assert_allclose(found.features[PROJECTION], wanted, atol=1e-4)
    stats = found.batch_stats[PROJECTOR]
    np.testing.assert_allclose(stats["mean"], 0.1 * hidden.mean(0), atol=1e-5)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * hidden.var(0), atol=1e-5)
    tested = network.apply(variables._replace(batch_stats=found.batch_stats), images, train=False)
    assert not np.allclose(tested.features[PROJECTION], wanted, atol=1e-2)


def test_labels_do_not_change_the_training(model, dataset):
    config = dataclasses.replace(SHORT, steps=2)
    wrong = Split(dataset.train.images, np.full(len(dataset.train.labels), -7, np.int32))
    given = config, dataset.info
    loops = [simclr_loop(KEY, model, split, *given) for split in (dataset.train, wrong)]
    assert loops[0].data.shape == dataset.train.images.shape  # the loop has images only
    ends = [fit(loop)[0].variables for loop in loops]
    jax.tree.map(np.testing.assert_array_equal, *ends)
    other = fit(simclr_loop(jax.random.key(6), model, wrong, config, dataset.info))[0].variables
    assert not np.array_equal(other.params["conv0"]["kernel"], ends[0].params["conv0"]["kernel"])


def nearest_accuracy(model, variables, split):
    """Return the share of images whose nearest other image, by features, has their label."""
    images = jnp.asarray(split.images, jnp.float32) / 255
    features = model.apply(variables, images, train=False).features["penultimate"]
    z = np.asarray(features) / np.linalg.norm(features, axis=1, keepdims=True)
    cosines = z @ z.T - 2 * np.eye(len(z))
    return float((split.labels[cosines.argmax(1)] == split.labels).mean())


def test_training_matches_views_and_groups_the_classes(model, dataset):
    loop = simclr_loop(KEY, model, dataset.train, SHORT, dataset.info)
    assert loop.steps == 40
    state, lines = fit(loop, Hooks(log_every=10))
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.2, lines
    assert lines[-1]["matched"] > 1.5 * lines[0]["matched"], lines
    begun, ended = loop.state.variables, state.variables
    assert not np.allclose(begun.params["conv0"]["kernel"], ended.params["conv0"]["kernel"])
    # The classifier has no gradient: it only decays.
    ratio = np.asarray(ended.params["head"]["kernel"] / begun.params["head"]["kernel"])
    assert np.ptp(ratio) < 1e-3 and 0.9 < ratio.min() < 1
    assert nearest_accuracy(model, without_projector(ended), dataset.test) > 0.9


def test_defaults_are_those_of_the_release():
    config = SimCLRConfig()
    assert (config.epochs, config.batch_size, config.temperature) == (1000, 512, 0.5)
    assert (config.dimension, config.blur) == (128, 0.5)
    wanted = OptimConfig(lr=0.4, momentum=0.9, weight_decay=1e-4, schedule="cosine_epoch")
    assert config.optimizer == wanted


def test_an_epoch_has_whole_batches(model, dataset):
    config = dataclasses.replace(SHORT, steps=0, epochs=3, batch_size=150)
    assert simclr_loop(KEY, model, dataset.train, config, dataset.info).steps == 3 * 2


def test_models_and_sizes_that_simclr_cannot_train_are_refused(model):
    shapes = jax.eval_shape(model.init, KEY)
    check_simclr(SHORT, model, shapes, 50)
    words = "simclr.batch_size: 50 is more than the 49 images"
    testing.check_refuses(check_simclr, SHORT, model, shapes, 49, words=words)
    bare = Model(model.init, model.apply)
    testing.check_refuses(check_simclr, SHORT, bare, shapes, 50, words="'penultimate'")
    with pytest.raises(ConfigError, match="penultimate"):
        with_projector(bare)
    taken = shapes._replace(params=shapes.params | {PROJECTOR: {}})
    testing.check_refuses(check_simclr, SHORT, model, taken, 50, words="has a part 'projector'")
    with pytest.raises(ConfigError, match="batch_size: 1 is out of range"):
        SimCLRConfig(batch_size=1)
