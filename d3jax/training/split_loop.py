"""The train loop that minimises a loss on a set of images, as repairs and some attacks do."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from ..core.checks import check_built, check_labelled
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
    """Build the `TrainLoop` that minimises `loss` on the images of `split`, from `variables` on.

    The parameters are projected by `project` after every step. `loss` and `project` read
    `reference_params` and `loss_inputs` from their argument `data`. Every epoch is a new shuffle.
    """
    check_built(variables=variables)
    check_labelled("images", split)
    size = len(split.labels)
    rows = make_rows(size=size, steps_per_epoch=steps_per_epoch, batch_size=batch_size)
    step = make_train_step(
        tx, loss=loss, batches=make_batches(rows=rows, augment=augment), project=project
    )
    data = TrainData(
        Split(*map(jnp.asarray, split)), jnp.zeros(size, bool), {}, reference_params, loss_inputs
    )
    return TrainLoop(step, init_state(variables, tx, key), data, steps)
