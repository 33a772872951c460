"""Tests of the Refool attack: its optics in NumPy, its random choices and its pool of pictures."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from d3jax import testing
from d3jax.attacks.reflections import Optics, choose, mix
from d3jax.attacks.refool import RefoolConfig
from d3jax.config.recipes import OptimConfig, TrainConfig
from d3jax.core.errors import AttackError, ConfigError, DataError
from d3jax.core.images import as_float
from d3jax.core.types import Batch, DataInfo, Dataset, Split
from d3jax.metrics.attack_success import make_evaluate
from d3jax.training import train_backdoored
from d3jax.training.victim import prepare

INFO = DataInfo("rgb", (12, 9, 3), tuple("abcd"), (0.5,) * 3, (0.25,) * 3)
GREY = DataInfo("grey", (10, 14, 1), tuple("abcd"), (0.5,), (0.25,))
LEVEL = 1.01 / 255


def optics(**given):
    """Return the `Optics` of one image, with plain values for the choices that are not given."""
    choices = {"picture": 0, "ghost": False, "offset": (1, 1), "share": 0.4, "sigma": 1.0}
    choices |= {"attenuation": 1.1} | given
    return Optics(**{name: jnp.asarray(value)[None] for name, value in choices.items()})


def mixed(image, picture, transmission=0.4, **given):
    """Return the mixture of one image and one picture that the attack computes."""
    images = (jnp.asarray(one, jnp.float32)[None] for one in (image, picture))
    return np.asarray(mix(*images, optics(**given), transmission))[0]


def enlarged(layer, axis, side):
    """Enlarge an array along an axis to `side` pixels, bilinearly between the pixels' centres."""
    count = layer.shape[axis]
    at = (np.arange(side) + 0.5) * count / side - 0.5
    return np.apply_along_axis(lambda line: np.interp(at, np.arange(count), line), axis, layer)


def ghosted(image, picture, down, right, share, transmission=0.4):
    """Return the mixture with a ghost in float64, from padded copies of the picture."""
    height, width, _ = image.shape
    t, r = image.astype(float) ** 2.2, picture.astype(float) ** 2.2
    first = np.pad(r, ((0, down), (0, right), (0, 0)))
    second = np.pad(r, ((down, 0), (right, 0), (0, 0)))
    both = (share * first + (1 - share) * second)[down:-down, right:-right]
    layer = enlarged(enlarged(both, 0, height), 1, width)
    return (transmission * t + (1 - transmission) * layer) ** (1 / 2.2)


def out_of_focus(image, picture, sigma, attenuation, transmission=0.4):
    """Return the mixture with an out-of-focus reflection in float64, and the excess of light."""
    height, width, channels = image.shape
    t, r = image.astype(float) ** 2.2, picture.astype(float) ** 2.2
    radius, soft, excess = int(np.ceil(2 * sigma)), np.zeros_like(t), np.zeros(channels)
    for y in range(height):
        for x in range(width):
            total = 0.0
            for i in range(max(0, y - radius), min(height, y + radius + 1)):
                for j in range(max(0, x - radius), min(width, x + radius + 1)):
                    weight = np.exp(-((y - i) ** 2 + (x - j) ** 2) / (2 * sigma**2))
                    soft[y, x] += weight * r[i, j]
                    total += weight
            soft[y, x] /= total
    for c in range(channels):
        light = (soft + t)[..., c]
        if (light > 1).any():
            excess[c] = light[light > 1].mean() - 1
        soft[..., c] = np.clip(soft[..., c] - attenuation * excess[c], 0, 1)
    longest = max(height, width)
    for y in range(height):
        for x in range(width):
            u, v = (6 * (k - (n - 1) / 2) / (longest - 1) for k, n in ((y, height), (x, width)))
            soft[y, x] *= np.sqrt(np.exp(-(u**2) / 2) * np.exp(-(v**2) / 2))
    light = transmission * t + (1 - transmission / 2) * soft
    return np.clip(light, 0, 1) ** (1 / 2.2), excess


@pytest.mark.parametrize(("down", "right", "share"), [(1, 1, 0.3), (3, 2, 0.8)])
def test_a_ghost_is_the_overlap_of_two_shifted_copies(rng, down, right, share):
    image, picture = rng.random((2, 12, 9, 3))
    found = mixed(image, picture, ghost=True, offset=(down, right), share=share)
    np.testing.assert_allclose(found, ghosted(image, picture, down, right, share), atol=1e-5)


@pytest.mark.parametrize(("bright", "sigma"), [(True, 1.0), (False, 1.7)])
def test_a_blurred_reflection_is_subdued_where_light_exceeds_the_range(rng, bright, sigma):
    image, picture = rng.random((2, 12, 9, 3))
    image = image**0.2 if bright else image * 0.3
    found = mixed(image, picture * (1 if bright else 0.5), sigma=sigma, attenuation=1.15)
    wanted, excess = out_of_focus(image, picture * (1 if bright else 0.5), sigma, 1.15)
    assert (excess > 0.1).all() if bright else (excess == 0).all()
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_transmission_1_leaves_ghosted_images_as_they_are(rng):
    image, picture = rng.random((2, 12, 9, 3))
    np.testing.assert_allclose(mixed(image, picture, 1.0, ghost=True), image, atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 0.4, 32 / 560])
