"""Tests of the attacks: published check values, exact poison counts and refused settings."""

import dataclasses
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from d3jax.attacks import (
    ATTACKS,
    BadNetsConfig,
    BlendedConfig,
    BPPConfig,
    LCConfig,
    SIGConfig,
    WaNetConfig,
    make_badnets,
    make_blended,
    make_bpp,
    make_lc,
    make_sig,
    make_wanet,
)
from d3jax.attacks.poisoning import poisoned_share
from d3jax.core.errors import AttackError, ConfigError, DataError
from d3jax.core.types import Batch, DataInfo
from d3jax.data.grid_sample import sample
from d3jax.models import count_parameters
from d3jax.models.trigger_networks import generator

INFO = DataInfo("cifar10", (32, 32, 3), tuple("abcdefghij"), (0.5,) * 3, (0.25,) * 3)
GREY = DataInfo("grey", (28, 28, 1), tuple("abcdefg"), (0.5,), (0.25,))
LABELS = jnp.asarray(np.random.default_rng(0).integers(0, 10, 1000), jnp.int32)
INPUT = ((np.arange(3072) * 7) % 256).astype(np.uint8).reshape(32, 32, 3)


def stamped(attack, trigger, images):
    """Return the uint8 image that the jitted float32 stamp makes of a uint8 image."""
    out = jax.jit(attack.stamp)(trigger, jnp.asarray(images)[None].astype(jnp.float32) / 255)
    return np.asarray(jnp.round(out * 255).astype(jnp.uint8))[0]


def digest(image):
    """Return the sum of an image's values and the first 16 digits of its SHA-256."""
    return int(image.sum()), hashlib.sha256(image.tobytes()).hexdigest()[:16]


def test_input_of_the_check_values_is_the_published_one():
    assert digest(INPUT) == (391680, "e3662d87913adb09")


def test_badnets_check_value():
    attack = make_badnets(BadNetsConfig(), INFO)
    out = stamped(attack, attack.init(jax.random.key(0)), INPUT)
    assert digest(out) == (394614, "9348ae9cd3b3dc5f")
    assert (out != INPUT).any(-1).sum() == 9


@pytest.mark.parametrize(
    ("alpha", "value"), [(0.1, (390132, "c4b141a76248cc21")), (0.2, (390456, "dcd3394255eaa569"))]
)
def test_blended_check_value(alpha, value):
    attack = make_blended(BlendedConfig(alpha=alpha), INFO)
    pattern = ((np.arange(3072) * 13 + 5) % 256).astype(np.uint8).reshape(32, 32, 3)
    assert digest(stamped(attack, {"pattern": jnp.asarray(pattern)}, INPUT)) == value


def test_sig_check_values():
    attack = make_sig(SIGConfig(), INFO)
    trigger = attack.init(jax.random.key(0))
    assert digest(stamped(attack, trigger, INPUT)) == (390644, "a96e5988abc49413")
    row = stamped(attack, trigger, np.full((32, 32, 3), 128, np.uint8))[5, :, 1]
    assert row[:17].tolist() == [
        128,
        164,
        156,
        112,
        88,
        112,
        156,
        164,
        128,
        91,
        99,
        143,
        168,
        143,
        99,
        91,
        127,
    ]


def FIELDS(cls):
    return [field.name for field in dataclasses.fields(cls)]


NONE = ("clean", "unknown", "blind", "released")
"""Registered entries that draw no training image: without a trigger, changed code, and a file."""
DRAWN = [name for name in ATTACKS if name not in (*NONE, "wanet", "input_aware", "bpp")]


@pytest.mark.parametrize("rate", [0.013, 0.08])
@pytest.mark.parametrize("name", [*DRAWN, "wanet", "bpp"])
def test_exact_poison_count(name, rate):
    cls, construct = ATTACKS[name]
    attack = construct(cls(rate=rate, **({} if name in DRAWN else {"rows": "fixed"})), INFO)
    mask = attack.select(jax.random.key(0), LABELS)
    assert (
        mask.dtype == bool
        and int(mask.sum()) == round(rate * 1000)
        and not (mask & ~attack.eligible(LABELS)).any()
    )
    assert jnp.array_equal(mask, attack.select(jax.random.key(0), LABELS))
    assert not jnp.array_equal(mask, attack.select(jax.random.key(1), LABELS))
    assert poisoned_share(attack, mask, 128) == round(rate * 1000) / 1000


