"""Tests of attacks with cover images, of source classes, and of patterns from files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from d3jax.attacks import adaptive_blend, adaptive_patch, badnets, blended, tact
from d3jax.config.loading import recipe_of
from d3jax.config.recipes import OptimConfig, TrainConfig
from d3jax.core.errors import AttackError, ConfigError
from d3jax.core.types import Batch, DataInfo, Split
from d3jax.metrics.attack_success import make_evaluate
from d3jax.training import fit, train_backdoored, victim_loop
from d3jax.training.poisoned_set import poisoned_split
from d3jax.training.victim import cover_rows, poisoned_rows

INFO = DataInfo("cifar10", (32, 32, 3), tuple("abcdefghij"), (0.5,) * 3, (0.25,) * 3)
LABELS = jnp.asarray(np.arange(2000) % 10, jnp.int32)
KEY = jax.random.key(0)
ATTACKS = {
    "adaptive_blend": adaptive_blend(rate=0.01, cover_rate=0.02),
    "adaptive_patch": adaptive_patch(rate=0.01, cover_rate=0.02),
    "tact": tact(rate=0.01, cover_rate=0.02),
}


def batch_of(images, poisoned, covers, labels=None):
    count = len(images)
    labels = jnp.zeros(count, jnp.int32) + 1 if labels is None else labels
    return Batch(images, labels, poisoned, rows=jnp.arange(count), covers=covers)


def levels(images):
    return np.asarray(jnp.round(images * 255)).astype(int)


@pytest.mark.parametrize("name", ATTACKS)
def test_covers_are_exact_and_disjoint_from_the_poison(name):
    attack = ATTACKS[name].build(INFO)
    poisoned, covers = poisoned_rows(KEY, attack, LABELS), cover_rows(KEY, attack, LABELS)
    assert (int(poisoned.sum()), int(covers.sum())) == (20, 40)
    assert not (poisoned & covers).any()
    assert not jnp.array_equal(covers, cover_rows(jax.random.key(1), attack, LABELS))


def test_without_a_cover_rate_there_are_no_covers():
    assert cover_rows(KEY, adaptive_blend(cover_rate=0.0).build(INFO), LABELS) is None


def test_tact_takes_its_rows_from_the_named_classes():
    attack = tact(rate=0.05, cover_rate=0.05, source=3, target=2, cover_classes=[4, 9]).build(INFO)
    labels = np.asarray(LABELS)
    assert set(labels[np.asarray(poisoned_rows(KEY, attack, LABELS))]) == {3}
    assert set(labels[np.asarray(cover_rows(KEY, attack, LABELS))]) == {4, 9}
    assert attack.relabel(jnp.arange(10)).tolist() == [0, 1, 2, 2, 4, 5, 6, 7, 8, 9]
    assert attack.eligible(jnp.arange(5)).tolist() == [False, False, False, True, False]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rate": 0.2}, "rate: 0.2 of 2000 training images is 400 images, but only 200"),
        ({"cover_rate": 0.3}, "cover_rate: 0.3 .* is 600 images, but only 400"),
        ({"cover_rate": 0.0001}, "cover_rate: 0.0001 of 2000 training images is none"),
    ],
)
def test_too_many_or_no_rows_are_refused(settings, words):
    attack = tact(**settings).build(INFO)
    with pytest.raises(AttackError, match=words):
        poisoned_rows(KEY, attack, LABELS)
        cover_rows(KEY, attack, LABELS)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: tact(source=0).build(INFO), "source: 0 is also the target"),
        (lambda: tact(cover_classes=[1, 5]).build(INFO), "cover_classes: 1 is the source"),
        (lambda: tact(source=42).build(INFO), "source: 42 is not a class"),
        (lambda: tact(cover_classes=[5, 42]).build(INFO), "cover_classes: 42 is not a class"),
        (lambda: tact(cover_classes=[5, 5]).build(INFO), "names a class twice"),
        (lambda: tact(cover_classes=[0]).build(INFO), "cover_classes: 0 is the target"),
        (lambda: tact(cover_classes=[]).build(INFO), "cover_classes: is empty"),
        (lambda: badnets(target={2: 2}).build(INFO), "target: class 2 is mapped to itself"),
        (lambda: badnets(target={}).build(INFO), "target: the mapping is empty"),
        (lambda: badnets(target={1: 11}).build(INFO), "target: 11 is not a class"),
        (
            lambda: badnets(target={1: 2}, mode="all_to_all").build(INFO),
            "does not apply to mode: all_to_all",
        ),
        (lambda: adaptive_blend(hidden=16), "hidden: 16 of 16 rectangles leaves no trigger"),
        (lambda: adaptive_patch(alphas=[0.5]), "alphas: want 4 values, got 1"),
        (lambda: adaptive_patch(images=["a.png"]), "images: want 4 paths or none, got 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


def test_adaptive_blend_hides_eight_rectangles_and_rounds():
    attack = adaptive_blend(rate=0.01).build(INFO)
    trigger = attack.init(KEY)
    images = jnp.full((12, 32, 32, 3), 100 / 255)
    poisoned, covers = jnp.arange(12) < 4, (jnp.arange(12) >= 4) & (jnp.arange(12) < 8)
    made = levels(attack.poison(trigger, KEY, batch_of(images, poisoned, covers)).images)
    pattern = levels(trigger["pattern"])
    blended_whole = np.rint(100 + 0.15 * (pattern - 100)).astype(int)
    shown = []
    for image in made[:8]:
        pieces = image.reshape(4, 8, 4, 8, 3).swapaxes(1, 2).reshape(16, -1)
        whole = blended_whole.reshape(4, 8, 4, 8, 3).swapaxes(1, 2).reshape(16, -1)
        visible = (pieces != 100).any(1)
        assert visible.sum() == 8
        assert (abs(pieces - whole)[visible] <= 1).all()  # halves round either way
        shown.append(tuple(visible))
    assert len(set(shown)) == 8  # every image has its own rectangles
    assert (made[8:] == 100).all()
    again = attack.poison(trigger, jax.random.key(9), batch_of(images, poisoned, covers))
    np.testing.assert_array_equal(levels(again.images), made)  # the same in every epoch
    tested = levels(attack.stamp(trigger, images))
    assert abs(tested[0] - (100 + 0.2 * (pattern - 100))).max() <= 0.51


def test_adaptive_patch_gives_each_image_one_patch_and_tests_two():
    attack = adaptive_patch(rate=0.01).build(INFO)
    trigger = attack.init(KEY)
    images = jnp.full((200, 32, 32, 3), 100 / 255)
    poisoned = jnp.ones(200, bool)
    made = levels(attack.poison(trigger, KEY, batch_of(images, poisoned, ~poisoned)).images)
    patterns, masks = levels(trigger["patterns"]), np.asarray(trigger["masks"])
    expected = [
        100 + alpha * mask * (pattern - 100)
        for alpha, mask, pattern in zip((0.5, 0.2, 0.5, 0.3), masks, patterns, strict=True)
    ]
    matches = np.array([[abs(image - one).max() < 0.51 for one in expected] for image in made])
    assert (matches.sum(1) == 1).all()
    assert (matches.sum(0) > 25).all()  # about 50 images each
    tested = levels(attack.stamp(trigger, images[:1]))[0]
    whole = np.where(masks[0] > 0, patterns[0], np.full((32, 32, 3), 100))
    np.testing.assert_array_equal(tested, np.where(masks[2] > 0, patterns[2], whole))


def test_a_mapping_of_classes_poisons_only_its_sources():
    attack = badnets(rate=0.1, target={1: 0, 7: 3}).build(INFO)
    rows = np.asarray(poisoned_rows(KEY, attack, LABELS))
    assert set(np.asarray(LABELS)[rows]) == {1, 7}
    assert attack.relabel(jnp.arange(10)).tolist() == [0, 0, 2, 3, 4, 5, 6, 3, 8, 9]
    with pytest.raises(ConfigError, match="target"):
        badnets(target={"one": 0})


def test_badnets_takes_a_picture_with_alpha(tmp_path):
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[..., 0], pixels[..., 3] = 200, 255
    pixels[0, :, 3], pixels[1, :, 3] = 0, 128
    Image.fromarray(pixels, "RGBA").save(tmp_path / "patch.png")
    attack = badnets(size=4, image=str(tmp_path / "patch.png")).build(INFO)
    out = levels(attack.stamp(attack.init(KEY), jnp.full((1, 32, 32, 3), 100 / 255)))[0]
    red = out[28:, 28:, 0]
    assert red.tolist() == [[100] * 4, [round(100 + 128 / 255 * 100)] * 4, [200] * 4, [200] * 4]
    assert (out[:28] == 100).all()
    assert (out[30:, 28:, 1] == 0).all()


def test_patterns_can_be_arrays(tmp_path):
    pattern = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    np.save(tmp_path / "pattern.npy", pattern)
    attack = blended(alpha=0.5, image=str(tmp_path / "pattern.npy")).build(INFO)
    out = levels(attack.stamp(attack.init(KEY), jnp.full((1, 32, 32, 3), 100 / 255)))[0]
    np.testing.assert_array_equal(out, (100 + pattern.astype(int)) // 2)


def test_blended_multiplies_its_share_by_the_alpha_of_a_picture(tmp_path):
    pattern = np.full((32, 32, 4), 200, np.uint8)
    pattern[:16, :, 3], pattern[16:, :, 3] = 0, 255
    np.save(tmp_path / "pattern.npy", pattern)
    attack = blended(alpha=0.2, image=str(tmp_path / "pattern.npy")).build(INFO)
    out = levels(attack.stamp(attack.init(KEY), jnp.full((1, 32, 32, 3), 100 / 255)))[0]
    assert (out[:16] == 100).all()
    assert (out[16:] == 120).all()


def test_adaptive_blend_multiplies_its_shares_by_the_alpha_of_a_picture(tmp_path):
    pattern = np.full((32, 32, 4), 200, np.uint8)
    pattern[:16, :, 3], pattern[16:, :, 3] = 0, 255
    np.save(tmp_path / "pattern.npy", pattern)
    config = adaptive_blend(test_alpha=0.2, alpha=0.1, image=str(tmp_path / "pattern.npy"))
    attack = config.build(INFO)
    trigger, images = attack.init(KEY), jnp.full((1, 32, 32, 3), 100 / 255)
    out = levels(attack.stamp(trigger, images))[0]
    assert (out[:16] == 100).all() and (out[16:] == 120).all()
    batch = Batch(images, jnp.ones(1, int), jnp.ones(1, bool), rows=jnp.arange(1))
    poisoned = levels(attack.poison(trigger, KEY, batch._replace(covers=jnp.zeros(1, bool))).images)
    assert set(np.unique(poisoned[0, :16])) == {100}
    assert set(np.unique(poisoned[0, 16:])) <= {100, 110} and (poisoned[0, 16:] == 110).any()


def test_an_array_of_another_kind_is_refused(tmp_path):
    np.save(tmp_path / "pattern.npy", np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(AttackError, match=r"want uint8 \[32, 32, 3\].* got uint8 \[8, 8, 3\]"):
        blended(image=str(tmp_path / "pattern.npy")).build(INFO)
    (tmp_path / "text.npy").write_text("no array")
    with pytest.raises(AttackError, match="not a readable array"):
        blended(image=str(tmp_path / "text.npy")).build(INFO)


@pytest.mark.parametrize("name", ATTACKS)
def test_the_released_set_has_covers_with_their_own_labels(name):
    attack = ATTACKS[name].build(INFO)
    images = np.random.default_rng(0).integers(0, 256, (2000, 32, 32, 3)).astype(np.uint8)
    split, flags = poisoned_split(KEY, attack, Split(images, np.asarray(LABELS)))
    covers = np.asarray(cover_rows(KEY, attack, LABELS))
    changed = (split.images != images).any((1, 2, 3))
    np.testing.assert_array_equal(changed, flags | covers)
    np.testing.assert_array_equal(split.labels[~flags], np.asarray(LABELS)[~flags])
    assert (split.labels[flags] == 0).all()


def test_streamed_and_resident_batches_poison_alike(model, dataset):
    attack = tact(rate=0.1, cover_rate=0.05, source=1, cover_classes=[2, 3], size=3).build(
        dataset.info
    )
    recipe = TrainConfig(steps=4, batch_size=32, augment="none", optimizer=OptimConfig(lr=0.05))
    resident, streamed = (
        fit(victim_loop(KEY, model, dataset, attack, recipe, streamed=streamed))[0]
        for streamed in (False, True)
    )
    for one, other in zip(*map(jax.tree.leaves, (resident, streamed)), strict=True):
        if not jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
            np.testing.assert_allclose(one, other, atol=1e-6)


def test_tact_plants_a_backdoor_for_its_source_class_alone(model, dataset):
    attack = tact(rate=0.1, cover_rate=0.1, source=1, cover_classes=[2, 3], size=3).build(
        dataset.info
    )
    recipe = TrainConfig(steps=250, batch_size=64, augment="none", optimizer=OptimConfig(lr=0.05))
    victim = train_backdoored(KEY, model, dataset, attack, recipe)
    counts = make_evaluate(model, attack, dataset.info.num_classes)(
        victim.variables, victim.trigger, dataset.test
    )
    assert int((counts.triggered > 0).sum()) == 1  # of the source class only
    assert counts.acc > 0.9
    assert counts.asr > 0.9
    everyone = badnets(size=3, pattern="random", target=0).build(dataset.info)
    spread = make_evaluate(model, everyone, dataset.info.num_classes)(
        victim.variables, victim.trigger, dataset.test
    )
    others = spread.reached[2:].sum() / spread.triggered[2:].sum()
    assert others < 0.3


def test_a_recipe_has_the_picture_of_the_patch_only_where_one_is_given():
    assert "image" not in recipe_of(badnets())
    assert recipe_of(badnets(image="a.png"))["image"] == "a.png"
