"""Tests of SentiNet: GradCAM in closed form, the region, both scores, and the fixture."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax import testing
from d3jax.core.errors import ConfigError
from d3jax.core.types import DataInfo, Model, Outputs, Split, Variables
from d3jax.defenses import sentinet
from d3jax.defenses.input_detection.sentinet import grad_cam, layer_of, regions
from d3jax.models import PreActResNet18Config

INFO = DataInfo("two", (32, 32, 3), tuple("ab"), (0.5,) * 3, (0.5,) * 3)
NONE, KEY = Variables({}, {}), jax.random.key(0)
HEAD = jnp.array([[2.0, 0.0], [-1.0, 0.5], [0.5, 0.0]])


def apply(variables, images, *, train, edit=None):
    """Return logits that are linear in the mean over 4×4 cells, whose name is conv."""
    cells = images.reshape(len(images), 4, 8, 4, 8, 3).mean((2, 4))
    cells = (edit or {}).get("conv", lambda x: x)(cells)
    features = {"conv": cells, "pooled": cells.mean((1, 2))}
    return Outputs(4 * cells.mean((1, 2)) @ HEAD, features, {})


def activations():
    shapes = {"pooled": (3,), "conv": (4, 4, 3)}
    return {name: jax.ShapeDtypeStruct(one, jnp.float32) for name, one in shapes.items()}


LINEAR = Model(lambda key: NONE, apply, activations)


def one_cell(row, column):
    """Return the bilinear map of 32×32 pixels of a single hot cell of 4×4."""
    cells = jnp.zeros((1, 4, 4)).at[0, row, column].set(1.0)
    return jax.image.resize(cells, (1, 32, 32), "bilinear")


@pytest.mark.parametrize(("cell", "pixels"), [((0, 0), 25), ((1, 2), 12)])
def test_the_region_of_one_hot_cell_has_the_published_number_of_pixels(cell, pixels):
    mask = regions(one_cell(*cell), 0.85)
    assert mask.shape == (1, 32, 32, 1) and int(mask.sum()) == pixels


def test_a_constant_map_has_no_region():
    assert not regions(jnp.zeros((1, 8, 8)), 0.85).any()


def test_grad_cam_of_a_linear_model_is_that_of_its_weights(rng):
    """The slope of the logit of class k is 4/16 · w_k in every cell."""
    images = rng.random((5, 32, 32, 3)).astype(np.float32)
    cells = images.reshape(5, 4, 8, 4, 8, 3).mean((2, 4))
    head = np.asarray(HEAD)
    label = (cells.mean((1, 2)) @ head).argmax(1)
    cam = np.maximum((cells * 4 / 16 * head.T[label][:, None, None]).sum(-1), 0)
    wanted = np.asarray(jax.image.resize(cam, (5, 32, 32), "bilinear"))
    wanted = wanted - wanted.min((1, 2), keepdims=True)
    found = grad_cam(LINEAR, "conv", NONE, images)
    assert wanted.max() > 0.01
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def bright_corner():
    """Return an image whose first cell is red, and which is green elsewhere, as levels."""
    image = np.zeros((1, 32, 32, 3), np.uint8)
    image[..., 1] = 3
    image[0, :8, :8, 0] = 255
    return image


def by_numpy(images, overlays):
    """Return both scores of SentiNet by its formula, in float64."""
    head, pixels = np.asarray(HEAD, np.float64), images / 255.0
    scores = []

    def logits(x):
        return 4 * x.mean((1, 2)) @ head

    for image in pixels:
        label = logits(image[None])[0].argmax()
        cells = image.reshape(4, 8, 4, 8, 3).mean((1, 3))
        cam = np.maximum((cells * head.T[label]).sum(-1), 0)
        cam = np.asarray(jax.image.resize(cam, (32, 32), "bilinear"))
        cam = cam - cam.min()
        mask = (cam >= 0.85 * cam.max())[..., None]
        found = logits(np.where(mask, image, overlays / 255.0))
        odds = np.exp(found) / np.exp(found).sum(1, keepdims=True)
        scores.append((odds.max(1).mean(), np.mean(found.argmax(1) == label)))
    return np.array(scores).T


@pytest.mark.parametrize(("score", "row"), [("confidence", 0), ("fooled", 1)])
def test_scores_are_those_of_the_formula(rng, score, row):
    noise = rng.integers(0, 120, (9, 32, 32, 3))
    reserved = Split((noise * rng.random((9, 1, 1, 3))).astype(np.uint8), np.zeros(9, np.int32))
    images = np.concatenate([reserved.images[::-1][:4], bright_corner()])
    detector = sentinet(overlays=7, score=score).build(INFO)
    state = detector.prepare(KEY, LINEAR, NONE, reserved)
    assert state["overlays"].shape == (7, 32, 32, 3)
    found = detector.score(LINEAR, NONE, state, images)
    wanted = by_numpy(images, np.asarray(state["overlays"]))[row]
    assert np.ptp(wanted) > 0.02
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert detector.threshold(state) == pytest.approx(0.9)


def test_noise_is_pasted_on_for_the_confidence_and_reserved_images_for_fooled(rng):
    images = rng.integers(0, 256, (6, 32, 32, 3), np.uint8)
    reserved = Split(images, np.zeros(6, np.int32))
    made = sentinet(overlays=6, score="fooled").build(INFO)
    drawn = np.asarray(made.prepare(KEY, LINEAR, NONE, reserved)["overlays"])
    assert {one.tobytes() for one in drawn} == {one.tobytes() for one in images}
    noise = sentinet(overlays=40).build(INFO).prepare(KEY, LINEAR, NONE, reserved)["overlays"]
    assert noise.dtype == np.uint8
    assert abs(float(noise.mean(dtype=float)) - 127.5) < 1
    assert {int(noise.min()), int(noise.max())} == {0, 255}


def test_the_layer_is_the_last_convolution_or_the_named_one():
    preact = PreActResNet18Config(width=2).build(INFO)
    assert layer_of("", preact, INFO) == "block4_2/conv2"  # the published layer4.1.conv2
    assert layer_of("block3", preact, INFO) == "block3"


def test_models_without_a_suitable_layer_are_refused(fixture):
    check = sentinet().build(INFO).check
    bare = LINEAR._replace(activations=None)
    testing.check_refuses(check, bare, None, 100, words="more than one place, and this model names")
    with pytest.raises(ConfigError, match="layer: 'pooled' is no activation"):
        sentinet(layer="pooled").build(INFO).check(LINEAR, NONE, 100)


def test_too_few_reserved_images_are_refused_only_where_they_are_pasted_on():
    check = sentinet(score="fooled").build(INFO).check
    testing.check_refuses(check, LINEAR, NONE, 9, words="overlays: 100 are more than the 9")
    sentinet().build(INFO).check(LINEAR, NONE, 9)


def test_a_call_has_at_most_2000_pasted_images():
    assert sentinet().build(INFO).batch_size == 20
    assert sentinet(overlays=5000).build(INFO).batch_size == 1


@pytest.mark.parametrize(("score", "auroc"), [("confidence", 0.5), ("fooled", 0.6)])
def test_sentinet_keeps_the_contract_on_the_fixture(fixture, score, auroc):
    detector = sentinet(overlays=20, score=score).build(fixture.dataset.info)
    found = testing.check_input_detector(detector, fixture, auroc=auroc)
    assert np.ptp(found.scores) > 0.1