def test_choices_have_the_published_ranges(scale):
    keys = jax.random.split(jax.random.key(0), 4000)
    found = jax.vmap(lambda key: choose(key, 7, 0.49, scale))(keys)
    counts = np.bincount(found.picture, minlength=7)
    assert len(counts) == 7 and counts.min() > 450
    assert abs(float(found.ghost.mean()) - 0.49) < 0.03
    offsets = {1.0: range(3, 9), 0.4: range(1, 4), 32 / 560: [1]}[scale]
    for axis in (0, 1):
        assert set(np.unique(found.offset[:, axis])) == set(offsets)
    assert scale < 0.1 or (found.offset[:, 0] != found.offset[:, 1]).mean() > 0.5
    share = np.asarray(found.share)
    assert share.min() > 0.149 and share.max() < 0.851
    assert abs((share > 0.5).mean() - 0.5) < 0.03
    assert abs(np.abs((share > 0.5) - share).mean() - 0.325) < 0.005
    assert 1.08 <= found.attenuation.min() and found.attenuation.max() <= 1.18
    assert found.sigma.min() >= 1 and found.sigma.max() <= max(1, 5 * scale)
    assert scale < 1 or abs(float(found.sigma.mean()) - 3) < 0.1


def test_a_stamped_image_is_a_ghost_of_the_picture_with_an_offset_of_one_pixel(rng):
    """The share α is drawn, so the closest of many ghosts is compared."""
    attack = RefoolConfig(ghost_rate=1.0, reflections=1).build(INFO)
    picture = rng.integers(0, 256, INFO.shape, np.uint8)
    trigger = attack.init(jax.random.key(5)) | {"reflections": jnp.asarray(picture)[None]}
    images = as_float(rng.integers(0, 256, (3, *INFO.shape), np.uint8))
    for image, out in zip(images, np.asarray(attack.stamp(trigger, images)), strict=True):
        shares = np.concatenate([np.arange(0.15, 0.5, 0.002), np.arange(0.5, 0.85, 0.002)])
        ghosts = [ghosted(image, picture / 255, 1, 1, share) for share in shares]
        assert min(np.abs(out - ghost).max() for ghost in ghosts) < 1.2 / 255


def random_pool(attack, rng, key=0):
    """Return a trigger of the attack with random pictures."""
    trigger = attack.init(jax.random.key(key))
    pool = rng.integers(0, 256, trigger["reflections"].shape, np.uint8)
    return trigger | {"reflections": jnp.asarray(pool)}


def test_a_stamped_image_depends_on_the_trigger_and_the_image_alone(rng):
    attack = RefoolConfig().build(INFO)
    trigger, stamp = random_pool(attack, rng), jax.jit(attack.stamp)
    images = as_float(jnp.asarray(rng.integers(0, 256, (20, *INFO.shape), np.uint8)))
    out, order = stamp(trigger, images), rng.permutation(20)
    np.testing.assert_allclose(stamp(trigger, images[order]), out[order], atol=LEVEL)
    for i in (0, 7):
        np.testing.assert_allclose(stamp(trigger, images[i : i + 1])[0], out[i], atol=LEVEL)
    other = stamp(trigger | {"key": jax.random.key_data(jax.random.key(1))}, images)
    assert (np.abs(other - out).max((1, 2, 3)) > 10 / 255).all()
    same = jnp.broadcast_to(images[0], images.shape)
    assert float(jnp.ptp(stamp(trigger, same), axis=0).max()) == 0
    levels = np.arange(20)[:, None, None, None] == np.arange(20)[0]  # only the first image changes
    moved = stamp(trigger, jnp.where(levels, jnp.clip(same + 1 / 255, 0, 1), same))
    assert float(jnp.abs(moved[0] - moved[1]).max()) > 10 / 255


def test_training_images_have_the_reflection_of_the_stamp(rng):
    attack = RefoolConfig().build(INFO)
    trigger = random_pool(attack, rng)
    images = as_float(jnp.asarray(rng.integers(0, 256, (6, *INFO.shape), np.uint8)))
    own = jnp.arange(6) % 2 == 0
    stamped = attack.stamp(trigger, images)
    for key in (1, 2):
        batch = attack.poison(trigger, jax.random.key(key), Batch(images, jnp.arange(6) % 4, own))
        np.testing.assert_array_equal(batch.images[own], stamped[own])
    assert not (stamped == images).all((1, 2, 3)).any()


@pytest.mark.parametrize("info", [INFO, GREY], ids=["colour", "grey"])
@pytest.mark.parametrize("settings", [{}, {"clean_label": True}, {"mode": "all_to_all"}])
def test_refool_keeps_the_contract(info, settings):
    attack = RefoolConfig(reflections=5, **settings).build(info)
    testing.check_attack(attack, info, tolerance=LEVEL)


