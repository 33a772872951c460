"""Thresholds shared by the detectors of triggered inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...config.fields import option
from ...core.types import Array


def fpr_option(default: float) -> float:
    """Return the setting that says how many clean inputs a detector rejects."""
    return option(
        default, "share of the reserved clean images that the threshold rejects", above=0, high=1
    )


def clean_quantile(scores: Array, fpr: float) -> jax.Array:
    """Return the threshold, float32 [], that rejects the share `fpr` of clean images by scores."""
    return jnp.float32(np.quantile(np.asarray(scores), 1 - fpr))


def threshold_of(state: Mapping[str, Any]) -> float:
    """Return the threshold in the state of a prepared input detector."""
    return float(state["threshold"])
