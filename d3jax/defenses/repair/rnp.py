"""RNP, reconstructive neuron pruning (Li et al., ICML 2023, arXiv 2305.14876).

1. Unlearn: gradient ascent on a few clean images, until the model knows them no more. What is left
   are the neurons of the backdoor.
2. Recover: from the unlearned weights, masks of the BatchNorm channels are trained to raise the
   clean accuracy again. The masks of channels of the backdoor fall.
3. Prune, in the original model, the channels whose mask is at most a threshold.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax

from ...config.fields import check_fields, option, presets
from ...config.recipes import OptimConfig, ScheduleConfig
from ...core.losses import accuracy, cross_entropy
from ...core.random import stream
from ...core.types import DataInfo, Model, Repair, Repaired, Split, Variables
from ...training.loop import Hooks, fit, trace_of
from ...training.step import Loss
from .common import repair_loop
from .forget import forget
from .held_out import check_divisible, held_out_option, judged_by
from .masks import choose, clipped, count_at, masked, ones_for, pruned
from .pruning import check_channels


@dataclasses.dataclass(frozen=True, kw_only=True)
class RNPConfig:
    """Settings of RNP, which finds the channels of a backdoor by unlearning clean images.

    They are a preset, and the values that differ from it. The preset `authors` has batches of 128,
    the preset `backdoorbench` batches of 256 and the fixed threshold 0.7. Both have 1 % of the
    training images (`reserved.fraction: 0.01`). The authors sweep the threshold and pick it by test
    rates (`rule: oracle`). Their log for BadNets ends at 0.3.
    """

    preset: Literal["authors", "backdoorbench"] = option(
        "authors", "source of rule, unlearn and recover, where they are not given"
    )
    rule: Literal["defender", "oracle", "fixed"] = option(
        "defender",
        "choice of the threshold: the largest that keeps the accuracy on held-out reserved images "
        "(defender); of those that keep the test accuracy, the one with the lowest test ASR "
        "(oracle); or `threshold` (fixed)",
    )
    threshold: float = option(0.7, "threshold of the masks (rule: fixed)", low=0, high=1)
    drop: float = option(0.1, "share of the clean accuracy that pruning may cost", low=0, high=1)
    held_out: float = held_out_option()
    least: float = option(0.2, "accuracy in an epoch at which unlearning stops", low=0, high=1)
    weight: float = option(0.2, "weight of the clean loss of the masks", above=0)
    unlearn: ScheduleConfig = option(
        ScheduleConfig(epochs=20, batch_size=128, optimizer=OptimConfig(schedule="half_drop")),
        "length, batch size and optimiser of the unlearning",
    )
    recover: ScheduleConfig = option(
        ScheduleConfig(
            epochs=20,
            batch_size=128,
            optimizer=OptimConfig(lr=0.2, weight_decay=0.0, schedule="constant"),
        ),
        "length, batch size and optimiser of the masks",
    )

    __post_init__ = check_fields

    def build(self, info: DataInfo) -> Repair:
        """Build the repair RNP with these settings for the data set that `info` describes."""
        return make_rnp(self, info)


def _batches_of_256(schedule: ScheduleConfig) -> ScheduleConfig:
    return dataclasses.replace(schedule, batch_size=256)


PRESETS = presets(
    "preset",
    RNPConfig(preset="authors"),
    RNPConfig(
        preset="backdoorbench",
        rule="fixed",
        unlearn=_batches_of_256(RNPConfig().unlearn),
        recover=_batches_of_256(RNPConfig().recover),
    ),
)


def recover_loss(model: Model, weight: float) -> Loss:
    """Build the loss of the masks: `weight` · CE of the unlearned model with masked channels.

    The parameters of the loss are the masks; the unlearned model's come in `data.reference_params`.
    """

    def loss(masks, batch_stats, batch, key, data):
        params = masked(data.reference_params, masks)
        outputs = model.apply(Variables(params, batch_stats), batch.images, train=True)
        ce = cross_entropy(outputs.logits, batch.labels).mean()
        reported = {"clean_loss": ce, "accuracy": accuracy(outputs.logits, batch.labels)}
        return weight * ce, (outputs.batch_stats, reported)

    return loss


def make_rnp(config: RNPConfig, info: DataInfo) -> Repair:
    """Return RNP, the repair that prunes channels that only a forgetful model still needs.

    The trace is that of the masks' training, with the `unlearned` accuracy, the chosen `threshold`
    and the number of `pruned` channels. If no threshold keeps the accuracy, it is −1 and nothing is
    pruned.

    Deviation: the rule `defender` is d3jax's.
    """

    def repair(
        key: jax.Array,
        model: Model,
        variables: Variables,
        reserved: Split,
        hooks: Hooks = Hooks(),
        test_set: Split | None = None,
        triggered_set: Split | None = None,
    ) -> Repaired:
        check_channels(model)
        learned, judged = reserved, reserved
        if config.rule != "fixed":
            learned, judged = judged_by(config, key, reserved, test_set, triggered_set)
        forgetful, known = forget(
            stream(key, "unlearn"), model, variables, learned, config.unlearn, config.least, info,
            hooks,
        )  # fmt: skip
        begin = Variables(ones_for(model, variables.params), forgetful.batch_stats)
        loop = repair_loop(
            stream(key, "recover"), begin, learned,
            loss=recover_loss(model, config.weight), project=clipped,
            reference_params=forgetful.params, schedule=config.recover, info=info,
        )  # fmt: skip
        state, records = fit(loop, hooks.within("recover"))
        masks = jax.device_get(state.variables.params)
        chosen = config.threshold
        if config.rule != "fixed":
            chosen = choose(model, variables, masks, judged, triggered_set, config.drop)
        count, size = count_at(masks, chosen)
        hooks.say(f"unlearned to an accuracy of {known:.3f}; prunes {count} of {size} channels")
        found = {"unlearned": known, "threshold": chosen, "pruned": count}
        trace = trace_of([record | found for record in records])
        return Repaired(pruned(variables, masks, chosen), trace)

    def check(model: Model, shapes: Variables, size: int) -> None:
        check_channels(model)
        check_divisible(config.rule, size)

    needs = ("test_set", "triggered_set") if config.rule == "oracle" else ()
    rule = "" if config.rule == "fixed" else config.rule
    return Repair(repair, check, needs=needs, rule=rule)
