"""SCALE-UP, a detector of triggered inputs by brightened copies (Guo et al., ICLR 2023).

Source: arXiv 2302.03251. A triggered input keeps its prediction when its pixels are multiplied.
The score of an input x is its scaled prediction consistency (SPC): the share of the scales s for
which the prediction for clip(s · x, 0, 1) is that for x.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from ...config.fields import option
from ...core.errors import ConfigError
from ...core.images import as_float
from ...core.types import Array, DataInfo, InputDetector, Model, Split, Variables
from ...data.batched import batched_map
from ...training.loop import Hooks
from .common import check_rule, fpr_option, logits_of, rule_option, threshold_by_rule, threshold_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScaleUpConfig:
    """Settings of SCALE-UP, which rejects inputs that keep their prediction when brightened.

    The defaults are the authors': five scales, the threshold 0.5, and no clean images. With
    `standardise` it is their variant with clean images.
    """

    scales: tuple[float, ...] = option(
        (3.0, 5.0, 7.0, 9.0, 11.0),
        "numbers by which the pixels are multiplied",
        above=0,
        filled=True,
    )
    standardise: bool = option(
        False,
        "subtract the mean SPC of the reserved images of the predicted class, and divide by its "
        "standard deviation",
    )
    rule: Literal["constant", "quantile"] = rule_option()
    threshold: float = option(0.5, "score above which an input is rejected")
    fpr: float = fpr_option(0.1)

    __post_init__ = check_rule

    def build(self, info: DataInfo) -> InputDetector:
        """Build SCALE-UP, a detector of triggered inputs, for the data that `info` describes."""
        return make_scale_up(self, info)


def consistency(
    model: Model, scales: tuple[float, ...], variables: Variables, images: Array
) -> tuple[jax.Array, jax.Array]:
    """Return the predictions [B] int32 for uint8 images, and their SPC [B] float32 over scales."""

    def labels(scale: float) -> jax.Array:
        copies = jnp.clip(as_float(images) * np.float32(scale), 0, 1)
        return logits_of(model, variables, copies).argmax(-1)

    predicted = labels(1.0)
    kept = jnp.stack([labels(scale) == predicted for scale in scales])
    return predicted, kept.mean(0, dtype=jnp.float32)


def class_statistics(predicted: Array, spc: Array, classes: int) -> dict[str, jax.Array]:
    """Return `mean` and `std` [K] of the SPC of images, for each predicted class.

    A class without two different values has the standard deviation of all images, and a class
    without images also their mean. A standard deviation of 0 over all images is replaced by 1.
    """
    predicted, spc = np.asarray(predicted), np.asarray(spc, np.float64)
    mean, std = np.full(classes, spc.mean()), np.full(classes, spc.std() or 1.0)
    for label in np.unique(predicted):
        own = spc[predicted == label]
        mean[label], std[label] = own.mean(), own.std() if np.ptp(own) else std[label]
    return {"mean": jnp.asarray(mean, jnp.float32), "std": jnp.asarray(std, jnp.float32)}


def make_scale_up(config: ScaleUpConfig, info: DataInfo) -> InputDetector:
    """Return SCALE-UP, an `InputDetector` that rejects inputs with a consistent prediction.

    It reads nothing but the predicted classes, so it suits a model that is a black box. The state
    has the `threshold`, and with `standardise` the `mean` and `std` [K] of the SPC by class.

    It can fail for white and for checkered patches. BackdoorBox's issue 75 reports an AUROC of
    0.4508 for a white one.

    Deviation: BackdoorBox standardises by the mean and standard deviation of all clean images, for
    their true labels. The paper and d3jax do so by predicted class.
    """

    def score(
        model: Model, variables: Variables, state: dict[str, Any], images: Array
    ) -> jax.Array:
        predicted, spc = consistency(model, config.scales, variables, images)
        if not config.standardise:
            return spc
        return (spc - state["mean"][predicted]) / state["std"][predicted]

    def prepare(
        key: jax.Array, model: Model, variables: Variables, reserved: Split, hooks: Hooks = Hooks()
    ) -> dict[str, Any]:
        state: dict[str, Any] = {}

        def over_reserved(function: Any) -> Any:
            return batched_map(function, reserved.images, batch_size=500)

        if config.standardise:
            compute = functools.partial(consistency, model, config.scales, variables)
            predicted, spc = over_reserved(compute)
            state |= class_statistics(predicted, spc, info.num_classes)
        compute = functools.partial(score, model, variables, state)
        return state | {"threshold": threshold_by_rule(config, lambda: over_reserved(compute))}

    def check(model: Model, shapes: Variables, size: int) -> None:
        if config.standardise and size < info.num_classes:
            raise ConfigError(
                f"standardise: {size} reserved images are too few for the statistics of "
                f"{info.num_classes} classes; reserve more, or leave it false"
            )

    return InputDetector(prepare, score, threshold_of, check)
