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
from ..core.types import Array, Metrics, Model, Params, Split, TrainState, Variables
from ..data.batching import batch_rows, epoch_plan
from ..runtime.sharding import shard_batch
from .loop import TrainLoop
from .step import (
    Advance,
    Loss,
    Reported,
    Step,
    accept_if,
    chain_steps,
    init_state,
    keep_update,
    make_train_step,
)

Kind = Literal["ascent", "uniform"]
Descent = Literal["none", "turns", "together"]


class Two(NamedTuple):
    """All images and which rows of them are `suspects` [k] and `trusted` [m]."""

    split: Split
    suspects: jax.Array
    trusted: jax.Array


class Rest(NamedTuple):
    """The carry: whether the suspects are `resting` (bool []), and the number of steps that unlearned (`moves`, int32 [])."""

    resting: jax.Array
    moves: jax.Array


class Drawn(NamedTuple):
    """A batch: `images [B, H, W, C]` float32 and `labels [B]` int32; suspects come before trusted images where it has both."""

    images: Array
    labels: Array


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
    """The loop that unlearns the rows `suspects` [k] of `split` under the labels they were given. Its carry is `Rest`.

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
    rest = Rest(jnp.zeros((), bool), jnp.zeros((), jnp.int32))
    state = init_state(variables, tx, key, rest)
    if descent == "turns":
        opt_state = (state.opt_state, tx.init(variables.params))
        state = dataclasses.replace(state, opt_state=opt_state)
    ended = _rests if bounded and descent == "none" else None
    return TrainLoop(unlearning.step(), state, data, steps, finished=ended)


def _rests(state: TrainState) -> jax.Array:
    """Return whether the suspects rest."""
    return state.carry.resting


@dataclasses.dataclass(frozen=True)
class _Unlearn:
    """The parts of the step of `unlearn_loop`, by its arguments.

    `plans` are (steps an epoch, images a step) of suspects and of trusted images.
    """

    model: Model
    tx: optax.GradientTransformation
    kind: Kind
    descent: Descent
    training: bool
    bounded: bool
    plans: Mapping[str, tuple[int, int]]

    def step(self) -> Step:
        """Build the step: on suspects, on suspects and then on trusted images, or on both in one batch."""
        suspects = self.one("suspects", self.unlearned, self.rest)
        if self.descent == "together":
            return self.one("both", self.both, self.count)
        if self.descent == "turns":
            return chain_steps(suspects, self.one("trusted", self.learned, keep_update))
        return suspects

    def one(self, name: str, loss: Loss, advance: Advance) -> Step:
        """Build the step that descends on `loss` of the images called `name`."""
        names = ("suspects", "trusted") if name == "both" else (name,)

        def draw(key: jax.Array, step: jax.Array, data: Two) -> Drawn:
            parts = [self.draw(one, key, step, data) for one in names]
            if len(parts) == 1:
                return parts[0]
            images, labels = (jnp.concatenate(both) for both in zip(*parts, strict=True))
            return Drawn(shard_batch(images), labels)

        return make_train_step(self.tx, loss=loss, batches=draw, advance=advance)

    def rest(
        self, before: TrainState, after: TrainState, reported: Reported, data: Two
    ) -> tuple[TrainState, Metrics]:
        """Leave the update out while the suspects rest: until the end without descent, else while they are rarer than chance."""
        resting = before.carry.resting & (self.descent == "none") | reported["rarer"] & self.bounded
        return _counted(accept_if(~resting, before, after), resting, reported)

    def count(
        self, before: TrainState, after: TrainState, reported: Reported, data: Two
    ) -> tuple[TrainState, Metrics]:
        """Count the steps whose loss had the suspects in it."""
        return _counted(after, reported["rarer"] & self.bounded, reported)

    def unlearned(
        self, params: Params, batch_stats: Params, batch: Drawn, key: jax.Array, data: Two
    ) -> tuple[jax.Array, tuple[Params, Reported]]:
        """Return what descends where suspects are unlearned."""
        logits, stats = self.forward(params, batch_stats, batch.images)
        return _away(self.kind, logits, batch.labels), (stats, _seen(logits, batch.labels))

    def learned(
        self, params: Params, batch_stats: Params, batch: Drawn, key: jax.Array, data: Two
    ) -> tuple[jax.Array, tuple[Params, Reported]]:
        """Return the cross-entropy of trusted images."""
        logits, stats = self.forward(params, batch_stats, batch.images)
        return cross_entropy(logits, batch.labels).mean(), (stats, {})

    def both(
        self, params: Params, batch_stats: Params, batch: Drawn, key: jax.Array, data: Two
    ) -> tuple[jax.Array, tuple[Params, Reported]]:
        """Return the sum of both losses, that of suspects left out where they are rarer than chance."""
        logits, stats = self.forward(params, batch_stats, batch.images)
        _, count = self.plans["suspects"]
        away, labels = logits[:count], batch.labels[:count]
        seen = _seen(away, labels)
        value = jnp.where(seen["rarer"] & self.bounded, 0.0, _away(self.kind, away, labels))
        value = value + cross_entropy(logits[count:], batch.labels[count:]).mean()
        return value, (stats, seen)

    def forward(
        self, params: Params, batch_stats: Params, images: Array
    ) -> tuple[jax.Array, Params]:
        """Return logits and the running statistics after them, which stay where the batch's are not used."""
        outputs = self.model.apply(Variables(params, batch_stats), images, train=self.training)
        return outputs.logits, outputs.batch_stats if self.training else batch_stats

    def draw(self, name: str, key: jax.Array, step: jax.Array, data: Two) -> Drawn:
        """Return images and labels of the step's suspects or trusted images."""
        given, (per_epoch, size) = getattr(data, name), self.plans[name]
        rows = batch_rows(
            stream(key, name),
            step,
            size=len(given),
            steps_per_epoch=per_epoch,
            batch_size=size,
        )
        rows = given[shard_batch(rows)]
        return Drawn(as_float(data.split.images[rows]), data.split.labels[rows])


def _counted(
    state: TrainState, resting: jax.Array, reported: Reported
) -> tuple[TrainState, Metrics]:
    """Return the state with the carry moved on, and the metrics of a step of which suspects were part."""
    carry = Rest(resting, state.carry.moves + ~resting)
    metrics = {name: value for name, value in reported.items() if name != "rarer"}
    metrics["resting"] = resting.astype(jnp.float32)
    return dataclasses.replace(state, carry=carry), metrics


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


def _away(kind: Kind, logits: jax.Array, labels: Array) -> jax.Array:
    """What descends where suspects are unlearned: the negative cross-entropy, or the divergence of an even prediction from theirs."""
    if kind == "ascent":
        return -cross_entropy(logits, labels).mean()
    return -jax.nn.log_softmax(logits).mean(-1).mean() - jnp.log(logits.shape[-1])


def _seen(logits: jax.Array, labels: Array) -> Reported:
    """Return the suspects' cross-entropy as `loss`, how often they are right, and whether that is `rarer` than chance."""
    right = accuracy(logits, labels)
    return {
        "loss": cross_entropy(logits, labels).mean(),
        "suspects_accuracy": right,
        "rarer": right < 1 / logits.shape[-1],
    }