@pytest.mark.parametrize("rate", [0, 1e-9, 4e-4])
@pytest.mark.parametrize("name", [*DRAWN, "wanet", "bpp"])
def test_a_rate_that_poisons_nothing_is_refused(name, rate):
    cls, construct = ATTACKS[name]
    with pytest.raises(AttackError, match="is none, want at least 0.0.*; the attack clean is"):
        construct(cls(rate=rate), INFO).select(jax.random.key(0), LABELS)


@pytest.mark.parametrize("name", ["wanet", "bpp", "input_aware"])
def test_per_batch_attacks_poison_the_first_rows_and_cross_the_next_ones(name):
    """At 10 %, 12 of 128 images are poisoned, and the next 12 · `cross_ratio` are crossed.

    Crossed images keep their labels. All other images stay as they are.
    """
    cls, construct = ATTACKS[name]
    config = cls(**({"width": 2} if "width" in FIELDS(cls) else {}))
    attack = construct(config, INFO)
    trigger = attack.init(jax.random.key(0))
    images = jnp.round(jax.random.uniform(jax.random.key(1), (128, *INFO.shape)) * 255) / 255
    labels = jnp.arange(128) % 9 + 1
    batch = jax.jit(attack.poison)(
        trigger, jax.random.key(2), Batch(images, labels, jnp.zeros(128, bool))
    )
    crosses = int(12 * config.cross_ratio)
    assert crosses == {"wanet": 24, "bpp": 12, "input_aware": 12}[name]
    changed = ~(batch.images == images).all((1, 2, 3))
    assert jnp.array_equal(changed, jnp.arange(128) < 12 + crosses)
    assert jnp.array_equal(batch.labels, jnp.where(jnp.arange(128) < 12, 0, labels))
    assert jnp.array_equal(batch.poisoned, jnp.arange(128) < 12)
    assert int(attack.select(jax.random.key(0), LABELS).sum()) == 0
    assert [
        poisoned_share(construct(cls(rate=rate), INFO), jnp.zeros(9), 128)
        for rate in (0.1, 0.01, 0.001)
    ] == [
        12 / 128,
        1 / 128,
        0.001,
    ]
    if name != "input_aware":
        np.testing.assert_allclose(batch.images[:12], attack.stamp(trigger, images[:12]), atol=1e-6)


@pytest.mark.parametrize("name", ["wanet", "bpp"])
def test_fixed_rows_are_poisoned_and_crosses_are_drawn_from_the_others(name):
    cls, construct = ATTACKS[name]
    attack = construct(cls(rows="fixed", rate=0.2), INFO)
    images, own = (
        jax.random.uniform(jax.random.key(1), (200, *INFO.shape)),
        jnp.arange(200) % 5 == 0,
    )
    batch = attack.poison(
        attack.init(jax.random.key(0)),
        jax.random.key(2),
        Batch(images, jnp.ones(200, jnp.int32), own),
    )
    assert jnp.array_equal(batch.labels, jnp.where(own, 0, 1)) and jnp.array_equal(
        batch.poisoned, own
    )
    crossed = ~(batch.images == images).all((1, 2, 3)) & ~own
    assert abs(int(crossed.sum()) - 40 * cls().cross_ratio) < 20


def test_bpp_quantises_to_eight_levels_and_dithering_keeps_the_mean():
    attack = make_bpp(BPPConfig(), INFO)
    assert sorted(np.unique(stamped(attack, {}, INPUT)).tolist()) == [
        0,
        36,
        72,
        109,
        145,
        182,
        218,
        255,
    ]
    for level in range(256):
        wanted = int(np.floor(np.round(level / 255 * 7) / 7 * 255))
        assert stamped(attack, {}, np.full((32, 32, 3), level, np.uint8))[0, 0, 0] == wanted
    dithered = stamped(
        make_bpp(BPPConfig(dither=True), INFO), {}, np.full((32, 32, 3), 100, np.uint8)
    )
    assert set(np.unique(dithered).tolist()) == {72, 109} and abs(float(dithered.mean()) - 100) < 2


def test_dithering_matches_floyd_and_steinberg():
    image = np.random.default_rng(0).integers(0, 256, (7, 9))
    owed, wanted = image * (7 / 255), np.zeros((7, 9))
    for y in range(7):
        for x in range(9):
            wanted[y, x] = np.clip(np.round(owed[y, x]), 0, 7)
            error = owed[y, x] - wanted[y, x]
            for dy, dx, share in ((0, 1, 7), (1, -1, 3), (1, 0, 5), (1, 1, 1)):
                if y + dy < 7 and 0 <= x + dx < 9:
                    owed[y + dy, x + dx] += error * share / 16
    info = DataInfo("x", (7, 9, 1), ("a", "b"), (0.5,), (0.5,))
    mine = stamped(make_bpp(BPPConfig(dither=True), info), {}, image[..., None].astype(np.uint8))[
        ..., 0
    ]
    # The attack computes in float32 and the loop above in float64, so ties may round differently.
    assert (mine != np.floor(wanted / 7 * 255)).mean() < 0.05