def test_clean_label_poisons_images_of_the_target_class_alone():
    labels = jnp.arange(80) % 4
    attack = RefoolConfig(clean_label=True, rate_of="class", rate=0.2, target="c").build(INFO)
    chosen = attack.select(jax.random.key(0), labels)
    assert int(chosen.sum()) == 4 and (labels[chosen] == 2).all()
    assert set(np.asarray(labels[RefoolConfig().build(INFO).select(jax.random.key(0), labels)]))


def dataset_of(labels, rng):
    """Return a data set of random images with the given training labels."""
    labels = np.asarray(labels, np.int32)
    split = Split(rng.integers(0, 256, (len(labels), *INFO.shape), np.uint8), labels)
    return Dataset(split, split, INFO)


def rows_of(pool, dataset):
    """Return the training rows of the pictures of a pool."""
    images = np.asarray(dataset.train.images)
    return [int((images == picture).all((1, 2, 3)).argmax()) for picture in np.asarray(pool)]


@pytest.mark.parametrize("mode", ["all_to_one", "all_to_all"])
def test_the_pool_holds_training_images_of_other_classes(rng, mode):
    dataset = dataset_of(np.arange(40) % 4, rng)
    attack = RefoolConfig(reflections=24, mode=mode, target=1).build(INFO)
    prepared, lines = prepare(jax.random.key(0), None, None, dataset, attack)
    rows = rows_of(prepared.trigger["reflections"], dataset)
    assert lines == [] and prepared.images is None and len(set(rows)) == 24
    assert set(dataset.train.labels[rows]) == ({0, 2, 3} if mode == "all_to_one" else {0, 1, 2, 3})
    like = jax.eval_shape(attack.init, jax.random.key(0))
    made = jax.eval_shape(lambda: prepared.trigger)
    assert jax.tree.all(
        jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), like, made)
    )


def test_pictures_repeat_where_the_training_set_has_too_few(rng):
    dataset = dataset_of([0, 0, 1, 2, 3], rng)
    attack = RefoolConfig(reflections=7, rate=0.5).build(INFO)
    prepared, _ = prepare(jax.random.key(0), None, None, dataset, attack)
    counts = np.bincount(rows_of(prepared.trigger["reflections"], dataset), minlength=5)
    assert counts[:2].sum() == 0 and sorted(counts[2:]) == [2, 2, 3]
    with pytest.raises(AttackError, match="has only images of the target class; want a folder"):
        prepare(jax.random.key(0), None, None, dataset_of([0] * 20, rng), attack)


def test_pictures_of_a_folder_are_resized_and_taken_at_equal_distances(tmp_path):
    for i in range(6):
        Image.fromarray(np.full((5, 8, 3), 40 * i, np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    attack = RefoolConfig(folder=str(tmp_path)).build(INFO)
    assert attack.preparation is None
    pool = np.asarray(attack.init(jax.random.key(0))["reflections"])
    assert pool.shape == (6, *INFO.shape) and pool[:, 0, 0, 0].tolist() == [
        0,
        40,
        80,
        120,
        160,
        200,
    ]
    few = RefoolConfig(folder=str(tmp_path), reflections=3).build(GREY)
    pool = np.asarray(few.init(jax.random.key(0))["reflections"])
    assert pool.shape == (3, *GREY.shape) and pool[:, 0, 0, 0].tolist() == [0, 80, 160]


def test_settings_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(AttackError, match=r"folder: '/no/such': no such folder"):
        RefoolConfig(folder="/no/such").build(INFO)
    with pytest.raises(AttackError, match=f"folder: '{tmp_path}' has no pictures, want files like"):
        RefoolConfig(folder=str(tmp_path)).build(INFO)
    four = dataclasses.replace(INFO, shape=(12, 12, 4))
    with pytest.raises(AttackError, match="1 or 3 channels, the images of rgb have 4 channels"):
        RefoolConfig(folder=str(tmp_path)).build(four)
    (tmp_path / "broken.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"broken\.png: not a readable image"):
        RefoolConfig(folder=str(tmp_path)).build(INFO)
    small = dataclasses.replace(INFO, shape=(8, 12, 3))
    with pytest.raises(AttackError, match="resolution: 0 gives .* up to 8 pixels, .* 8×12 images"):
        RefoolConfig(resolution=0).build(small)
    with pytest.raises(ConfigError, match="mode: all_to_all does not apply to clean_label"):
        RefoolConfig(clean_label=True, mode="all_to_all")
    with pytest.raises(ConfigError, match="rate_of: class applies only to clean_label: true"):
        RefoolConfig(rate_of="class")


def test_refool_plants_a_backdoor_that_a_clean_model_does_not_have(model, dataset, victim):
    """The fixture's victim has the backdoor of another attack."""
    attack = RefoolConfig(rate=0.2).build(dataset.info)
    recipe = TrainConfig(steps=250, batch_size=64, augment="none", optimizer=OptimConfig(lr=0.05))
    found = train_backdoored(jax.random.key(0), model, dataset, attack, recipe)
    evaluate = make_evaluate(model, attack, dataset.info.num_classes)
    counts = evaluate(found.variables, found.trigger, dataset.test)
    assert counts.acc > 0.9 and counts.asr > 0.9
    assert evaluate(victim.variables, found.trigger, dataset.test).asr < 0.5
