"""D-BR, backdoor removal by unlearning suspects and relearning trusted images.

Source: Chen, Wu & Wang, "Effective Backdoor Defense by Exploiting Sensitivity of Poisoned Samples",
NeurIPS 2022, and the authors' program.

1. Feature consistency (`consistency`) separates trusted images D_c and suspects D_p.
2. A model is trained from scratch on all images, and learns the backdoor.
3. Every epoch of the removal has a pass of gradient ascent on the cross-entropy of D_p, and then a
   pass of descent on that of D_c.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ...config.fields import check_fields, option, presets
from ...config.recipes import OptimConfig, TrainConfig
from ...core.errors import ConfigError, refuse
from ...core.images import as_float
from ...core.losses import accuracy, cross_entropy
from ...core.random import stream
from ...core.types import Array, DataInfo, Model, Params, Split, Trained, TrainingDefense, Variables
from ...data.augment import make_augment
from ...data.batching import permute
from ...runtime.sharding import shard_batch
from ...training.loop import Hooks, TrainLoop, fit, trace_of
from ...training.optim import make_schedule, scale_by_step_rate
from ...training.step import (
    Batches,
    Loss,
    classification_loss,
    init_state,
    keep_update,
    make_train_step,
)
from ..repair.held_out import divide, judged_by, keep_best, no_best, traced_accuracy
from .consistency import (
    SeparationConfig,
    check_separation,
    counts_of,
    first_stage_of,
    found_of,
    separate,
    short_separation,
)
from .suspicion import appended, check_batch, epoch_steps, first_stage_loop

CONSTANT = OptimConfig(lr=1e-4, schedule="constant")
"""The optimiser of the authors' removal."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DBRConfig:
    """Settings of D-BR, which unlearns the images whose features change most when transformed.

    D-BR assumes that rotation and shift change the features of poisoned images most. It needs no
    clean images. On a clean set it also unlearns 5 % of the images.

    The presets are:

    - `authors`: 2 and 10 epochs of the separation, 200 of the model, 20 of the removal.
    - `backdoorbench`: a model of BackdoorBench's 100 epochs, and the last epoch of the removal.
    - `short`, for two CPU cores: 3 epochs of the separation's second training (authors: 10), 12 of
      the model (200) and 10 of the removal (20). The model's learning rate falls from 0.05 to 0 by
      a cosine. With 50,000 images, these are about one million training images.
    """

    preset: Literal["authors", "backdoorbench", "short"] = option(
        "authors", "source of the values that are not given"
    )
    separation: SeparationConfig = option(SeparationConfig(), "separation into D_c and D_p")
    train: TrainConfig = option(
        TrainConfig(epochs=200, optimizer=OptimConfig(schedule="half_drop")),
        "training recipe of the model, from scratch on all images",
    )
    ascent: float = option(1e-4, "learning rate of the ascent on D_p, which is constant", above=0)
    relearn: TrainConfig = option(
        TrainConfig(epochs=20, optimizer=CONSTANT),
        "recipe of the removal: epochs, images per step, and the optimiser of the descent on D_c "
        "(sgd), whose momentum and weight decay the ascent shares",
    )
    rule: Literal["defender", "oracle", "last"] = option(
        "defender",
        "epoch of the removal that is kept: the highest accuracy on held-out images of D_c minus "
        "accuracy on those of D_p (defender, d3jax's), the highest test ACC − ASR (oracle, the "
        "authors'), or the last (BackdoorBench's)",
    )
    held_out: float = option(
        0.1,
        "share of D_c and of D_p that the removal does not learn from (rule: defender; d3jax's)",
        above=0,
        high=0.5,
    )

    def __post_init__(self) -> None:
        check_fields(self)
        name = self.relearn.optimizer.name
        refuse(name != "sgd", f"relearn.optimizer.name: {name!r} does not apply to D-BR, want sgd")

    def build(self, info: DataInfo) -> TrainingDefense:
        """Build the training-time defence D-BR for the data set that `info` describes."""
        return make_d_br(self, info)


