"""A model that is known by its answers only, such as one behind an API."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.errors import DataError
from ..core.types import Array, Model, Outputs, Variables


def black_box(predict: Callable[[np.ndarray], Any], num_classes: int) -> Model:
    """Return a `Model` whose logits are the answers of `predict`, a function of any framework.

    `predict(images) -> answers` takes float32 images [B, H, W, C] in [0, 1] as NumPy arrays. It
    returns logits [B, K], or the predicted labels [B] as integers, which become one-hot logits. The
    model has no variables, no gradients and no activations. It serves detectors that only ask for
    answers: STRIP, SCALE-UP and TeCo. STRIP needs logits. `predict` is called from compiled
    functions, so it must not use JAX itself, which could wait for ever.

    Raises `DataError` in a call where the answers have another shape.
    """

    def answers(images: np.ndarray) -> np.ndarray:
        found = np.asarray(predict(np.asarray(images)))
        if found.shape == (len(images),) and np.issubdtype(found.dtype, np.integer):
            return np.eye(num_classes, dtype=np.float32)[found]
        if found.shape != (len(images), num_classes):
            raise DataError(
                f"predict: gives an array of {found.dtype} {list(found.shape)} for {len(images)} "
                f"images, want logits [{len(images)}, {num_classes}] or integer labels "
                f"[{len(images)}]"
            )
        return found.astype(np.float32)

    def init(key: jax.Array) -> Variables:
        return Variables({}, {})

    def apply(variables: Variables, images: Array, *, train: bool = False) -> Outputs:
        shape = jax.ShapeDtypeStruct((len(images), num_classes), jnp.float32)
        return Outputs(jax.pure_callback(answers, shape, images), {}, {})

    return Model(init, apply)
