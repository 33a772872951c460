"""Every attack keeps the contract; the published check values hold bit for bit."""

import hashlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from d3jax.attacks import ATTACKS, BadNetsConfig, BlendedConfig, SIGConfig, badnets, blended, sig
from d3jax.base import Batch, DataInfo
from d3jax.errors import AttackError, ConfigError

INFO = DataInfo("cifar10", (32, 32, 3), tuple("abcdefghij"), (0.5,) * 3, (0.25,) * 3)
GREY = DataInfo("grey", (28, 28, 1), tuple("abcdefg"), (0.5,), (0.25,))
LABELS = jnp.asarray(np.random.default_rng(0).integers(0, 10, 1000), jnp.int32)
INPUT = ((np.arange(3072) * 7) % 256).astype(np.uint8).reshape(32, 32, 3)


def stamped(attack, trigger, images):
    """uint8 in, uint8 out, through the jitted float path."""
    out = jax.jit(attack.stamp)(trigger, jnp.asarray(images)[None].astype(jnp.float32) / 255)
    return np.asarray(jnp.round(out * 255).astype(jnp.uint8))[0]


def digest(image):
    return int(image.sum()), hashlib.sha256(image.tobytes()).hexdigest()[:16]


def test_the_input_is_the_published_one():
    assert digest(INPUT) == (391680, "e3662d87913adb09")


def test_badnets_check_value():
    attack = badnets(BadNetsConfig(), INFO)
    out = stamped(attack, attack.init(jax.random.key(0)), INPUT)
    assert digest(out) == (394614, "9348ae9cd3b3dc5f")
    assert (out != INPUT).any(-1).sum() == 9


@pytest.mark.parametrize(("alpha", "value"), [(0.1, (390132, "c4b141a76248cc21")), (0.2, (390456, "dcd3394255eaa569"))])
def test_blended_check_value(alpha, value):
    attack = blended(BlendedConfig(alpha=alpha), INFO)
    pattern = ((np.arange(3072) * 13 + 5) % 256).astype(np.uint8).reshape(32, 32, 3)
    assert digest(stamped(attack, {"pattern": jnp.asarray(pattern)}, INPUT)) == value


def test_sig_check_values():
    attack = sig(SIGConfig(), INFO)
    trigger = attack.init(jax.random.key(0))
    assert digest(stamped(attack, trigger, INPUT)) == (390644, "a96e5988abc49413")
    row = stamped(attack, trigger, np.full((32, 32, 3), 128, np.uint8))[5, :, 1]
    assert row[:17].tolist() == [128, 164, 156, 112, 88, 112, 156, 164, 128, 91, 99, 143, 168, 143, 99, 91, 127]


@pytest.mark.parametrize("info", [INFO, GREY], ids=["colour", "grey"])
@pytest.mark.parametrize("name", ATTACKS)
def test_contract(name, info):
    cls, construct = ATTACKS[name]
    attack = construct(cls(), info)
    trigger = attack.init(jax.random.key(3))
    chex.assert_trees_all_equal(trigger, attack.init(jax.random.key(3)))
    images = jax.random.uniform(jax.random.key(1), (6, *info.shape))
    out = attack.stamp(trigger, images)
    assert out.shape == images.shape and out.dtype == jnp.float32
    assert 0 <= out.min() and out.max() <= 1
    assert jnp.array_equal(out, jax.jit(attack.stamp)(trigger, images))
    assert name == "clean" or not jnp.array_equal(out, images)

    labels = jnp.arange(6) % info.num_classes
    own = jnp.array([True, False, True, False, False, True])
    batch = attack.poison(trigger, jax.random.key(2), Batch(images, labels, own))
    expected = jnp.where(own[:, None, None, None], out, images)
    assert jnp.array_equal(batch.images, expected)
    assert jnp.array_equal(batch.labels, jnp.where(own, attack.relabel(labels), labels))


@pytest.mark.parametrize("rate", [0.0, 0.013, 0.08])
@pytest.mark.parametrize("name", [name for name in ATTACKS if name != "clean"])
def test_exact_poison_count(name, rate):
    cls, construct = ATTACKS[name]
    attack = construct(cls(rate=rate), INFO)
    mask = attack.select(jax.random.key(0), LABELS)
    assert mask.dtype == bool and int(mask.sum()) == round(rate * 1000)
    assert jnp.array_equal(mask, attack.select(jax.random.key(0), LABELS))
    assert rate == 0 or not jnp.array_equal(mask, attack.select(jax.random.key(1), LABELS))


def test_dirty_label_draws_over_all_classes_and_clean_label_from_the_target():
    dirty = badnets(BadNetsConfig(rate=0.5), INFO).select(jax.random.key(0), LABELS)
    assert set(np.asarray(LABELS[dirty]).tolist()) == set(range(10))
    clean = sig(SIGConfig(rate=0.05, target=3), INFO).select(jax.random.key(0), LABELS)
    assert set(np.asarray(LABELS[clean]).tolist()) == {3}
    of_class = sig(SIGConfig(rate=0.5, rate_of="class", target=3), INFO).select(jax.random.key(0), LABELS)
    assert int(of_class.sum()) == round(0.5 * int((LABELS == 3).sum()))


def test_all_to_all_is_the_next_class():
    relabel = badnets(BadNetsConfig(mode="all_to_all"), INFO).relabel
    assert relabel(jnp.arange(10)).tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]


def test_patch_options():
    config = BadNetsConfig(size=2, position="top_left", margin=1, pattern="checker", colour=(255, 0, 51))
    out = stamped(badnets(config, INFO), badnets(config, INFO).init(jax.random.key(0)), INPUT)
    changed = np.argwhere((out != INPUT).any(-1))
    assert changed.min() == 1 and changed.max() == 2
    assert out[1, 1].tolist() == [255, 0, 51] and out[1, 2].tolist() == [0, 0, 0] and out[2, 2].tolist() == [255, 0, 51]


def test_blended_pattern_from_an_image(tmp_path):
    Image.fromarray(np.full((5, 5, 3), 100, np.uint8)).save(tmp_path / "p.png")
    trigger = blended(BlendedConfig(image=str(tmp_path / "p.png")), INFO).init(jax.random.key(0))
    assert trigger["pattern"].shape == (32, 32, 3) and (trigger["pattern"] == 100).all()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: badnets(BadNetsConfig(target=10), INFO), "10 is not a class of cifar10, want 0 to 9"),
        (lambda: badnets(BadNetsConfig(size=31, margin=2), INFO), "does not fit 32×32"),
        (lambda: badnets(BadNetsConfig(colour=(1, 2)), INFO), "2 values, the images have 3 channels"),
        (lambda: blended(BlendedConfig(image="/no/such.png"), INFO), "/no/such.png"),
        (lambda: sig(SIGConfig(rate=0.5), INFO).select(jax.random.key(0), LABELS), "asks for 500 images of the target class"),
    ],
)
def test_what_cannot_be_is_refused(make, words):
    with pytest.raises(AttackError, match=words):
        make()


def test_out_of_range_settings_are_refused():
    with pytest.raises(ConfigError, match=r"rate: 1.5 is out of range, want ≥ 0 and ≤ 1"):
        BadNetsConfig(rate=1.5)
    with pytest.raises(ConfigError, match=r"pattern: 'whit' is not one of .*did you mean 'white'"):
        BadNetsConfig(pattern="whit")