PRESETS = presets(
    "preset",
    DBRConfig(preset="authors"),
    DBRConfig(preset="backdoorbench", train=TrainConfig(), rule="last"),
    DBRConfig(
        preset="short",
        separation=short_separation(),
        train=TrainConfig(epochs=12, optimizer=OptimConfig(lr=0.05)),
        relearn=TrainConfig(epochs=10, optimizer=CONSTANT),
    ),
)


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
    config: DBRConfig, ascents: int, descents: int, steps: int
) -> optax.GradientTransformationExtraArgs:
    """Build SGD with one momentum for both kinds of passes, and a learning rate for each kind.

    The learning rate of the ascent is constant. The schedule of the descent counts its own steps.
    """
    own, period = config.relearn.optimizer, ascents + descents
    count = -(-steps // period) * descents
    schedule = make_schedule(own.schedule, steps=count, steps_per_epoch=descents)

    def rate(step: jax.Array, data: Removal) -> jax.Array:
        epoch, place = jnp.divmod(step, period)
        later = epoch * descents + jnp.maximum(place - ascents, 0)
        return jnp.where(place < ascents, config.ascent, own.lr * schedule(later))

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
    config: DBRConfig,
    info: DataInfo,
) -> tuple[TrainLoop, int]:
    """Build the `TrainLoop` of the removal; return it and the number of steps of an epoch.

    With `data.judged`, its carry is that of `keep_best`.
    """
    recipe, sizes = config.relearn, (len(data.suspects.labels), len(data.trusted.labels))
    each = passes(*sizes, recipe.batch_size)
    steps = recipe.steps or recipe.epochs * sum(each)

    def score(variables: Variables, data: Removal) -> jax.Array:
        assert data.judged and data.triggered
        judged, triggered = (
            traced_accuracy(model, variables, one) for one in (data.judged, data.triggered)
        )
        return judged - triggered

    advance = keep_best(score, min(sum(each), steps)) if data.judged else keep_update
    tx = removal_optimizer(config, *each, steps)
    draw = make_draw(*sizes, recipe.batch_size, make_augment(info, recipe.augment))
    step = make_train_step(
        tx, loss=removal_loss(model), batches=draw, advance=advance, sam=recipe.sam
    )
    state = init_state(variables, tx, key, no_best(variables) if data.judged else ())
    return TrainLoop(step, state, jax.tree.map(jnp.asarray, data), steps), sum(each)


def removal_data(
    config: DBRConfig,
    key: jax.Array,
    suspects: Split,
    trusted: Split,
    test_set: Split | None,
    triggered_set: Split | None,
) -> Removal:
    """Return D_p and D_c with the sets by which the rule chooses an epoch, as `Removal`.

    Raises `TypeError` if the rule is oracle and a set is missing.
    """
    if config.rule == "last":
        return Removal(suspects, trusted)
    trusted, judged = judged_by(config, stream(key, "trusted"), trusted, test_set, triggered_set)
    if config.rule == "defender":
        suspects, triggered_set = divide(stream(key, "suspects"), suspects, config.held_out)
    return Removal(suspects, trusted, judged, triggered_set)


def make_d_br(config: DBRConfig, info: DataInfo) -> TrainingDefense:
    """Return D-BR, a training-time defence that unlearns suspects and relearns trusted images.

    `found` is that of `consistency.found_shapes`.

    Deviations: the rule `defender` is d3jax's, and it holds images out. The authors' model has a
    second drop of the learning rate, after three quarters of its epochs. Of equally good epochs the
    first is kept. The last batch of D_p is as large as the others.
    """

    def train(
        key: jax.Array,
        model: Model,
        data: Split,
        begun: Variables,
        hooks: Hooks = Hooks(),
        *,
        test_set: Split | None = None,
        triggered_set: Split | None = None,
    ) -> Trained:
        found = separate(key, model, data, begun, config.separation, info, hooks)
        suspects, trusted = (
            Split(*(np.asarray(part)[rows] for part in data))
            for rows in (found.poisoned, found.clean)
        )
        removal = removal_data(config, key, suspects, trusted, test_set, triggered_set)
        loop = first_stage_loop(
            stream(key, "model"), model, data, config.train, info, classification_loss(model)
        )
        period = epoch_steps(len(data.labels), config.train.batch_size)
        state, more = fit(loop, hooks.within("model", period))
        lines = appended(found.lines, more)
        loop, period = removal_loop(
            stream(key, "removal"), model, state.variables, removal, config, info
        )
        state, more = fit(loop, hooks.within("removal", period))
        kept = state.variables if config.rule == "last" else state.carry["variables"]
        return Trained(kept, found_of(found), trace_of(appended(lines, more)))

    def check(model: Model, shapes: Variables, size: int, reserved: int) -> None:
        check_separation(config.separation, model, size)
        check_batch("train", config.train.batch_size, size, "images")
        trusted, suspects = counts_of(size, config.separation)
        if config.rule == "defender":
            if suspects < 2:
                raise ConfigError("rule: defender holds suspects out, and there is one suspect")
            trusted -= max(1, round(config.held_out * trusted))
        check_batch("relearn", config.relearn.batch_size, trusted, "trusted images")

    shared = first_stage_of(config.separation, info)
    needs = ("test_set", "triggered_set") if config.rule == "oracle" else ()
    rule = "" if config.rule == "last" else config.rule
    return TrainingDefense(**shared, train=train, check=check, needs=needs, rule=rule)
