"""Unlearning some images: by gradient ascent on their loss, or towards an even prediction, with a rule that ends it.

ABL (Li et al., arXiv 2110.11571) ascends on the images it isolated; turns of ascent and descent on trusted images are D-BR's (Chen, Wu &
Wang, NeurIPS 2022). Cross-entropy has no upper bound, so ascent has no end of its own: here it rests as soon as a batch of the
images is right less often than chance. Both kinds of images in one batch are ours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ..core.errors import ConfigError
from ..core.images import as_float
from ..core.losses import accuracy, cross_entropy
from ..core.random import stream
from ..core.types import Metrics, Model, Params, Split, TrainState, Variables
from ..data.batching import batch_rows, epoch_plan
from ..runtime.sharding import shard_batch
from .loop import TrainLoop

Kind = Literal["ascent", "uniform"]
Descent = Literal["none", "turns", "together"]


class Two(NamedTuple):
    """All images and which rows of them are `suspects` [k] and `trusted` [m]."""

    split: Split
    suspects: jax.Array
    trusted: jax.Array


class Unlearning(NamedTuple):
    """The optimiser that moves `away` from the suspects and, where they take turns, that which goes `onward` on trusted images (where both
    are together, one does both), whether the suspects rest, and the `moves` that unlearned."""

    away: Any
    onward: Any
    resting: jax.Array
    moves: jax.Array


class Seen(NamedTuple):
    """What a step finds out: the running statistics behind it, and before it the suspects' cross-entropy, how often they are right and
    whether that is `rarer` than chance."""

    batch_stats: Params
    loss: jax.Array
    right: jax.Array
    rarer: jax.Array


def unlearn_loop(
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
    descent: Descent = "none",
    share: float = 0.25,
    batch_norm: Literal["train", "frozen"] = "train",
    bounded: bool = True,
) -> TrainLoop:
    """The loop that unlearns the rows `suspects` [k] of `split` under the labels they were given. Its `opt_state` is `Unlearning`.

    Args:
        trusted: rows on whose cross-entropy `descent` goes down.
        kind: `ascent` on cross-entropy; `uniform`: descent on the divergence of an even prediction from theirs, which is bounded below.
        descent: `turns`: a step is two of `batch_size` images each, one on suspects and one on `trusted` images (D-BR, with `ascent`), each
            with an optimiser of its own: momentum would carry the one into the other. `together`: a batch has both, and the step is on the
            sum of both losses, each the mean over its images.
        share: of the images of a batch that are suspects where both are in it `together`: at least one, at most all suspects there are.
        batch_norm: whether the batch's statistics are used and learned, or the stored ones, which then stay.
        bounded: once a batch of suspects is right less often than 1 / K before the step, their loss is left out, and the loop may end.
            With `descent` that goes on, and so does unlearning where it brings the suspects back; `together` the momentum of earlier
            steps runs down meanwhile, and suspects stay in the statistics of the batch. The metric `resting` says when.

    Raises `ConfigError` where a batch has no room for both.
    """
    data = Two(Split(*map(jnp.asarray, split)), jnp.asarray(suspects), jnp.asarray(trusted))
    mine, others = parts_of(batch_size, descent, share, len(suspects))
    plans = {"suspects": epoch_plan(len(suspects), mine, drop_last=descent == "together")}
    if others:
        plans["trusted"] = epoch_plan(len(trusted), others, drop_last=True)
    unlearning = _Unlearn(model, tx, kind, descent, batch_norm == "train", bounded, plans)
    onward = tx.init(variables.params) if descent == "turns" else ()
    begun = Unlearning(
        tx.init(variables.params), onward, jnp.zeros((), bool), jnp.zeros((), jnp.int32)
    )
    state = TrainState(jnp.zeros((), jnp.int32), variables, begun, key)
    ended = (lambda state: state.opt_state.resting) if bounded and descent == "none" else None
    return TrainLoop(unlearning.step, state, data, steps, finished=ended)


@dataclasses.dataclass(frozen=True)
class _Unlearn:
    """A step of `unlearn_loop`, by its arguments; `plans` are (steps an epoch, images a step) of suspects and of trusted images."""

    model: Model
    tx: optax.GradientTransformation
    kind: Kind
    descent: Descent
    training: bool
    bounded: bool
    plans: Mapping[str, tuple[int, int]]

    def step(self, state: TrainState, data: Two) -> tuple[TrainState, Metrics]:
        move = self.together if self.descent == "together" else self.apart
        variables, away, onward, resting, seen = move(state, data)
        after = Unlearning(away, onward, resting, state.opt_state.moves + ~resting)
        metrics = {
            "loss": seen.loss,
            "suspects_accuracy": seen.right,
            "resting": resting.astype(jnp.float32),
        }
        return TrainState(state.step + 1, variables, after, state.key), metrics

    def apart(self, state: TrainState, data: Two) -> tuple[Variables, Any, Any, jax.Array, Seen]:
        """A step on suspects, unless they rest, and in turns with it one on trusted images."""
        before, variables = state.opt_state, state.variables
        (_, seen), grads = jax.value_and_grad(self.unlearned, has_aux=True)(
            *variables, *self.draw("suspects", state, data)
        )
        resting = before.resting & (self.descent == "none") | seen.rarer & self.bounded
        found = self.moved(grads, seen.batch_stats, variables.params, before.away)
        variables, away = jax.tree.map(
            lambda x, y: jnp.where(resting, y, x), found, (variables, before.away)
        )
        onward = before.onward
        if self.descent == "turns":
            (_, stats), grads = jax.value_and_grad(self.learned, has_aux=True)(
                *variables, *self.draw("trusted", state, data)
            )
            variables, onward = self.moved(grads, stats, variables.params, onward)
        return variables, away, onward, resting, seen

    def together(self, state: TrainState, data: Two) -> tuple[Variables, Any, Any, jax.Array, Seen]:
        """One step on suspects and trusted images."""
        batches = self.draw("suspects", state, data), self.draw("trusted", state, data)
        (_, seen), grads = jax.value_and_grad(self.both, has_aux=True)(*state.variables, *batches)
        variables, away = self.moved(
            grads, seen.batch_stats, state.variables.params, state.opt_state.away
        )
        return variables, away, (), seen.rarer & self.bounded, seen

    def unlearned(
        self, params: Params, batch_stats: Params, images: jax.Array, labels: jax.Array
    ) -> tuple[jax.Array, Seen]:
        logits, stats = self.forward(params, batch_stats, images)
        return _away(self.kind, logits, labels), _seen(stats, logits, labels)

    def learned(
        self, params: Params, batch_stats: Params, images: jax.Array, labels: jax.Array
    ) -> tuple[jax.Array, Params]:
        logits, stats = self.forward(params, batch_stats, images)
        return cross_entropy(logits, labels).mean(), stats

    def both(
        self, params: Params, batch_stats: Params, away: Any, onward: Any
    ) -> tuple[jax.Array, Seen]:
        count = len(away[1])
        logits, stats = self.forward(
            params, batch_stats, shard_batch(jnp.concatenate([away[0], onward[0]]))
        )
        seen = _seen(stats, logits[:count], away[1])
        value = jnp.where(seen.rarer & self.bounded, 0.0, _away(self.kind, logits[:count], away[1]))
        return value + cross_entropy(logits[count:], onward[1]).mean(), seen

    def forward(
        self, params: Params, batch_stats: Params, images: jax.Array
    ) -> tuple[jax.Array, Params]:
        outputs = self.model.apply(Variables(params, batch_stats), images, train=self.training)
        return outputs.logits, outputs.batch_stats if self.training else batch_stats

    def moved(
        self, grads: Params, stats: Params, params: Params, optimiser: Any
    ) -> tuple[Variables, Any]:
        moves, optimiser = self.tx.update(grads, optimiser, params)
        return Variables(optax.apply_updates(params, moves), stats), optimiser

    def draw(self, name: str, state: TrainState, data: Two) -> tuple[jax.Array, jax.Array]:
        """Images and labels of the step's suspects or trusted images."""
        given, (per_epoch, size) = getattr(data, name), self.plans[name]
        rows = batch_rows(
            stream(state.key, name),
            state.step,
            size=len(given),
            steps_per_epoch=per_epoch,
            batch_size=size,
        )
        rows = given[shard_batch(rows)]
        return as_float(data.split.images[rows]), data.split.labels[rows]


def parts_of(batch_size: int, descent: Descent, share: float, suspects: int) -> tuple[int, int]:
    """How many of so many `suspects`, and how many trusted images, there are in a step: of each `batch_size`, or where
    both are `together` in all.

    Raises `ConfigError` where both are to be together in a batch that has no room for it.
    """
    if descent != "together":
        return batch_size, batch_size if descent == "turns" else 0
    mine = min(suspects, max(1, int(share * batch_size)))
    if mine == batch_size:
        raise ConfigError(
            f"unlearn.batch_size: {batch_size} has no room for trusted images beside the suspects"
        )
    return mine, batch_size - mine


def _away(kind: Kind, logits: jax.Array, labels: jax.Array) -> jax.Array:
    """What descends where suspects are unlearned: the negative cross-entropy, or the divergence of an even prediction from theirs."""
    if kind == "ascent":
        return -cross_entropy(logits, labels).mean()
    return -jax.nn.log_softmax(logits).mean(-1).mean() - jnp.log(logits.shape[-1])


def _seen(stats: Params, logits: jax.Array, labels: jax.Array) -> Seen:
    right = accuracy(logits, labels)
    return Seen(stats, cross_entropy(logits, labels).mean(), right, right < 1 / logits.shape[-1])
