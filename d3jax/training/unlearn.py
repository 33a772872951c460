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


class Unlearning(NamedTuple):
    """The optimiser that moves `away` from the suspects and that which goes `onward` on trusted images, whether the suspects rest, and
    the `moves` that unlearned."""

    away: Any
    onward: Any
    resting: jax.Array
    moves: jax.Array


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
    """The loop that unlearns the rows `suspects` [k] of `split` under the labels they were given. Its `opt_state` is `Unlearning`.

    Args:
        trusted: rows whose loss `alternate` descends on.
        kind: `ascent` on cross-entropy; `uniform`: descent on the divergence of the prediction from an even one, which is bounded below.
        alternate: a step is two, one on suspects and one that descends on the cross-entropy of `trusted` images (D-BR, with `ascent`),
            each with an optimiser of its own: momentum would carry the one into the other.
        batch_norm: whether the batch's statistics are used and learned, or the stored ones, which then stay.
        bounded: once a batch of suspects is right less often than 1 / K before the step, suspects move nothing any more, and the loop
            may end. With `alternate` descent goes on, and so does unlearning where it brings the suspects back. The metric `resting`
            says when.
    """
    suspects, trusted = jnp.asarray(suspects), jnp.asarray(trusted)
    per_epoch, size = epoch_plan(len(suspects), batch_size, drop_last=False)
    plans = {"suspects": (len(suspects), per_epoch, size)}
    if alternate:
        per_epoch, size = epoch_plan(len(trusted), batch_size, drop_last=True)
        plans["trusted"] = (len(trusted), per_epoch, size)

    def gradient(name: str, loss: Callable[..., Any], variables: Variables, state: TrainState, data: Two) -> Any:
        count, per_epoch, size = plans[name]
        rows = batch_rows(stream(state.key, name), state.step, size=count, steps_per_epoch=per_epoch, batch_size=size)
        mine = getattr(data, name)[over_data(rows)]
        images, labels = as_float(data.split.images[mine]), data.split.labels[mine]
        return jax.value_and_grad(loss, has_aux=True)(*variables, images, labels)

    def moved(grads: Params, stats: Params, params: Params, optimiser: Any) -> tuple[Variables, Any]:
        moves, optimiser = tx.update(grads, optimiser, params)
        return Variables(optax.apply_updates(params, moves), stats), optimiser

    loss, descent = (_loss(model, aim, training=batch_norm == "train") for aim in (kind, "descent"))

    def step(state: TrainState, data: Two) -> tuple[TrainState, Metrics]:
        before, variables = state.opt_state, state.variables
        (_, (stats, value, right, chance)), grads = gradient("suspects", loss, variables, state, data)
        resting = (before.resting & (not alternate)) | (right < chance) if bounded else before.resting
        found = moved(grads, stats, variables.params, before.away)
        variables, away = jax.tree.map(lambda x, y: jnp.where(resting, y, x), found, (variables, before.away))
        onward = before.onward
        if alternate:
            (_, (stats, *_)), grads = gradient("trusted", descent, variables, state, data)
            variables, onward = moved(grads, stats, variables.params, onward)
        after = Unlearning(away, onward, resting, before.moves + ~resting)
        metrics = {"loss": value, "suspects_accuracy": right, "resting": resting.astype(jnp.float32)}
        return TrainState(state.step + 1, variables, after, state.key), metrics

    onward = tx.init(variables.params) if alternate else ()
    begun = Unlearning(tx.init(variables.params), onward, jnp.zeros((), bool), jnp.zeros((), jnp.int32))
    state = TrainState(jnp.zeros((), jnp.int32), variables, begun, key)
    ended = (lambda state: state.opt_state.resting) if bounded and not alternate else None
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