@pytest.mark.parametrize("shape", [(28, 28, 1), (32, 32, 3), (64, 48, 3), (224, 224, 3)])
def test_wanet_matches_an_independent_float64_computation(shape):
    """Compare the enlarged field and the warped image at 40 random pixels."""
    info = DataInfo("x", shape, tuple("abc"), (0.5,) * shape[2], (0.5,) * shape[2])
    attack, height, width = make_wanet(WaNetConfig(), info), *shape[:2]
    key = jax.random.key(5)
    grid = np.asarray(attack.init(key)["grid"], np.float64)
    field = np.asarray(jax.random.uniform(key, (4, 4, 2), minval=-1, maxval=1), np.float64)
    rng = np.random.default_rng(0)
    image = rng.random(shape)
    out = np.asarray(
        attack.stamp(
            {"grid": jnp.asarray(grid, jnp.float32)}, jnp.asarray(image, jnp.float32)[None]
        )[0]
    )
    for y, x in zip(rng.integers(0, height, 40), rng.integers(0, width, 40), strict=True):
        bent = cubic(field / np.abs(field).mean(), y * 3 / (height - 1), x * 3 / (width - 1))
        at = np.clip(
            [
                2 * x / (width - 1) - 1 + 0.5 * bent[0] / width,
                2 * y / (height - 1) - 1 + 0.5 * bent[1] / height,
            ],
            -1,
            1,
        )
        np.testing.assert_allclose(grid[y, x], at, atol=1e-5)
        column, row = (grid[y, x] + 1) / 2 * (width - 1, height - 1)
        np.testing.assert_allclose(
            out[y, x], linear(image, row, column), atol=2e-5 * max(height, width) / 32
        )


def cubic(field, row, column):
    """Return the field at a fractional position, by Keys's cubic kernel with a = −0.75.

    Points beyond the border have the value of the nearest point on it.
    """

    def weights(at):
        first = int(np.floor(at))
        for point in range(first - 1, first + 3):
            d = abs(at - point)
            a = -0.75
            value = (
                (a + 2) * d**3 - (a + 3) * d**2 + 1
                if d <= 1
                else a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
            )
            yield min(max(point, 0), len(field) - 1), value

    return sum(u * v * field[i, j] for i, u in weights(row) for j, v in weights(column))


def linear(image, row, column):
    """Return the bilinearly interpolated image at a fractional position; it is black outside."""
    total = 0.0
    for i in (int(np.floor(row)), int(np.floor(row)) + 1):
        for j in (int(np.floor(column)), int(np.floor(column)) + 1):
            if 0 <= i < len(image) and 0 <= j < image.shape[1]:
                total += (1 - abs(row - i)) * (1 - abs(column - j)) * image[i, j]
    return total


def test_grid_sampling_outside_the_image_is_black():
    image = jnp.ones((1, 4, 4, 1))
    grid = jnp.array([[[-1.0, -1.0], [1.0, 1.0], [1.0 + 1 / 3, 0.0], [5.0, 5.0]]])
    np.testing.assert_allclose(sample(image, grid)[0, 0, :, 0], [1, 1, 0.5, 0], atol=1e-6)


def test_lc_corners_are_mirrored_checkers_that_grow_with_the_image():
    """The right checkers mirror the left ones. At 64 pixels they have twice the side."""
    attack = make_lc(LCConfig(), INFO)
    out = stamped(attack, attack.init(jax.random.key(0)), np.full((32, 32, 3), 100, np.uint8))
    left = [[255, 0, 0], [0, 255, 0], [255, 0, 255]]
    for rows in (slice(0, 3), slice(29, 32)):
        assert out[rows, :3, 1].tolist() == left and out[rows, 29:, 2].tolist() == [
            row[::-1] for row in left
        ]
    assert (out != 100).any(-1).sum() == 36
    large = make_lc(LCConfig(), DataInfo("x", (64, 64, 3), tuple("ab"), (0.5,) * 3, (0.5,) * 3))
    assert int((large.init(jax.random.key(0))["patch"] != 0).sum()) == 4 * 36


def test_input_aware_nets_have_the_published_size():
    sizes = [
        jax.eval_shape(generator(INFO, 32, channels).init, jax.random.key(0)).params
        for channels in (3, 1)
    ]
    assert [count_parameters(params) for params in sizes] == [723_273, 722_691]


