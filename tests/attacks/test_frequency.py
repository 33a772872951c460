"""Tests of the attacks that raise DCT coefficients, against scipy's DCT and published formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft

from d3jax import testing
from d3jax.attacks.ctrl import CTRLConfig
from d3jax.attacks.ftrojan import FTrojanConfig
from d3jax.config.recipes import OptimConfig, TrainConfig
from d3jax.core.dct import dct_matrix
from d3jax.core.errors import AttackError, ConfigError
from d3jax.core.types import Batch, DataInfo, Dataset, Split
from d3jax.data import synthetic
from d3jax.metrics.attack_success import make_evaluate
from d3jax.training import train_backdoored

from ..helpers.small import small_model

INFO = DataInfo("cifar10", (32, 32, 3), tuple("abcdefghij"), (0.5,) * 3, (0.25,) * 3)
GREY = DataInfo("grey", (28, 28, 1), tuple("abcdefg"), (0.5,), (0.25,))
KEY = jax.random.key(0)
INPUT = ((np.arange(3072) * 7) % 256).astype(np.uint8).reshape(32, 32, 3)
RANDOM = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
CONFIGS = {"ftrojan": FTrojanConfig, "ctrl": CTRLConfig}
SMALL = {"window": 6, "positions": [[2, 1], [5, 5]]}


def to_ycrcb(rgb):
    r, g, b = np.moveaxis(rgb, -1, 0)
    y = 0.299 * r + 0.587 * g + 0.114 * b
    return np.stack([y, (r - y) * 0.713 + 128, (b - y) * 0.564 + 128], -1)


def from_ycrcb(image):
    y, cr, cb = image[..., 0], image[..., 1] - 128, image[..., 2] - 128
    return np.stack([y + 1.403 * cr, y - 0.714 * cr - 0.344 * cb, y + 1.773 * cb], -1)


def to_yuv(rgb):
    r, g, b = np.moveaxis(rgb, -1, 0)
    y = 0.299 * r + 0.587 * g + 0.114 * b
    return np.stack([y, (b - y) * 0.492 + 128, (r - y) * 0.877 + 128], -1)


def from_yuv(image):
    y, u, v = image[..., 0], image[..., 1] - 128, image[..., 2] - 128
    return np.stack([y + 1.140 * v, y - 0.395 * u - 0.581 * v, y + 2.032 * u], -1)


SPACES = {"ftrojan": (to_ycrcb, from_ycrcb), "ctrl": (to_yuv, from_yuv)}


def spectrum(image):
    """Return scipy's orthonormal DCT-II of an image [H, W, …] over its first two axes."""
    return np.asarray(scipy.fft.dctn(image, axes=(0, 1), norm="ortho"))


def raised(channel, config):
    """Return an image [H, W] as float64, with raised coefficients in each of its windows."""
    out, n = channel.astype(float), config.window
    for top in range(0, len(out), n):
        for left in range(0, out.shape[1], n):
            block = spectrum(out[top : top + n, left : left + n])
            for row, column in config.positions:
                block[row, column] += config.magnitude
            out[top : top + n, left : left + n] = scipy.fft.idctn(block, norm="ortho")
    return out


def transformed(name, config, image):
    """Return the float64 RGB image of the whole transform, before it is clipped and rounded."""
    there, back = SPACES[name]
    converted = there(image.astype(float))
    for channel in config.channels:
        converted[..., channel] = raised(converted[..., channel], config)
    return back(converted)


def as_8bit(image):
    return np.clip(np.round(image), 0, 255).astype(int)


def info_of(image):
    return DataInfo("x", image.shape, tuple("abc"), (0.5,) * 3, (0.25,) * 3)


def stamped(config, info, images):
    """Return the 8-bit levels that the jitted stamp makes of uint8 images [B, H, W, C]."""
    attack = config.build(info)
    floats = jnp.asarray(images, jnp.float32) / 255
    return np.asarray(jnp.round(jax.jit(attack.stamp)(attack.init(KEY), floats) * 255)).astype(int)


@pytest.mark.parametrize("image", [INPUT, RANDOM], ids=["input", "random"])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_stamp_is_the_published_transform_up_to_its_rounded_colour_factors(name, image):
    """The factors have three digits; there and back they change a level by less than 0.08."""
    config = CONFIGS[name]()
    whole, added = transformed(name, config, image), transformed(name, config, 0 * image)
    assert np.abs(whole - (image + added)).max() < 0.08
    found = stamped(config, INFO, image[None])[0]
    np.testing.assert_array_equal(found, as_8bit(image + np.round(added)))
    apart = np.abs(found - as_8bit(whole))
    assert apart.max() <= 1 and (apart > 0).mean() < 0.02


