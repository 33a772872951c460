"""Tests of what an examination reads: model, images, and the guess of the normalisation."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from d3jax.core.errors import ConfigError, DataError
from d3jax.core.types import Model, Outputs, Split, Variables
from d3jax.examine.images import Wanted, read_inputs, read_labelled
from d3jax.examine.normalisation import choose_normalisation, given_normalisation

WANTED = Wanted(channels=3, classes=4, size=8)
NOTHING = Variables({}, {})


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, (12, 8, 8, 3), np.uint8)


def grey_model(mean, std, classes=8):
    """Return a model without normalisation, that was trained with one: it tells levels of grey."""

    def apply(variables, images, *, train):
        grey = (images * jnp.asarray(std) + jnp.asarray(mean)).mean((1, 2, 3))
        centres = (jnp.arange(classes) + 0.5) / classes
        return Outputs(-jnp.abs(grey[:, None] - centres), {}, {})

    return Model(lambda key: NOTHING, apply)


@pytest.mark.parametrize(
    ("mean", "std", "named"),
    [
        ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "none"),
        ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010), "CIFAR-10 of many programs"),
        ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "0.5 for mean"),
    ],
)
def test_the_normalisation_of_the_training_is_found(rng, mean, std, named):
    labels = rng.integers(0, 8, 400)
    levels = np.round((labels + rng.uniform(0.02, 0.98, 400)) / 8 * 255)
    images = np.broadcast_to(levels[:, None, None, None], (400, 4, 4, 3)).astype(np.uint8)
    labelled = Split(images, labels.astype(np.int32))
    found = choose_normalisation(grey_model(mean, std), NOTHING, labelled, 3)
    assert (found.mean, found.std) == (mean, std)
    assert named in found.text and "400 labelled images" in found.text


def test_labels_in_another_order_are_refused(rng):
    labels = rng.integers(0, 8, 400)
    levels = np.round((labels + 0.5) / 8 * 255)
    images = np.broadcast_to(levels[:, None, None, None], (400, 4, 4, 3)).astype(np.uint8)
    labelled = Split(images, ((labels + 4) % 8).astype(np.int32))
    with pytest.raises(DataError, match="are the labels in the order of the model's classes"):
        choose_normalisation(grey_model((0.0,) * 3, (1.0,) * 3), NOTHING, labelled, 3)


def test_without_labelled_images_the_normalisation_is_called_a_guess():
    assert "a guess" in choose_normalisation(grey_model((0.0,), (1.0,)), NOTHING, None, 1).text


def test_a_given_normalisation_must_fit_the_channels():
    assert given_normalisation((0.5,), (0.25,), 1)[:2] == ((0.5,), (0.25,))
    with pytest.raises(ConfigError, match="--std: has 0 values, want 3"):
        given_normalisation((0.5,) * 3, (), 3)
    with pytest.raises(ConfigError, match=r"--std: 0.0 is not above 0"):
        given_normalisation((0.5,), (0.0,), 1)


@pytest.mark.parametrize("prefix", ["", "test_"])
def test_labelled_images_are_read_from_an_npz(tmp_path, images, prefix):
    labels = np.arange(12) % 4
    arrays = {f"{prefix}images": images, f"{prefix}labels": labels, "class_names": list("abcd")}
    np.savez(tmp_path / "some.npz", **arrays)
    found = read_labelled(tmp_path / "some.npz", "test", WANTED)
    np.testing.assert_array_equal(found.split.images, images)
    np.testing.assert_array_equal(found.split.labels, labels)
    assert found.classes == ("a", "b", "c", "d")


def test_labelled_images_are_read_from_folders(tmp_path, images):
    for i, image in enumerate(images):
        folder = tmp_path / f"class{i % 4}"
        folder.mkdir(exist_ok=True)
        Image.fromarray(image).save(folder / f"{i:02}.png")
    found = read_labelled(tmp_path, "test", WANTED)
    np.testing.assert_array_equal(
        found.split.images, images[[0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]]
    )
    assert found.classes == ("class0", "class1", "class2", "class3")
    with pytest.raises(DataError, match="has 4 folders, and the model has 5 classes"):
        read_labelled(tmp_path, "test", WANTED._replace(classes=5))


def test_an_npz_without_labels_or_with_other_classes_is_refused(tmp_path, images):
    np.savez(tmp_path / "some.npz", images=images)
    with pytest.raises(DataError, match="has no labels"):
        read_labelled(tmp_path / "some.npz", "test", WANTED)
    np.savez(tmp_path / "more.npz", images=images, labels=np.arange(12))
    with pytest.raises(DataError, match=r"labels\[4\] is 4"):
        read_labelled(tmp_path / "more.npz", "test", WANTED)


def test_inputs_are_read_from_pictures_and_from_an_npz(tmp_path, images):
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i:02}.png")
    found, files = read_inputs(tmp_path, WANTED)
    np.testing.assert_array_equal(found, images)
    assert files[:2] == ["00.png", "01.png"]
    np.savez(tmp_path / "some.npz", images=images)
    np.testing.assert_array_equal(read_inputs(tmp_path / "some.npz", WANTED)[0], images)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has 0 pictures"):
        read_inputs(tmp_path / "empty", WANTED)
