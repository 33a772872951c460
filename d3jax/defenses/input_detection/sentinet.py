"""SentiNet, a detector of triggered inputs by salient regions (Chou et al., IEEE SPW 2020).

Source: arXiv 1812.00292. GradCAM finds the region of an input that decides its prediction. If the
region is a trigger, the model predicts the same class wherever the region is pasted, and with a
high confidence even on noise.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp

from ...config.fields import option
from ...core.images import as_float
from ...core.random import stream
from ...core.types import Array, DataInfo, InputDetector, Model, Split, Variables
from ...data.batched import batched_map
from ...runtime.compilation import fast
from ...training.loop import Hooks
from ..activations import check_map, convolutions_of
from .common import (
    MIXED,
    check_overlays,
    check_rule,
    draw_overlays,
    fpr_option,
    logits_of,
    rule_option,
    threshold_by_rule,
    threshold_of,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SentiNetConfig:
    """Settings of SentiNet, which rejects inputs whose salient region decides for other images too.

    The defaults are BackdoorBench's: an input is rejected if the mean confidence on 100 images of
    noise with its region is above 0.9.
    """

    score: Literal["confidence", "fooled"] = option(
        "confidence",
        "score of an input; confidence: the mean confidence on noise with its region; fooled: the "
        "share of reserved images that get its class with its region",
    )
    layer: str = option(
        "", "name of the activation for GradCAM (empty: the last convolution with several places)"
    )
    overlays: int = option(100, "number of images on which a region is pasted", low=1)
    mask: float = option(
        0.85, "share of GradCAM's maximum from which a pixel is in the region", above=0, high=1
    )
    rule: Literal["constant", "quantile"] = rule_option()
    threshold: float = option(0.9, "score above which an input is rejected")
    fpr: float = fpr_option(0.1)

    __post_init__ = check_rule

    def build(self, info: DataInfo) -> InputDetector:
        """Build SentiNet, a detector of triggered inputs, for the data that `info` describes."""
        return make_sentinet(self, info)


def layer_of(layer: str, model: Model, info: DataInfo) -> str:
    """Return the name of the activation for GradCAM: `layer`, or the last convolution.

    Raises `ConfigError` if it is no activation of more than one place.
    """
    found = layer or convolutions_of(model, info)[-1]
    check_map(found, model, info, "layer")
    return found


@functools.partial(fast, static=2)
def grad_cam(model: Model, layer: str, variables: Variables, images: Array) -> jax.Array:
    """Return GradCAM [B, H, W] of float images for their predicted class, from 0 up.

    It is relu(Σ_c mean(∂z/∂A_c) · A_c) for the predicted class's logit z and the channels A_c of
    the activation, rescaled bilinearly. The least value of every image is subtracted.
    """
    assert model.activations is not None  # layer_of found the name among them
    shape = (len(images), *model.activations()[layer].shape)

    def logit(zero: jax.Array) -> tuple[jax.Array, jax.Array]:
        edit = {layer: lambda x: x + zero.astype(x.dtype)}
        outputs = model.apply(variables, images, train=False, edit=edit)
        return outputs.logits.max(-1).sum(), outputs.features[layer]

    slopes, activation = jax.grad(logit, has_aux=True)(jnp.zeros(shape))
    weights = slopes.mean((1, 2), keepdims=True)
    cam = jax.nn.relu((weights * activation.astype(jnp.float32)).sum(-1))
    cam = jax.image.resize(cam, images.shape[:3], "bilinear")
    return cam - cam.min((1, 2), keepdims=True)


def regions(cam: jax.Array, share: float) -> jax.Array:
    """Return the mask [B, H, W, 1] of pixels with at least a `share` of the maximum of GradCAM.

    A map that is constant has no region.
    """
    top = cam.max((1, 2), keepdims=True)
    return ((cam >= share * top) & (top > 0))[..., None]


@jax.jit
def _pasted(images: jax.Array, masks: jax.Array, overlays: Array) -> jax.Array:
    """Return images [B · n, H, W, C]: the masked region of each image on each of the overlays."""
    mixed = jnp.where(masks[:, None], images[:, None], as_float(overlays)[None])
    return mixed.reshape(-1, *images.shape[1:])


def draw_backgrounds(
    key: jax.Array, config: SentiNetConfig, info: DataInfo, reserved: Split
) -> jax.Array:
    """Draw the images [n, H, W, C] uint8 on which regions are pasted: noise or reserved images."""
    if config.score == "fooled":
        return draw_overlays(key, reserved, config.overlays)
    shape = (config.overlays, *info.shape)
    return jax.random.randint(stream(key, "noise"), shape, 0, 256).astype(jnp.uint8)


def make_sentinet(config: SentiNetConfig, info: DataInfo) -> InputDetector:
    """Return SentiNet, an `InputDetector` that pastes the salient region of an input elsewhere.

    The state has the `overlays` [n, H, W, C] uint8: uniform noise for the confidence, reserved
    images for `fooled`; and the `threshold`. The paper draws a boundary in the plane of both
    scores. BackdoorBench rejects by the confidence alone.

    Deviations: BackdoorBench draws the noise for every input, and takes clean images from the test
    set. Here all inputs share the noise, and the images are reserved ones. BackdoorBench normalises
    the first three columns of pixels only.
    """
    batch_size = max(1, MIXED // config.overlays)

    def score(
        model: Model, variables: Variables, state: dict[str, Any], images: Array
    ) -> jax.Array:
        pixels, layer = as_float(jnp.asarray(images)), layer_of(config.layer, model, info)
        masks = regions(grad_cam(model, layer, variables, pixels), config.mask)
        mixed = _pasted(pixels, masks, state["overlays"])
        logits = logits_of(model, variables, mixed).reshape(len(images), config.overlays, -1)
        if config.score == "confidence":
            return jax.nn.softmax(logits).max(-1).mean(1)
        predicted = logits_of(model, variables, pixels).argmax(-1)
        return (logits.argmax(-1) == predicted[:, None]).mean(1, dtype=jnp.float32)

    def prepare(
        key: jax.Array, model: Model, variables: Variables, reserved: Split, hooks: Hooks = Hooks()
    ) -> dict[str, Any]:
        state: dict[str, Any] = {"overlays": draw_backgrounds(key, config, info, reserved)}
        compute = functools.partial(score, model, variables, state)
        threshold = threshold_by_rule(
            config, lambda: batched_map(compute, reserved.images, batch_size=batch_size)
        )
        return state | {"threshold": threshold}

    def check(model: Model, shapes: Variables, size: int) -> None:
        layer_of(config.layer, model, info)
        if config.score == "fooled":
            check_overlays(config.overlays, size)

    return InputDetector(prepare, score, threshold_of, check, batch_size)
