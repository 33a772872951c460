"""A backdoored model from a data set and an attack: the recipe that every study starts with."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..base import Attack, Dataset, Model, Split, Variables, stream
from ..config import TrainConfig
from ..data.augment import make_augment
from ..data.batching import epoch_plan
from .loop import Job, Session, fit, trace_of
from .optim import make_optimizer
from .step import TrainData, classification_loss, init_state, make_batches, make_rows, make_train_step
from .streaming import make_feed


class Backdoored(NamedTuple):
    """A model trained on poisoned data, the `trigger` that its attack made, and the `trace` of its training."""

    variables: Variables
    trigger: Any
    trace: dict[str, np.ndarray]


def train_backdoored(
    key: jax.Array,
    model: Model,
    dataset: Dataset,
    attack: Attack,
    config: TrainConfig = TrainConfig(),  # noqa: B008
    session: Session = Session(),
) -> Backdoored:
    """Trains `model` from scratch on `dataset.train`, poisoned by `attack` inside every step; everything follows from `key`.

    The last step's variables are kept, as the field does. Raises `AttackError` where the data have too few images for the
    attack and `DivergedError` where the loss breaks.
    """
    job = backdoor_job(key, model, dataset, attack, config)
    state, lines = fit(job, session)
    return Backdoored(state.variables, job.data.trigger, trace_of(lines))


def backdoor_job(
    key: jax.Array, model: Model, dataset: Dataset, attack: Attack, config: TrainConfig, *, streamed: bool = False
) -> Job:
    """The loop of `train_backdoored`. Jobs that differ in the key alone have one step in common.

    `streamed` leaves the images on the host and brings each step its batch: the same rows, the same numbers.
    """
    size = len(dataset.train.labels)
    steps_per_epoch, batch_size = epoch_plan(size, config.batch_size, drop_last=True)
    steps = config.steps or config.epochs * steps_per_epoch
    tx = make_optimizer(config.optimizer, steps=steps, steps_per_epoch=steps_per_epoch)
    rows = make_rows(size=size, steps_per_epoch=steps_per_epoch, batch_size=batch_size)
    batches = make_batches(rows=rows, augment=make_augment(dataset.info, config.augment), attack=attack)
    step = make_train_step(tx, loss=classification_loss(model), batches=batches)
    state = init_state(model.init(stream(key, "init")), tx, stream(key, "train"))
    poisoned, trigger = poisoned_rows(key, attack, dataset.train.labels), attack.init(stream(key, "trigger"))
    if streamed:
        feed = make_feed(dataset.train, np.asarray(poisoned), rows, state.key, steps)
        return Job(step, state, TrainData(None, None, trigger), steps, feed)
    return Job(step, state, TrainData(Split(*map(jnp.asarray, dataset.train)), poisoned, trigger), steps)


def poisoned_rows(key: jax.Array, attack: Attack, labels: jax.Array) -> jax.Array:
    """Which of the training rows [N] `train_backdoored` poisons under `key`."""
    return attack.select(stream(key, "select"), labels)
