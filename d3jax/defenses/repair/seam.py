"""SEAM, selective amnesia (Zhu et al., IEEE S&P 2023, arXiv 2212.04687).

1. Forget: a few clean images with random wrong labels make the model forget all it knows, the
   backdoor included.
2. Recover: clean images with their labels bring back the main task, and nothing brings back the
   backdoor.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ...config.fields import check_fields, option
from ...config.recipes import OptimConfig, ScheduleConfig
from ...core.losses import accuracy, cross_entropy
from ...core.random import stream
from ...core.types import DataInfo, Model, Repair, Repaired, Split, Variables
from ...data.batching import epoch_plan
from ...training.loop import Hooks, fit, trace_of
from ...training.step import Loss, classification_loss
from .common import repair_loop
from .forget import watch_accuracy


@dataclasses.dataclass(frozen=True, kw_only=True)
class SEAMConfig:
    """Settings of SEAM, which makes a model forget everything and then recover the main task.

    The defaults are those of the backdoor-toolbox's program: Adam with learning rate 1e-3. It
    forgets on 1 % of the training images and recovers on 10 %; here both are shares of the reserved
    images.
    """

    share: float = option(0.2, "share of the reserved images to forget on", above=0, high=1)
    least: float = option(
        0.0, "accuracy on true labels at which forgetting stops (0: min(2 / K, 0.6))", low=0, high=1
    )
    enough: float = option(0.97, "accuracy in an epoch at which recovering stops", low=0, high=1)
    forget: ScheduleConfig = option(
        ScheduleConfig(
            epochs=10,
            batch_size=128,
            optimizer=OptimConfig(name="adam", lr=1e-3, weight_decay=0.0, schedule="constant"),
        ),
        "longest length, batch size and optimiser of the forgetting",
    )
    recover: ScheduleConfig = option(
        ScheduleConfig(
            epochs=100,
            batch_size=128,
            optimizer=OptimConfig(name="adam", lr=1e-3, weight_decay=0.0, schedule="constant"),
        ),
        "longest length, batch size and optimiser of the recovering",
    )

    __post_init__ = check_fields

    def build(self, info: DataInfo) -> Repair:
        """Build the repair SEAM with these settings for the data set that `info` describes."""
        return make_seam(self, info)


def wrong_labels(key: jax.Array, labels: np.ndarray, classes: int) -> np.ndarray:
    """Return for each label [N] another class, drawn evenly."""
    shift = jax.random.randint(key, (len(labels),), 1, classes)
    return np.asarray((jnp.asarray(labels) + shift) % classes)


def forget_loss(model: Model) -> Loss:
    """Build the loss of the forgetting: CE with the wrong labels `data.loss_inputs["wrong"]` [N].

    It reports `accuracy` on the true labels.
    """

    def loss(params, batch_stats, batch, key, data):
        outputs = model.apply(Variables(params, batch_stats), batch.images, train=True)
        value = cross_entropy(outputs.logits, data.loss_inputs["wrong"][batch.rows]).mean()
        return value, (outputs.batch_stats, {"accuracy": accuracy(outputs.logits, batch.labels)})

    return loss


def make_seam(config: SEAMConfig, info: DataInfo) -> Repair:
    """Return SEAM, the repair that makes a model forget and then recover the main task.

    Both phases end after the first epoch whose accuracy, in train mode, reaches the bound. The
    trace is that of the recovering.
    """
    least = config.least or min(2 / info.num_classes, 0.6)

    def repair(
        key: jax.Array, model: Model, variables: Variables, reserved: Split, hooks: Hooks = Hooks()
    ) -> Repaired:
        count = max(1, round(config.share * len(reserved.labels)))
        rows = np.asarray(jax.random.permutation(stream(key, "rows"), len(reserved.labels)))[:count]
        few = Split(*(np.asarray(part)[rows] for part in reserved))
        wrong = wrong_labels(stream(key, "labels"), np.asarray(few.labels), info.num_classes)

        def phase(name, begin, split, schedule, ended, **given):
            per_epoch, _ = epoch_plan(len(split.labels), schedule.batch_size, drop_last=False)
            loop = repair_loop(
                stream(key, name), begin, split,
                schedule=schedule, info=info, advance=watch_accuracy(per_epoch),
                carry={"sum": jnp.float32(0), "accuracy": jnp.float32(name == "forget")}, **given,
            )  # fmt: skip
            loop = loop._replace(finished=lambda state: ended(state.carry["accuracy"]))
            return fit(loop, hooks.within(name)._replace(log_every=per_epoch))

        state, _ = phase(
            "forget", variables, few, config.forget, lambda acc: acc < least,
            loss=forget_loss(model), loss_inputs={"wrong": jnp.asarray(wrong)},
        )  # fmt: skip
        state, records = phase(
            "recover", state.variables, reserved, config.recover, lambda acc: acc > config.enough,
            loss=classification_loss(model),
        )  # fmt: skip
        return Repaired(state.variables, trace_of(records))

    return Repair(repair)
