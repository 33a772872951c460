"""The removal of D-BR: passes of ascent on suspects and of descent on trusted images, in turn.

Source: Chen, Wu & Wang, "Effective Backdoor Defense by Exploiting Sensitivity of Poisoned Samples",
NeurIPS 2022, and the authors' program.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from ...config.recipes import OptimConfig, TrainConfig
from ...core.images import as_float
from ...core.losses import accuracy, cross_entropy
from ...core.random import stream
from ...core.types import Array, DataInfo, Model, Params, Split, Variables
from ...data.augment import make_augment
from ...data.batching import permute
from ...runtime.sharding import shard_batch
from ...training.loop import TrainLoop
from ...training.optim import make_schedule, scale_by_step_rate
from ...training.step import Batches, Loss, init_state, keep_update, make_train_step
from ..repair.held_out import keep_best, no_best, traced_accuracy


class Removal(NamedTuple):
    """The data of the removal: D_p, D_c, and the two sets by which an epoch is chosen.

    The epoch has the highest accuracy on `judged` minus accuracy on `triggered`. They are None
    without a choice.
    """

    suspects: Split
    trusted: Split
    judged: Split | None = None
    triggered: Split | None = None


class Turn(NamedTuple):
    """A batch of suspects or of trusted images; `away` (bool []) is true for suspects."""

    images: Array
    labels: Array
    away: jax.Array


def passes(suspects: int, trusted: int, batch_size: int) -> tuple[int, int]:
    """Return the steps of a pass over D_p and of one over D_c, from their numbers of images.

    The last batch of D_p is filled up with images that the pass already had. The short last batch
    of D_c is dropped.
    """
    return -(-suspects // batch_size), trusted // batch_size


def make_draw(suspects: int, trusted: int, batch_size: int, augment: Callable) -> Batches:
    """Build `draw(key, step, data) -> Turn`, which makes passes over D_p and over D_c in turn.

    Every pass is a new shuffle.
    """
    ascents, descents = passes(suspects, trusted, batch_size)

    def rows(key: jax.Array, epoch: jax.Array, place: jax.Array, size: int) -> jax.Array:
        places = (place * batch_size + jnp.arange(batch_size)) % size
        return shard_batch(permute(jax.random.fold_in(key, epoch), places, size))

    def draw(key: jax.Array, step: jax.Array, data: Removal) -> Turn:
        epoch, place = jnp.divmod(step, ascents + descents)
        away, later = place < ascents, jnp.maximum(place - ascents, 0)
        mine = rows(stream(key, "suspects"), epoch, place, suspects)
        others = rows(stream(key, "trusted"), epoch, later, trusted)
        images, labels = (
            jnp.where(away, first[mine], second[others])
            for first, second in zip(data.suspects, data.trusted, strict=True)
        )
        augmented = augment(jax.random.fold_in(stream(key, "augment"), step), as_float(images))
        return Turn(augmented, labels, away)

    return draw


def removal_loss(model: Model) -> Loss:
    """Build the loss of the removal: the mean cross-entropy, negative for suspects.

    It reports the cross-entropy as `loss`, and the accuracy.
    """

    def loss(params: Params, batch_stats: Params, batch: Turn, key: jax.Array, data: Removal):
        outputs = model.apply(Variables(params, batch_stats), batch.images, train=True)
        value = cross_entropy(outputs.logits, batch.labels).mean()
        reported = {"loss": value, "accuracy": accuracy(outputs.logits, batch.labels)}
        return jnp.where(batch.away, -value, value), (outputs.batch_stats, reported)

    return loss


def removal_optimizer(
    ascent: float, own: OptimConfig, ascents: int, descents: int, steps: int
) -> optax.GradientTransformationExtraArgs:
    """Build SGD with one momentum for both kinds of passes, and a learning rate for each kind.

    `ascent` is the constant learning rate of the ascent. `own` is the optimiser of the descent,
    whose schedule counts the steps of the descent alone. An epoch has `ascents` and `descents`
    steps, and there are `steps` steps in all.
    """
    period = ascents + descents
    count = -(-steps // period) * descents
    schedule = make_schedule(own.schedule, steps=count, steps_per_epoch=descents)

    def rate(step: jax.Array, data: Removal) -> jax.Array:
        epoch, place = jnp.divmod(step, period)
        later = epoch * descents + jnp.maximum(place - ascents, 0)
        return jnp.where(place < ascents, ascent, own.lr * schedule(later))

    return optax.chain(
        optax.add_decayed_weights(own.weight_decay),
        optax.trace(own.momentum, own.nesterov),
        scale_by_step_rate(rate),
    )


def removal_loop(
    key: jax.Array,
    model: Model,
    variables: Variables,
    data: Removal,
    ascent: float,
    recipe: TrainConfig,
    info: DataInfo,
) -> tuple[TrainLoop, int]:
    """Build the `TrainLoop` of the removal; return it and the number of steps of an epoch.

    `ascent` is the learning rate of the ascent, and `recipe` has everything else. With
    `data.judged`, the loop's carry is that of `keep_best`.
    """
    sizes = (len(data.suspects.labels), len(data.trusted.labels))
    each = passes(*sizes, recipe.batch_size)
    steps = recipe.steps or recipe.epochs * sum(each)

    def score(variables: Variables, data: Removal) -> jax.Array:
        assert data.judged and data.triggered
        judged, triggered = (
            traced_accuracy(model, variables, one) for one in (data.judged, data.triggered)
        )
        return judged - triggered

    advance = keep_best(score, min(sum(each), steps)) if data.judged else keep_update
    tx = removal_optimizer(ascent, recipe.optimizer, *each, steps)
    draw = make_draw(*sizes, recipe.batch_size, make_augment(info, recipe.augment))
    step = make_train_step(
        tx, loss=removal_loss(model), batches=draw, advance=advance, sam=recipe.sam
    )
    state = init_state(variables, tx, key, no_best(variables) if data.judged else ())
    return TrainLoop(step, state, jax.tree.map(jnp.asarray, data), steps), sum(each)
