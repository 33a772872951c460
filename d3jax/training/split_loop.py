"""The train loop that minimises a loss on a set of images, as most methods do."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from ..config.recipes import NO_SAM, SamConfig
from ..core.checks import check_built, check_labelled
from ..core.types import Params, Split, Variables
from .loop import TrainLoop
from .step import (
    Advance,
    Loss,
    Project,
    TrainData,
    View,
    init_state,
    keep_data,
    keep_params,
    keep_update,
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
    carry: Any = (),
    view: View = keep_data,
    advance: Advance = keep_update,
    sam: SamConfig = NO_SAM,
) -> TrainLoop:
    """Build the `TrainLoop` that minimises `loss` on the images of `split`, from `variables` on.

    The parameters are projected by `project` after every step. `loss` and `project` read
    `reference_params` and `loss_inputs` from their argument `data`. Every epoch is a new shuffle.
    `carry` is what else changes from step to step; `make_train_step` describes `view`, `advance`
    and `sam`.
    """
    check_built(variables=variables)
    check_labelled("images", split)
    size = len(split.labels)
    rows = make_rows(size=size, steps_per_epoch=steps_per_epoch, batch_size=batch_size)
    step = make_train_step(
        tx, loss=loss, batches=make_batches(rows=rows, augment=augment), project=project,
        view=view, advance=advance, sam=sam,
    )  # fmt: skip
    data = TrainData(
        Split(*map(jnp.asarray, split)), jnp.zeros(size, bool), {}, reference_params, loss_inputs
    )
    return TrainLoop(step, init_state(variables, tx, key, carry), data, steps)
