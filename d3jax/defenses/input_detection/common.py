"""Thresholds and predictions shared by the detectors of triggered inputs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...config.fields import check_fields, check_foreign, option
from ...core.errors import refuse
from ...core.random import stream
from ...core.types import Array, Model, Split, Variables
from ...runtime.compilation import fast

MIXED = 2000
"""The largest number of images, made of inputs and other images, in one call of the model."""


def fpr_option(default: float) -> Any:
    """Return the setting that says how many clean inputs a detector rejects."""
    return option(
        default, "share of the reserved clean images that the threshold rejects", above=0, high=1
    )


def rule_option() -> Any:
    """Return the setting that says where the threshold of a detector comes from."""
    return option(
        "constant",
        "source of the threshold: the published constant `threshold`, or the quantile of the "
        "scores of reserved images that rejects the share `fpr`",
    )


def check_rule(config: Any) -> None:
    """Check the settings of a detector that has `rule`, `threshold` and `fpr`.

    Raises `ConfigError` also for a threshold or a share that the rule does not read.
    """
    check_fields(config)
    check_foreign(config, "rule", {"threshold": ("constant",), "fpr": ("quantile",)})


def threshold_by_rule(config: Any, scores: Callable[[], Array]) -> jax.Array:
    """Return the threshold, float32 [], by `config.rule`; `scores` computes those of clean images.

    The scores are computed for the rule "quantile" only.
    """
    if config.rule == "constant":
        return jnp.float32(config.threshold)
    return clean_quantile(scores(), config.fpr)


def clean_quantile(scores: Array, fpr: float) -> jax.Array:
    """Return the threshold, float32 [], that rejects the share `fpr` of clean images by scores."""
    return jnp.float32(np.quantile(np.asarray(scores), 1 - fpr))


def threshold_of(state: Mapping[str, Any]) -> float:
    """Return the threshold in the state of a prepared input detector."""
    return float(state["threshold"])


@functools.partial(fast, static=1)
def logits_of(model: Model, variables: Variables, images: Array) -> jax.Array:
    """Return the float32 logits [B, K] of a model in test mode, for float images in [0, 1]."""
    return model.apply(variables, images, train=False).logits.astype(jnp.float32)


def draw_overlays(key: jax.Array, reserved: Split, count: int) -> jax.Array:
    """Draw the reserved images [count, H, W, C] uint8 that are mixed with every input."""
    rows = jax.random.permutation(stream(key, "overlays"), len(reserved.labels))
    return jnp.asarray(reserved.images)[rows[:count]]


def check_overlays(count: int, size: int) -> None:
    """Raise `ConfigError` where there are fewer reserved images than the `count` to mix with."""
    refuse(size < count, f"overlays: {count} are more than the {size} reserved images")
