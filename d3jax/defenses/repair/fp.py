"""FP, fine-pruning, as BackdoorBench runs it (Liu, Dolan-Gavitt & Garg, RAID 2018).

Source: arXiv 1805.12185. FP prunes the penultimate features that are least active on clean images,
the least active first. It stops when clean accuracy has fallen by a given share. Then it fine-tunes
the network with the pruned features held at 0.
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
from ...core.random import stream
from ...core.types import DataInfo, Model, Params, Repair, Repaired, Split, Variables
from ...training.loop import Hooks, fit, trace_of
from ...training.step import TrainData, classification_loss
from .common import repair_loop
from .d3 import select
from .held_out import check_divisible, divide, held_out_option

HEAD = "head/kernel"
"""The path of the classifier's kernel [D, K], whose rows read the penultimate features."""


@dataclasses.dataclass(frozen=True)
class FPConfig:
    """Settings of fine-pruning, which prunes the least active features and then fine-tunes.

    The defaults are BackdoorBench's, except for a stopping rule that a defender can use. The
    published rule, `oracle`, reads the accuracy on clean *test* images. The rule `defender` reads
    the accuracy on held-out reserved images, which are not used to measure the activations.
    """

    rule: Literal["defender", "oracle"] = option(
        "defender",
        "accuracy that stops pruning: on held-out reserved images (defender) or test images "
        "(oracle)",
    )
    drop: float = option(0.1, "share of the clean accuracy that pruning may cost", low=0, high=1)
    rate: float = option(0.01, "share of the features pruned in each step", above=0, high=1)
    held_out: float = held_out_option()
    counting: Literal["backdoorbench", "exact"] = option(
        "backdoorbench",
        "backdoorbench: a count of n prunes n − 1 features, and the net one step past the limit is "
        "kept, as in its code; exact: it prunes n, and the last net within the limit is kept",
    )
    schedule: ScheduleConfig = option(
        ScheduleConfig(optimizer=OptimConfig()),
        "length, batch size and optimiser of the fine-tuning",
    )

    __post_init__ = check_fields

    def build(self, info: DataInfo) -> Repair:
        """Build the repair fine-pruning by these settings for the data set `info` describes."""
        return make_fp(self, info)


def count_to_prune(
    order: np.ndarray, features: np.ndarray, labels: np.ndarray, head: Any, config: FPConfig
) -> int:
    """Return how many features fine-pruning prunes until accuracy falls by the allowed share.

    `order` [D] are the features from the least to the most active; the first ones are pruned.
    `features` [M, D] and `labels` [M] are those of the images whose accuracy decides. `head` has
    `kernel` [D, K] and `bias` [K].
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
    """Return the repair that prunes the least active features and then fine-tunes the model.

    The trace is that of the fine-tuning, with the number of `pruned` features.

    Deviations: the paper prunes channels of the last convolution. BackdoorBench and d3jax set the
    classifier's weights of a feature to 0. In a pre-activation net, that feature is the sum of the
    last convolution and the shortcut. The rule `defender` is d3jax's.
    """

    def repair(
        key: jax.Array,
        model: Model,
        variables: Variables,
        reserved: Split,
        hooks: Hooks = Hooks(),
        test_set: Split | None = None,
    ) -> Repaired:
        if config.rule == "defender":
            counted, judged = divide(key, reserved, config.held_out)
        elif test_set is None:
            raise TypeError("rule: oracle reads the test set, give `test_set`")
        else:
            counted, judged = reserved, test_set
        order = np.argsort(penultimate(model, variables, counted.images).mean(0), kind="stable")
        features = penultimate(model, variables, judged.images)
        labels = np.asarray(judged.labels)
        count = count_to_prune(order, features, labels, variables.params["head"], config)
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
        check_divisible(config.rule, size)

    needs = ("test_set",) if config.rule == "oracle" else ()
    return Repair(repair, check, needs=needs, rule=config.rule)


def _masked(params: Params, kept: jax.Array) -> Params:
    """Return a model's parameters with the classifier's kernel times the mask `kept` [D, 1]."""
    head = params["head"]
    return params | {"head": head | {"kernel": head["kernel"] * kept}}


def _hold(params: Params, data: TrainData) -> Params:
    """Return a model's parameters with the classifier's weights of pruned features set to 0."""
    return _masked(params, data.loss_inputs["kept"])
