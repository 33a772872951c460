"""Tests of FeatureRE: its terms against NumPy, its mixed value, its verdict and its U-Net."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax.core.errors import ConfigError
from d3jax.core.types import Batch, DataInfo, Model, Outputs, Split, Variables
from d3jax.defenses import feature_re
from d3jax.defenses.model_detection.feature_re import judge_mixed
from d3jax.defenses.model_detection.feature_search import (
    VALUES,
    Progress,
    Reversed,
    cosine_of,
    ended,
    feature_loss,
    mask_of,
    spread_of,
)
from d3jax.models.unet import unet
from d3jax.training.step import TrainData

INFO = DataInfo("some", (4, 4, 3), tuple("abc"), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))


def softmax_ce(logits, label):
    shifted = logits - logits.max(-1, keepdims=True)
    return np.log(np.exp(shifted).sum(-1)) - shifted[:, label]


def test_spread_and_cosine_match_numpy(rng):
    features, mask = rng.normal(size=(6, 2, 2, 3)), rng.uniform(0.1, 0.9, (2, 2, 3))
    counted = np.array([1, 0, 1, 1, 0, 1], np.float32)
    want = (mask * features[counted > 0].std(0, ddof=1)).sum() / mask.sum()
    found = spread_of(jnp.asarray(features), jnp.asarray(counted), jnp.asarray(mask))
    np.testing.assert_allclose(found, want, rtol=1e-5)
    one, two = rng.normal(size=(2, 12))
    want = one @ two / np.linalg.norm(one) / np.linalg.norm(two)
    np.testing.assert_allclose(cosine_of(jnp.asarray(one), jnp.asarray(two)), want, rtol=1e-5)
    assert cosine_of(jnp.zeros(3), jnp.ones(3)) == 0


def test_the_gradient_of_the_spread_is_finite_where_features_are_equal():
    gradient = jax.grad(lambda x: spread_of(x, jnp.ones(4), jnp.ones(2)))(jnp.ones((4, 2)))
    assert np.isfinite(gradient).all()


def test_the_first_mask_is_the_published_one():
    np.testing.assert_allclose(mask_of(jnp.ones(3)), np.tanh(1) / 2 + 0.5, rtol=1e-6)


LINEAR = np.random.default_rng(3).normal(size=(12, 3)).astype(np.float32)


def apply(variables, images, *, train, edit=None):
    """Return a linear classifier of one activation `maps` [2, 2, 3]: the mean of 2×2 pixels."""
    maps = images.reshape(-1, 2, 2, 2, 2, 3).mean((2, 4))
    maps = (edit or {}).get("maps", lambda x: x)(maps)
    return Outputs(maps.reshape(len(maps), -1) @ variables.params["head"], {"maps": maps}, {})


MODEL = Model(
    lambda key: Variables({"head": jnp.asarray(LINEAR)}, {}),
    apply,
    lambda: {"maps": jax.ShapeDtypeStruct((2, 2, 3), jnp.float32)},
)


@pytest.mark.parametrize("searching", [False, True])
def test_the_loss_matches_an_independent_computation(rng, searching):
    """The transformation multiplies the normalised image, so that every term can be written out."""
    images = rng.uniform(size=(8, 4, 4, 3)).astype(np.float32)
    labels = np.array([0, 1, 2, 1, 0, 2, 1, 1], np.int32)
    features = np.asarray(apply(MODEL.init(None), images, train=False).features["maps"])
    centre, label, factor = features[labels == 1].mean(0), 1, 1.7
    config = feature_re(warm_up=3, batch_size=4, spread=0.05, change=0.1)
    loss = feature_loss(MODEL, config, INFO, lambda params, x: params * x, "maps")
    weights = {"change": 0.5, "success": 0.25, "spread": 2.0}
    progress = Progress(jnp.int32(6 if searching else 0), {}, weights, None)
    raw = rng.normal(size=(2, 2, 3)).astype(np.float32)
    inputs = {"label": jnp.int32(label), "centre": jnp.asarray(centre), "features": features}
    data = TrainData(
        Split(images, labels),
        np.zeros(8, bool),
        (jnp.asarray(raw), progress),
        MODEL.init(None).params,
        inputs,
    )
    data = data._replace(reference_params=MODEL.init(None))
    batch = Batch(jnp.asarray(images[:4]), jnp.asarray(labels[:4]), labels[:4], np.zeros(4, bool))
    key = jax.random.key(2)
    total, (_, values) = loss(jnp.float32(factor), {}, batch, key, data)

    mean, std = np.array(INFO.mean), np.array(INFO.std)
    plain = (images[:4].astype(np.float64) - mean) / std
    moved = factor * plain
    others = features[np.asarray(jax.random.randint(key, (4,), 0, 8))].astype(np.float64)
    mask = np.tanh(raw.astype(np.float64)) / (2 + 1e-7) + 0.5
    maps = (moved * std + mean).reshape(-1, 2, 2, 2, 2, 3).mean((2, 4))
    inside = mask * maps + (1 - mask) * others if searching else maps
    logits = inside.reshape(4, -1) @ LINEAR
    kept = labels[:4] != label
    ce = softmax_ce(logits, label)[kept].mean()
    success = (logits.argmax(-1) == label)[kept].mean()
    change = ((moved - plain) ** 2).mean((1, 2, 3))[kept].mean()
    spread = (mask * maps[kept].std(0, ddof=1)).sum() / mask.sum()
    average = maps[kept].mean(0).ravel()
    cosine = centre.ravel() @ average / np.linalg.norm(centre) / np.linalg.norm(average)
    if searching:
        by_mask = (mask * maps + (1 - mask) * others).reshape(4, -1) @ LINEAR
        want = 5 * max(cosine, 0) + softmax_ce(by_mask, label)[kept].mean()
        want += 10 * (1 + 2.0) * spread * (spread > 0.05) + 10 * (1 + 0.5) * change * (change > 0.1)
        want += (1 + 0.25) * ce * (success < 0.9) + mask.sum() * (mask.sum() > 1)
    else:
        want = ce + 100 * change * (change > 0.1)
    np.testing.assert_allclose(total, want, rtol=2e-5)
    found = {"cosine": cosine, "success": success, "change": change, "spread": spread}
    for name, value in found.items():
        np.testing.assert_allclose(values[name], value, rtol=2e-5, err_msg=name)


def test_the_mixed_value_of_a_pass_and_the_best_pass():
    config = feature_re(warm_up=1, change=0.1, spread=0.5, success=0.9)
    worst = Reversed(*(jnp.float32(9) for _ in Reversed._fields))
    ones = dict.fromkeys(("change", "success", "spread"), jnp.float32(1))
    means = {"cosine": 0.2, "success": 0.8, "change": 0.15, "size": 12.0, "spread": 0.4}
    sums = {name: jnp.float32(4 * means[name]) for name in VALUES}
    first = Progress(jnp.int32(8), sums, ones, worst)
    after = ended(first, config, per_pass=4, limit=10)
    np.testing.assert_allclose(after.best.mixed, 0.2 - 0.8 + 0.5 + 0.2, rtol=1e-5)
    np.testing.assert_allclose(after.weights["success"], 0.1 / 0.9, rtol=1e-5)
    assert float(after.weights["spread"]) == 0 and set(map(float, after.sums.values())) == {0.0}
    again = ended(after._replace(sums=first.sums | {"success": jnp.float32(2)}), config, 4, 10)
    assert float(again.best.mixed) == float(after.best.mixed)
    early = ended(first._replace(steps=jnp.int32(4)), config, 4, 10)
    assert float(early.best.mixed) == 9 and float(early.weights["success"]) == 1


def test_classes_below_the_threshold_are_flagged():
    parts = [np.zeros(4, np.float32)] * 5
    verdict = judge_mixed(Reversed(np.array([0.1, -0.8, np.nan, -0.74]), *parts), -0.75)
    assert verdict.flagged.tolist() == [False, True, False, False] and verdict.target == 1
    assert verdict.statistic > verdict.threshold


def test_too_few_images_and_an_unknown_layer_are_refused(fixture):
    info = fixture.dataset.info
    with pytest.raises(ConfigError, match="batch_size: 256 is more than the 100 reserved images"):
        feature_re().build(info).check(fixture.model, None, 100)
    with pytest.raises(ConfigError, match="layer: 'conv9' is no activation"):
        feature_re(layer="conv9", batch_size=20).build(info).check(fixture.model, None, 100)


def test_the_unet_keeps_the_shape_and_sees_the_whole_image():
    info = DataInfo("some", (32, 32, 3), ("a", "b"), (0.5,) * 3, (0.25,) * 3)
    init, transform = unet(info, 2)
    params = init(jax.random.key(0))
    images = jax.random.uniform(jax.random.key(1), (2, 32, 32, 3))
    assert transform(params, images).shape == images.shape
    corner = jax.grad(lambda x: transform(params, x)[0, 0, 0, 0])(images)
    assert np.abs(corner[0, 31, 31]).max() > 0 and np.abs(corner[1]).max() == 0
    assert {"down4_1", "middle_2", "up1_2", "out"} <= set(params)