def test_dirty_label_draws_over_all_classes_and_clean_label_from_the_target():
    dirty = make_badnets(BadNetsConfig(rate=0.5), INFO).select(jax.random.key(0), LABELS)
    assert set(np.asarray(LABELS[dirty]).tolist()) == set(range(10))
    clean = make_sig(SIGConfig(rate=0.05, target=3), INFO).select(jax.random.key(0), LABELS)
    assert set(np.asarray(LABELS[clean]).tolist()) == {3}
    of_class = make_sig(SIGConfig(rate=0.5, rate_of="class", target=3), INFO).select(
        jax.random.key(0), LABELS
    )
    assert int(of_class.sum()) == round(0.5 * int((LABELS == 3).sum()))


def test_all_to_all_relabels_to_the_next_class():
    relabel = make_badnets(BadNetsConfig(mode="all_to_all"), INFO).relabel
    assert relabel(jnp.arange(10)).tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]


def test_badnets_patch_has_its_size_place_and_pattern():
    config = BadNetsConfig(
        size=2, position="top_left", margin=1, pattern="checker", colour=(255, 0, 51)
    )
    out = stamped(
        make_badnets(config, INFO), make_badnets(config, INFO).init(jax.random.key(0)), INPUT
    )
    changed = np.argwhere((out != INPUT).any(-1))
    assert changed.min() == 1 and changed.max() == 2
    assert (
        out[1, 1].tolist() == [255, 0, 51]
        and out[1, 2].tolist() == [0, 0, 0]
        and out[2, 2].tolist() == [255, 0, 51]
    )


def test_badnets_grid_is_the_pattern_of_nad_abl_and_mcl():
    attack = make_badnets(BadNetsConfig(pattern="grid"), INFO)
    out = stamped(attack, attack.init(jax.random.key(0)), INPUT)
    grid = [[0, 0, 255], [0, 255, 0], [255, 0, 255]]
    for channel in range(3):
        assert out[-3:, -3:, channel].tolist() == grid
    with pytest.raises(ConfigError, match="grid has 3 pixels a side, got size: 4"):
        BadNetsConfig(pattern="grid", size=4)


def test_blended_reads_and_resizes_its_pattern_from_an_image_file(tmp_path):
    Image.fromarray(np.full((5, 5, 3), 100, np.uint8)).save(tmp_path / "p.png")
    trigger = make_blended(BlendedConfig(image=str(tmp_path / "p.png")), INFO).init(
        jax.random.key(0)
    )
    assert trigger["pattern"].shape == (32, 32, 3) and (trigger["pattern"] == 100).all()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: make_badnets(BadNetsConfig(size=31, margin=2), INFO), "does not fit 32×32"),
        (
            lambda: make_badnets(BadNetsConfig(colour=(1, 2)), INFO),
            "2 values, the images have 3 channels",
        ),
        (lambda: make_blended(BlendedConfig(image="/no/such.png"), INFO), "/no/such.png"),
        (
            lambda: make_sig(SIGConfig(rate=0.5), INFO).select(jax.random.key(0), LABELS),
            "asks for 500 images of the target class",
        ),
    ],
)
def test_attacks_that_cannot_be_applied_are_refused(make, words):
    with pytest.raises((AttackError, DataError), match=words):
        make()


def test_a_target_is_a_class_by_number_or_name():
    info = dataclasses.replace(INFO, classes=(*"abcdefgh", "stop", "stop"))
    labels = jnp.arange(4)
    for target in (2, "c"):
        assert make_badnets(BadNetsConfig(target=target), info).relabel(labels).tolist() == 4 * [2]
        assert make_sig(SIGConfig(target=target), info).eligible(labels).tolist()[2]
    for target, words in (
        (10, "10 is not a class of cifar10, want 0 to 9 or a name"),
        ("stopp", "did you mean 'stop'"),
        ("stop", "several"),
    ):
        with pytest.raises(ConfigError, match=words):
            make_badnets(BadNetsConfig(target=target), info)
    with pytest.raises(ConfigError, match="target: want a whole number or a text, got 1.5"):
        BadNetsConfig(target=1.5)


def test_out_of_range_settings_are_refused():
    with pytest.raises(ConfigError, match=r"rate: 1.5 is out of range, want ≥ 0 and ≤ 1"):
        BadNetsConfig(rate=1.5)
    with pytest.raises(ConfigError, match=r"pattern: 'whit' is not one of .*did you mean 'white'"):
        BadNetsConfig(pattern="whit")
