"""The loop that minimises a loss on a set of images: what repairs are, and the search for a trigger."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from ..core.types import Params, Split, Variables
from .loop import TrainLoop
from .step import (
    Loss,
    Project,
    TrainData,
    init_state,
    keep_params,
    make_batches,
    make_rows,
    make_train_step,
)


def split_loop(
    key: jax.Array,
    variables: Variables,
    split: Split,
    *,
    loss: Loss,
    tx: optax.GradientTransformation,
    steps: int,
    steps_per_epoch: int,
    batch_size: int,
    augment: Any = lambda key, images: images,
    project: Project = keep_params,
    reference_params: Params | None = None,
    loss_inputs: Any = (),
) -> TrainLoop:
    """The loop that minimises `loss` on `split` from `variables`, projecting the parameters after every step.

    `loss` and `project` see `reference_params` and `loss_inputs` in their `data`. Every epoch is a fresh shuffle.
    """
    size = len(split.labels)
    rows = make_rows(size=size, steps_per_epoch=steps_per_epoch, batch_size=batch_size)
    step = make_train_step(
        tx, loss=loss, batches=make_batches(rows=rows, augment=augment), project=project
    )
    data = TrainData(
        Split(*map(jnp.asarray, split)), jnp.zeros(size, bool), {}, reference_params, loss_inputs
    )
    return TrainLoop(step, init_state(variables, tx, key), data, steps)