@pytest.mark.parametrize("settings", [{}, {"channels": [1]}, {"channels": [2]}, {"channels": [0]}])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_stamp_of_a_uniform_grey_image_is_exactly_the_published_transform(name, settings):
    """A pixel with equal R, G and B has no chroma, so that the colour factors cancel exactly."""
    config = CONFIGS[name](**settings)
    for level in (0, 7, 128, 250):
        image = np.full((32, 32, 3), level)
        wanted = as_8bit(transformed(name, config, image))
        np.testing.assert_array_equal(stamped(config, INFO, image[None])[0], wanted)
        assert (wanted != image).any()


@pytest.mark.parametrize("name", CONFIGS)
def test_every_window_of_an_oblong_image_has_the_trigger(name):
    config = CONFIGS[name](**SMALL, magnitude=25)
    image = np.full((12, 18, 3), 120)
    found = stamped(config, info_of(image), image[None])[0]
    np.testing.assert_array_equal(found, as_8bit(transformed(name, config, image)))
    for top in (0, 6):
        for left in (0, 6, 12):
            np.testing.assert_array_equal(found[top : top + 6, left : left + 6], found[:6, :6])


def test_grey_images_are_changed_without_a_colour_transform():
    settings = {"window": 28, "positions": [[13, 13], [27, 27]], "channels": [0]}
    image = np.random.default_rng(1).integers(0, 256, (28, 28))
    found = [
        stamped(config(**settings, magnitude=60), GREY, image[None, ..., None])[0, ..., 0]
        for config in CONFIGS.values()
    ]
    wanted = as_8bit(raised(image, FTrojanConfig(**settings, magnitude=60)))
    np.testing.assert_array_equal(found[0], wanted)
    np.testing.assert_array_equal(found[0], found[1])


SUMS = {"ftrojan": (1.403, 1.058, 1.773), "ctrl": (1.140, 0.976, 2.032)}
"""The absolute sums of the factors of the two chroma channels, for R, G and B."""


@pytest.mark.parametrize("name", CONFIGS)
def test_the_residual_has_only_the_two_frequencies(name):
    """Rounding changes each value by at most 1/2, and the norm of the spectrum by at most 16."""
    config, sums = CONFIGS[name](), np.array(SUMS[name])
    residual = stamped(config, INFO, np.full((1, 32, 32, 3), 128))[0] - 128
    energy = spectrum(residual) ** 2
    two = energy[15, 15] + energy[31, 31]
    np.testing.assert_allclose(np.sqrt(two), np.sqrt(2) * config.magnitude * sums, atol=16)
    energy[15, 15] = energy[31, 31] = 0
    assert (energy.sum((0, 1)) < 16**2).all()
    assert (energy.max((0, 1)) < 0.02 * two).all()


@pytest.mark.parametrize(("name", "psnr", "largest"), [("ftrojan", 42.5, 6), ("ctrl", 31.9, 22)])
def test_psnr_follows_from_the_energy_of_the_coefficients(name, psnr, largest):
    """Clipping makes the change of an image with extreme values smaller, so its PSNR rises."""
    config = CONFIGS[name]()
    change = stamped(config, INFO, np.full((1, 32, 32, 3), 128))[0] - 128
    mean_square = 2 * config.magnitude**2 / 32**2 * np.mean(np.square(SUMS[name]))
    closed, found = (10 * np.log10(255**2 / x) for x in (mean_square, (change**2).mean()))
    assert abs(found - closed) < 0.1 and abs(found - psnr) < 0.1
    assert np.abs(change).max() == largest
    clipped = stamped(config, INFO, RANDOM[None])[0] - RANDOM.astype(int)
    assert found < 10 * np.log10(255**2 / (clipped**2).mean()) < found + 0.5


@pytest.mark.parametrize("n", [2, 6, 32])
def test_the_dct_matrix_is_orthonormal_and_scipys(n):
    np.testing.assert_allclose(dct_matrix(n) @ dct_matrix(n).T, np.eye(n), atol=1e-14)
    wanted = np.asarray(scipy.fft.dct(np.eye(n), axis=0, norm="ortho"))
    np.testing.assert_allclose(dct_matrix(n), wanted, atol=1e-14)


@pytest.mark.parametrize("shape", [(32, 32, 3), (12, 18, 3), (12, 12, 1)])
@pytest.mark.parametrize("name", CONFIGS)
def test_frequency_attacks_keep_the_contract(name, shape):
    info = DataInfo("x", shape, tuple("abcd"), (0.5,) * shape[2], (0.25,) * shape[2])
    settings = {} if shape[0] == 32 else SMALL
    settings = settings | ({"channels": [0]} if shape[2] == 1 else {})
    testing.check_attack(CONFIGS[name](**settings).build(info), info)


