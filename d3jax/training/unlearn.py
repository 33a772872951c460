"""Unlearning of suspect images, by gradient ascent on their loss or towards a uniform prediction.

ABL (Li et al., arXiv 2110.11571) ascends on the images that it isolated. D-BR (Chen, Wu & Wang,
NeurIPS 2022) alternates ascent with descent on trusted images. Cross-entropy has no upper bound, so
ascent has no end of its own. Here it pauses ("rests") as soon as the model's accuracy on a batch of
suspects is below chance. Batches with both kinds of images are d3jax's.
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
    """The data of unlearning: all images, and the row numbers of `suspects` and `trusted` images.

    `suspects` [k] and `trusted` [m] are row numbers of `split`.
    """

    split: Split
    suspects: jax.Array
    trusted: jax.Array


class Rest(NamedTuple):
    """The carry of an unlearning loop: whether it is paused, and how many steps have unlearned.

    `resting` is bool [] and `moves` is int32 [].
    """

    resting: jax.Array
    moves: jax.Array


class Drawn(NamedTuple):
    """The images and labels of a batch for unlearning: suspects, trusted images, or both.

    Suspects come before trusted images. `images [B, H, W, C]` are float32 and `labels [B]` int32.
    """

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
    """Build the `TrainLoop` by which a model unlearns the suspect images of `split`.

    The suspects are unlearned under their given labels. Its carry is `Rest`.

    Args:
        suspects: row numbers [k] of the images to unlearn.
        trusted: row numbers [m] of the images whose cross-entropy `descent` minimises.
        kind: `ascent`: gradient ascent on the cross-entropy. `uniform`: descent on the divergence
            of an even prediction from the model's, which is bounded below.
        descent: `none`: only suspects are trained on. `turns`: a step makes two updates with
            `batch_size` images each, one on suspects and one on `trusted` images (with `ascent`
            D-BR). Each has its own optimiser, because momentum would carry one update into the
            other. `together`: a batch has both kinds, and the loss is the sum of both means.
        share: share of suspects in a batch that has both kinds `together`. A batch has at least
            one suspect, and at most as many as there are.
        batch_norm: `train`: normalise by the batch's statistics and update the running ones.
            `frozen`: normalise by the running statistics, which stay unchanged.
        bounded: leave out the suspects' loss in steps before which the model's accuracy on the
            batch's suspects is below 1 / K. Without `descent` the loop then ends. With `descent`
            the steps continue, and unlearning resumes when that accuracy is no longer below 1 / K.
            With `together` the momentum of earlier steps still acts meanwhile, and the suspects
            stay in the batch's statistics. The metric `resting` is 1 in such steps.

    Raises `ConfigError` where a batch has no room for both kinds.
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
    """Return whether the unlearning of suspects is paused, as a train state's carry says."""
    return state.carry.resting


