"""FP: fine-pruning (Liu, Dolan-Gavitt & Garg, RAID 2018, arXiv 1805.12185), as BackdoorBench runs it.

Features of the penultimate layer that clean images leave silent are pruned, the least active first,
while clean accuracy falls by less than a share; then the net is fine-tuned with the pruned features
held at 0.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from ...analysis.features import penultimate
from ...config.fields import check_fields, option
from ...config.recipes import OptimConfig, ScheduleConfig
from ...core.errors import ConfigError
from ...core.random import stream
from ...core.types import DataInfo, Model, Params, Repair, Repaired, Split, Variables
from ...training.loop import Hooks, fit, trace_of
from ...training.step import TrainData, classification_loss
from .common import repair_loop
from .d3 import select

HEAD = "head/kernel"
"""The classifier's kernel [D, K], whose rows read the penultimate features."""


@dataclasses.dataclass(frozen=True)
class FPConfig:
    """Default: BackdoorBench's settings, with a rule that a defender can use.

    The published rule reads the accuracy of clean *test* images (`oracle`); `defender` reads that of
    reserved images which are held out of the count of activations.
    """

    rule: Literal["defender", "oracle"] = option(
        "defender", "accuracy that stops pruning: of held-out reserved images, or of test images"
    )
    drop: float = option(0.1, "share of the accuracy that pruning may cost", low=0, high=1)
    rate: float = option(0.01, "share of the features pruned in a step", above=0, high=1)
    held_out: float = option(
        0.2, "share of the reserved images held out (rule: defender)", above=0, high=0.9
    )
    counting: Literal["backdoorbench", "exact"] = option(
        "backdoorbench",
        "backdoorbench: step n prunes n − 1 features, and the net one step past the limit is kept, "
        "as its program does; exact: n, and the last within the limit",
    )
    schedule: ScheduleConfig = option(
        ScheduleConfig(optimizer=OptimConfig()), "length, batch, optimiser of the fine-tuning"
    )

    __post_init__ = check_fields

    def build(self, info: DataInfo) -> Repair:
        """Return the repair for a data set."""
        return make_fp(self, info)


def count_to_prune(
    order: np.ndarray, features: np.ndarray, labels: np.ndarray, head: Any, config: FPConfig
) -> int:
    """Return how many features are pruned, the first of `order` [D].

    `features` [M, D] and `labels` [M] are of the images whose accuracy decides; `head` has `kernel`
    [D, K] and `bias` [K].
    """
    kernel, bias = (np.asarray(head[name], np.float64) for name in ("kernel", "bias"))
    size, off = len(order), config.counting == "backdoorbench"
    counts = range(0, size + 1, max(1, math.ceil(config.rate * size)))

    def accuracy(count: int) -> float:
        kept = kernel.copy()
        kept[order[: max(0, count - off)]] = 0
        return float(((features @ kept + bias).argmax(1) == labels).mean())

    whole, last = accuracy(0), 0
    for count in counts:
        fine = abs(accuracy(count) - whole) < config.drop * whole
        if fine or off:
            last = count
        if not fine:
            break
    return max(0, last - off)


def make_fp(config: FPConfig, info: DataInfo) -> Repair:
    """Return FP. The trace is the fine-tuning's, with the number of `pruned` features.

    Deviation from the paper: it prunes channels of the last convolution; BackdoorBench, and this,
    zero the classifier's weights of a feature, which is (last convolution + shortcut) in a
    pre-activation net. The defender's rule is ours.
    """

    def repair(
        key: jax.Array,
        model: Model,
        variables: Variables,
        reserved: Split,
        hooks: Hooks = Hooks(),
        test_set: Split | None = None,
    ) -> Repaired:
        features, labels = (
            penultimate(model, variables, reserved.images),
            np.asarray(reserved.labels),
        )
        if config.rule == "oracle":
            if test_set is None:
                raise TypeError("rule: oracle reads the test set, give `test_set`")
            judged = penultimate(model, variables, test_set.images), np.asarray(test_set.labels)
            counted = features
        else:
            rows = np.asarray(jax.random.permutation(stream(key, "held_out"), len(labels)))
            held, counted = np.split(rows, [max(1, round(config.held_out * len(rows)))])
            judged, counted = (features[held], labels[held]), features[counted]
        order = np.argsort(counted.mean(0), kind="stable")
        count = count_to_prune(order, *judged, variables.params["head"], config)
        hooks.say(f"prunes {count} of {len(order)} features")
        kept = jnp.ones(len(order)).at[order[:count]].set(0)[:, None]
        begin = variables._replace(params=_masked(variables.params, kept))
        loop = repair_loop(
            stream(key, "steps"), begin, reserved,
            loss=classification_loss(model), project=_hold, loss_inputs={"kept": kept},
            schedule=config.schedule, info=info,
        )  # fmt: skip
        state, records = fit(loop, hooks)
        trace = trace_of([record | {"pruned": count} for record in records])
        return Repaired(state.variables, trace)

    def check(model: Model, shapes: Variables, size: int) -> None:
        select(shapes.params, HEAD, "fp")
        if config.rule == "defender" and size < 2:
            raise ConfigError("rule: defender holds images out, and there is one reserved image")

    needs = ("test_set",) if config.rule == "oracle" else ()
    return Repair(repair, check, needs=needs, rule=config.rule)


def _masked(params: Params, kept: jax.Array) -> Params:
    head = params["head"]
    return params | {"head": head | {"kernel": head["kernel"] * kept}}


def _hold(params: Params, data: TrainData) -> Params:
    """Return the parameters with the pruned features' weights at 0."""
    return _masked(params, data.loss_inputs["kept"])
