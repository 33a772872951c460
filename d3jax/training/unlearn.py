"""Unlearning some images: by gradient ascent on their loss, or towards an even prediction, with a rule that ends it.

ABL (Li et al., arXiv 2110.11571) ascends on the images it isolated; turns of ascent and descent on trusted images are D-BR's (Chen, Wu &
Wang, NeurIPS 2022). Cross-entropy has no upper bound, so ascent has no end of its own: here it rests as soon as a batch of the
images is right less often than chance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ..base import Metrics, Model, Params, Split, TrainState, Variables, as_float, stream
from ..data.batching import batch_rows, epoch_plan
from ..sharding import over_data
from .loop import Job
from .step import accuracy, cross_entropy

Kind = Literal["ascent", "uniform"]


class Two(NamedTuple):
    """All images and which rows of them are `suspects` [k] and `trusted` [m]."""

    split: Split
    suspects: jax.Array
    trusted: jax.Array


def unlearn_job(
    key: jax.Array,
    model: Model,
    variables: Variables,
    split: Split,
    suspects: Any,
    trusted: Any,
    *,
    tx: optax.GradientTransformation,
    steps: int,
    batch_size: int,
    kind: Kind = "ascent",
    alternate: bool = False,
    batch_norm: Literal["train", "frozen"] = "train",
    bounded: bool = True,
) -> Job:
    """The loop that unlearns the rows `suspects` [k] of `split` under the labels they were given.

    Args:
        trusted: rows whose loss `alternate` descends on.
        kind: `ascent` on cross-entropy; `uniform`: descent on the divergence of the prediction from an even one, which is bounded below.
        alternate: every second step descends on the cross-entropy of `trusted` images (D-BR, with `ascent`).
        batch_norm: whether the batch's statistics are used and learned, or the stored ones, which then stay.
        bounded: once a batch of suspects is right less often than 1 / K before the step, nothing moves any more, and the loop may end.
            With `alternate` descent goes on, and so does unlearning where it brings the suspects back. `opt_state` is (the optimiser's,
            whether it has come to rest); the metric `resting` says where.
    """
    suspects, trusted = jnp.asarray(suspects), jnp.asarray(trusted)
    per_epoch, size = epoch_plan(len(suspects), batch_size, drop_last=False)
    plans = {"suspects": (len(suspects), per_epoch, size)}
    if alternate:
        per_epoch, size = epoch_plan(len(trusted), batch_size, drop_last=True)
        plans["trusted"] = (len(trusted), per_epoch, size)

    def draw(state: TrainState, data: Two, name: str, at: jax.Array) -> tuple[jax.Array, jax.Array]:
        count, per_epoch, size = plans[name]
        rows = batch_rows(stream(state.key, name), at, size=count, steps_per_epoch=per_epoch, batch_size=size)
        mine = getattr(data, name)[over_data(rows)]
        return as_float(data.split.images[mine]), data.split.labels[mine]

    loss, descent = (_loss(model, aim, training=batch_norm == "train") for aim in (kind, "descent"))

    def step(state: TrainState, data: Two) -> tuple[TrainState, Metrics]:
        optimiser, resting = state.opt_state
        params, batch_stats = state.variables
        images, labels = draw(state, data, "suspects", state.step // 2 if alternate else state.step)
        (_, (stats, value, right, chance)), grads = jax.value_and_grad(loss, has_aux=True)(params, batch_stats, images, labels)
        if bounded:
            resting = (resting & (not alternate)) | (right < chance)
        still = resting
        if alternate:
            images, labels = draw(state, data, "trusted", state.step // 2)
            (_, (other_stats, *_)), other = jax.value_and_grad(descent, has_aux=True)(params, batch_stats, images, labels)
            descend = state.step % 2 == 1
            pick = lambda a, b: jax.tree.map(lambda x, y: jnp.where(descend, x, y), a, b)
            grads, stats, still = pick(other, grads), pick(other_stats, stats), resting & ~descend
        moves, moved = tx.update(grads, optimiser, params)
        keep = lambda new, old: jax.tree.map(lambda x, y: jnp.where(still, y, x), new, old)
        params = keep(optax.apply_updates(params, moves), params)
        after = TrainState(
            state.step + 1, Variables(params, keep(stats, batch_stats)), (keep(moved, optimiser), resting), state.key
        )
        metrics = {"loss": value, "suspects_accuracy": right, "resting": resting.astype(jnp.float32)}
        return after, metrics

    state = TrainState(jnp.zeros((), jnp.int32), variables, (tx.init(variables.params), jnp.zeros((), bool)), key)
    ended = (lambda state: state.opt_state[1]) if bounded and not alternate else None
    return Job(step, state, Two(Split(*map(jnp.asarray, split)), suspects, trusted), steps, finished=ended)


def _loss(model: Model, aim: str, *, training: bool) -> Callable[..., Any]:
    """The loss to descend on: cross-entropy (`descent`), its negative (`ascent`) or the divergence from an even prediction (`uniform`);
    with it the batch statistics, the cross-entropy, and how often the images are right, before the step and by chance."""

    def loss(params: Params, batch_stats: Params, images: jax.Array, labels: jax.Array):
        outputs = model.apply(Variables(params, batch_stats), images, train=training)
        value = cross_entropy(outputs.logits, labels).mean()
        aimed = -value if aim == "ascent" else value
        if aim == "uniform":
            aimed = -jax.nn.log_softmax(outputs.logits).mean(-1).mean() - jnp.log(outputs.logits.shape[-1])
        stats = outputs.batch_stats if training else batch_stats
        return aimed, (stats, value, accuracy(outputs.logits, labels), 1 / outputs.logits.shape[-1])

    return loss