@dataclasses.dataclass(frozen=True)
class _Unlearn:
    """A builder of the train step that unlearns suspects, with the arguments of `unlearn_loop`.

    `plans` has (steps per epoch, images per step) of `suspects` and of `trusted` images.
    """

    model: Model
    tx: optax.GradientTransformation
    kind: Kind
    descent: Descent
    training: bool
    bounded: bool
    plans: Mapping[str, tuple[int, int]]

    def step(self) -> Step:
        """Build the train step that unlearns suspects and, by `descent`, learns trusted images.

        It is a step on suspects, on suspects and then on trusted images, or on both in one batch.
        """
        suspects = self.one("suspects", self.unlearned, self.rest)
        if self.descent == "together":
            return self.one("both", self.both, self.count)
        if self.descent == "turns":
            return chain_steps(suspects, self.one("trusted", self.learned, keep_update))
        return suspects

    def one(self, name: str, loss: Loss, advance: Advance) -> Step:
        """Build the train step that minimises `loss` on suspects, on trusted images, or on both.

        `name` is `suspects`, `trusted` or `both`.
        """
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
        """Complete a train step on suspects: undo its update if unlearning is paused, or count it.

        Without `descent`, it stays paused from the first such step on. With `descent` in turns, it
        is paused only in steps where the accuracy on suspects is below chance.
        """
        resting = before.carry.resting & (self.descent == "none") | reported["rarer"] & self.bounded
        return _counted(accept_if(~resting, before, after), resting, reported)

    def count(
        self, before: TrainState, after: TrainState, reported: Reported, data: Two
    ) -> tuple[TrainState, Metrics]:
        """Complete a train step on suspects and trusted images: count it if it unlearned suspects.

        Its loss leaves the suspects out where the accuracy on them is below chance.
        """
        return _counted(after, reported["rarer"] & self.bounded, reported)

    def unlearned(
        self, params: Params, batch_stats: Params, batch: Drawn, key: jax.Array, data: Two
    ) -> tuple[jax.Array, tuple[Params, Reported]]:
        """Return the unlearning loss of a batch of suspects, in the form of a `Loss`."""
        logits, stats = self.forward(params, batch_stats, batch.images)
        return _away(self.kind, logits, batch.labels), (stats, _seen(logits, batch.labels))

    def learned(
        self, params: Params, batch_stats: Params, batch: Drawn, key: jax.Array, data: Two
    ) -> tuple[jax.Array, tuple[Params, Reported]]:
        """Return the mean cross-entropy of the least suspect images, in the form of a `Loss`."""
        logits, stats = self.forward(params, batch_stats, batch.images)
        return cross_entropy(logits, batch.labels).mean(), (stats, {})

    def both(
        self, params: Params, batch_stats: Params, batch: Drawn, key: jax.Array, data: Two
    ) -> tuple[jax.Array, tuple[Params, Reported]]:
        """Return a mixed batch's loss: unlearning of suspects plus cross-entropy of trusted images.

        It is in the form of a `Loss`. With `bounded`, the suspects' loss is left out where the
        accuracy on them is below chance.
        """
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
        """Return the logits of a batch of images, and BatchNorm's statistics after this pass.

        The running statistics stay unchanged where `training` is false.
        """
        outputs = self.model.apply(Variables(params, batch_stats), images, train=self.training)
        return outputs.logits, outputs.batch_stats if self.training else batch_stats

    def draw(self, name: str, key: jax.Array, step: jax.Array, data: Two) -> Drawn:
        """Draw a train step's suspects or trusted images; return images and labels as `Drawn`.

        `name` is `suspects` or `trusted`.
        """
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
    """Update pause flag and step count in an unlearning state; return it and the step's metrics.

    It completes a step on suspects. The metrics are the `reported` ones without `rarer`, and
    `resting`.
    """
    carry = Rest(resting, state.carry.moves + ~resting)
    metrics = {name: value for name, value in reported.items() if name != "rarer"}
    metrics["resting"] = resting.astype(jnp.float32)
    return dataclasses.replace(state, carry=carry), metrics


def parts_of(batch_size: int, descent: Descent, share: float, suspects: int) -> tuple[int, int]:
    """Return the numbers of suspects and of trusted images in one train step of unlearning.

    `suspects` is the number of all suspects. With `together`, both add up to `batch_size`.
    Otherwise each is `batch_size`, or 0 trusted images without `descent`.

    Raises `ConfigError` where a batch of both kinds has no room for trusted images.
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
    """Return the unlearning loss of suspects from their logits [B, K] and labels [B].

    Minimising it unlearns the suspects. It is the negative cross-entropy (`ascent`), or the KL
    divergence of an even prediction from the model's.
    """
    if kind == "ascent":
        return -cross_entropy(logits, labels).mean()
    return -jax.nn.log_softmax(logits).mean(-1).mean() - jnp.log(logits.shape[-1])


def _seen(logits: jax.Array, labels: Array) -> Reported:
    """Return a dict of a batch of suspects: loss, accuracy, and whether this is below chance.

    `loss` is the mean cross-entropy, `suspects_accuracy` the accuracy, and `rarer` whether the
    accuracy is below chance.
    """
    right = accuracy(logits, labels)
    return {
        "loss": cross_entropy(logits, labels).mean(),
        "suspects_accuracy": right,
        "rarer": right < 1 / logits.shape[-1],
    }
