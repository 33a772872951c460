"""Inverted triggers put on images as a file would hold them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from ..core.images import as_levels
from ..core.types import Array
from .invert import Inversion
from .outliers import Detection
from .parameters import Trigger, stamp


def trigger_at(inversion: Inversion, row: int) -> Trigger:
    """Return one of the triggers of an inversion."""
    return jax.tree.map(lambda part: part[row], inversion.trigger)


def trigger_to_try(found: Detection) -> int:
    """Return the row of the trigger to try: the smallest flagged one, or of all if none is."""
    norms = np.asarray(found.norms)
    return int(np.argmin(np.where(found.flagged, norms, np.inf) if found.flagged.any() else norms))


def stamp_levels(trigger: Trigger, images: Array) -> jax.Array:
    """Return float images [B, H, W, C] with a trigger, as uint8."""
    return as_levels(stamp(trigger, images)).astype(jnp.uint8)