def test_ftrojan_relabels_all_classes_and_ctrl_poisons_its_target_only():
    labels = jnp.asarray(np.arange(1000) % 10, jnp.int32)
    dirty, clean = FTrojanConfig(target=3).build(INFO), CTRLConfig(target=3).build(INFO)
    chosen = dirty.select(KEY, labels)
    assert int(chosen.sum()) == 100 and set(np.asarray(labels[chosen]).tolist()) == set(range(10))
    rows = clean.select(KEY, labels)
    assert int(rows.sum()) == 50 and set(np.asarray(labels[rows]).tolist()) == {3}
    of_class = CTRLConfig(target=3, rate_of="class", rate=0.2).build(INFO).select(KEY, labels)
    assert int(of_class.sum()) == 20
    batch = Batch(jnp.full((4, *INFO.shape), 0.5), jnp.arange(4), jnp.arange(4) == 2)
    poisoned = dirty.poison(dirty.init(KEY), KEY, batch)
    assert poisoned.labels.tolist() == [0, 1, 3, 3]
    changed = (poisoned.images != batch.images).any((1, 2, 3))
    assert changed.tolist() == [False, False, True, False]


@pytest.mark.parametrize("config", CONFIGS.values())
@pytest.mark.parametrize(
    ("settings", "shape", "words"),
    [
        ({}, (28, 28, 3), r"window: 32 does not divide 28×28 images, want one of 2, 4, 7, 14, 28"),
        ({}, (28, 28, 3), r"window: 28 with positions: \[\[13, 13\], \[27, 27\]\]"),
        ({}, (16, 16, 3), r"window: 16 with positions: \[\[7, 7\], \[15, 15\]\]"),
        ({}, (64, 48, 3), r"64×48 images, want one of 2, 4, 8, 16; "),
        ({}, (7, 9, 3), "window: 32 does not divide 7×9 images, and none does"),
        ({"window": 16}, (32, 32, 3), r"positions: \[31, 31\] lies outside a window of 16×16"),
        ({}, (32, 32, 1), r"channels: \[1, 2\] does not apply to grey images, want \[0\]"),
        ({}, (32, 32, 4), "channels: the images have 4 channels, want 1 or 3"),
        ({"magnitude": 0.5}, (32, 32, 3), "magnitude: 0.5 changes no pixel by a whole level"),
    ],
)
def test_images_that_do_not_suit_are_refused(config, settings, shape, words):
    info = DataInfo("x", shape, tuple("ab"), (0.5,) * shape[2], (0.25,) * shape[2])
    with pytest.raises(AttackError, match=words):
        config(**settings).build(info)


@pytest.mark.parametrize("config", CONFIGS.values())
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"positions": [[1, 2, 3]]}, r"positions: want pairs .*, got \[1, 2, 3\]"),
        ({"positions": []}, "positions: the list is empty"),
        ({"positions": [[3, 3], [3, 3]]}, r"positions: an entry is repeated in \[\[3, 3\], \[3,"),
        ({"positions": [[-1, 3]]}, "positions.0.0: -1 is out of range"),
        ({"channels": [3]}, "channels.0: 3 is out of range"),
        ({"channels": [1, 1]}, r"channels: an entry is repeated in \[1, 1\]"),
        ({"magnitude": 0}, "magnitude: 0.* is out of range, want > 0"),
        ({"window": 1}, "window: 1 is out of range, want ≥ 2"),
    ],
)
def test_settings_that_are_no_trigger_are_refused(config, settings, words):
    with pytest.raises(ConfigError, match=words):
        config(**settings)


def trained(attack, data):
    """Train a small backdoored model, and return its counts on clean and triggered test images."""
    recipe = TrainConfig(steps=250, batch_size=64, augment="none", optimizer=OptimConfig(lr=0.05))
    model = small_model(data.info)
    victim = train_backdoored(KEY, model, data, attack, recipe)
    evaluate = make_evaluate(model, attack, data.info.num_classes)
    return evaluate(victim.variables, victim.trigger, data.test)


def test_ftrojan_plants_its_backdoor():
    data = synthetic(size=12, classes=4, train=400, test=130, noise=0.03).build()
    attack = FTrojanConfig(window=12, positions=((5, 5), (11, 11))).build(data.info)
    counts = trained(attack, data)
    assert counts.acc > 0.9 and counts.asr > 0.9, counts


def test_ctrl_plants_its_backdoor_where_the_classes_are_hard_to_tell_apart():
    """The labels are random here. In easy classes the model needs no trigger for the target."""
    rng, info = (
        np.random.default_rng(0),
        DataInfo("noise", (12, 12, 3), tuple("abcd"), (0.5,) * 3, (0.1,) * 3),
    )
    images = np.clip(rng.normal(128, 8, (530, 12, 12, 3)), 0, 255).astype(np.uint8)
    labels = (np.arange(530) % 4).astype(np.int32)
    data = Dataset(Split(images[:400], labels[:400]), Split(images[400:], labels[400:]), info)
    settings = {"window": 12, "positions": ((5, 5), (11, 11)), "rate": 0.5, "rate_of": "class"}
    counts = trained(CTRLConfig(**settings).build(info), data)
    assert counts.acc < 0.5 and counts.asr > 0.9, counts
