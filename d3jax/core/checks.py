"""Checks of the arguments that callers pass to functions of the library."""

from __future__ import annotations

from typing import Any

import numpy as np

from .errors import ConfigError, DataError
from .types import Attack, Dataset, Model, Split, Variables


def check_built(**values: Any) -> None:
    """Raise `ConfigError` if a given `model`, `attack`, `dataset` or `variables` has a wrong type.

    The usual cause is a config whose `build(info)` was not called.
    """
    kinds = {"model": Model, "attack": Attack, "dataset": Dataset, "variables": Variables}
    for name, value in values.items():
        kind = kinds[name]
        if not isinstance(value, kind):
            hint = "; call its build(info)" if hasattr(value, "build") else ""
            hint = "; give its .variables" if hasattr(value, "variables") else hint
            given = type(value).__name__
            raise ConfigError(f"{name}: want a d3jax.{kind.__name__}, got a {given}{hint}")


def check_labelled(name: str, split: Any, num_classes: int | None = None) -> None:
    """Raise `DataError` if `split` is not a `Split` of uint8 images and as many integer labels.

    With `num_classes`, labels in host memory must be classes.
    """
    if not isinstance(split, Split):
        raise DataError(f"{name}: want a d3jax.Split, got a {type(split).__name__}")
    images, labels = split
    if images.dtype != np.uint8 or images.ndim != 4:
        raise DataError(
            f"{name}: images are {images.dtype} {list(images.shape)}, want uint8 [N, H, W, C]; of "
            "images in [0, 1], d3jax.as_levels(images).astype('uint8') makes them"
        )
    if not np.issubdtype(labels.dtype, np.integer) or labels.ndim != 1:
        raise DataError(
            f"{name}: labels are {labels.dtype} {list(labels.shape)}, want integers [N]"
        )
    if not len(images) or len(images) != len(labels):
        raise DataError(
            f"{name}: {len(images)} images and {len(labels)} labels, want as many, and at least one"
        )
    if num_classes is not None and isinstance(labels, np.ndarray):
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= num_classes:
            raise DataError(f"{name}: labels are {low} to {high}, want 0 to {num_classes - 1}")
