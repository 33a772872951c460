"""STRIP, a detector of triggered inputs by superimposed images (Gao et al., ACSAC 2019).

Source: arXiv 1902.06531; the name means strong intentional perturbation. A triggered input keeps
its prediction when other images are added to it. The score of an input x is minus the mean entropy
of the predictions for x + α · x_j, over clean images x_j.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from ...config.fields import check_fields, option
from ...core.images import as_float
from ...core.types import Array, DataInfo, InputDetector, Model, Split, Variables
from ...data.batched import batched_map
from ...runtime.compilation import fast
from ...training.loop import Hooks
from .common import (
    MIXED,
    check_overlays,
    clean_quantile,
    draw_overlays,
    fpr_option,
    threshold_of,
)


@dataclasses.dataclass(frozen=True)
class STRIPConfig:
    """Settings of STRIP, which rejects inputs whose predictions stay sure with images added.

    The defaults are BackdoorBench's.
    """

    alpha: float = option(1.0, "α, weight of a clean image that is added to an input", above=0)
    overlays: int = option(100, "number of clean images that are added to every input", low=1)
    fpr: float = fpr_option(0.1)

    __post_init__ = check_fields

    def build(self, info: DataInfo) -> InputDetector:
        """Build STRIP, a detector of triggered inputs, for the data set that `info` describes."""
        return make_strip(self, info)


@functools.partial(fast, static=3)
def _entropies(
    model: Model,
    alpha: float,
    mean: tuple[float, ...],
    variables: Variables,
    overlays: Array,
    images: Array,
) -> jax.Array:
    """Return the mean entropy [B] of predictions for each image with clean images added, in nats.

    Images are added in the normalised space of the data set. In pixels that is
    x + α · (x_j − mean).
    """
    moved = alpha * (as_float(overlays) - jnp.asarray(mean))
    mixed = as_float(images)[:, None] + moved[None]
    logits = model.apply(variables, mixed.reshape(-1, *images.shape[1:]), train=False).logits
    odds = jax.nn.softmax(logits.astype(jnp.float32))
    entropy = -(odds * jnp.log(odds + 1e-8)).sum(-1)
    return entropy.reshape(mixed.shape[:2]).mean(1)


def make_strip(config: STRIPConfig, info: DataInfo) -> InputDetector:
    """Return STRIP, an `InputDetector` that rejects inputs whose predictions have a low entropy.

    The threshold is minus the `fpr` quantile of the entropies of the reserved images. An entropy is
    between 0 and ln K. The state has the `overlays` [n, H, W, C] uint8 to add to inputs, and the
    `threshold`.
    """
    batch_size = max(1, MIXED // config.overlays)

    def score(
        model: Model, variables: Variables, state: dict[str, Any], images: Array
    ) -> jax.Array:
        return -_entropies(model, config.alpha, info.mean, variables, state["overlays"], images)

    def prepare(
        key: jax.Array, model: Model, variables: Variables, reserved: Split, hooks: Hooks = Hooks()
    ) -> dict[str, Any]:
        overlays = draw_overlays(key, reserved, config.overlays)
        compute = functools.partial(score, model, variables, {"overlays": overlays})
        scores = batched_map(compute, reserved.images, batch_size=batch_size)
        return {"overlays": overlays, "threshold": clean_quantile(scores, config.fpr)}

    def check(model: Model, shapes: Variables, size: int) -> None:
        check_overlays(config.overlays, size)

    return InputDetector(prepare, score, threshold_of, check, batch_size)
