"""ANP, adversarial neuron pruning (Wu & Wang, NeurIPS 2021, arXiv 2110.14430).

Neurons of a backdoor are sensitive: a small change of their weights makes a backdoored model err on
clean images. ANP learns a mask m ∈ [0, 1] for every BatchNorm channel, while an adversary perturbs
scale γ and bias β of the channels by ε_w and ε_b:

    clean:      γ · m,           β
    perturbed:  γ · (m + ε_w),   β · (1 + ε_b)
    min_m  α · CE(clean) + (1 − α) · max_ε CE(perturbed)

Channels whose mask is at most a threshold τ are then pruned in the original model: γ becomes 0, and
β stays.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from ...config.fields import check_fields, option, presets
from ...config.recipes import OptimConfig, ScheduleConfig
from ...core.losses import accuracy, cross_entropy
from ...core.random import stream
from ...core.types import DataInfo, Model, Repair, Repaired, Split, Variables
from ...training.loop import Hooks, TrainLoop, fit, trace_of
from ...training.step import Loss
from .common import repair_loop
from .held_out import check_divisible, held_out_option, judged_by
from .masks import choose, clipped, count_at, masked, ones_for, pruned
from .pruning import check_channels


@dataclasses.dataclass(frozen=True, kw_only=True)
class ANPConfig:
    """Settings of ANP, which prunes the channels that are sensitive to perturbed weights.

    They are a preset, and the values that differ from it. The preset `authors` learns the masks for
    2,000 steps of SGD with learning rate 0.2, momentum 0.9 and batches of 128. The authors have
    1 % of the training images (`reserved.fraction: 0.01`). The preset `backdoorbench` has learning
    rate 0.01 and batches of 256.
    """

    preset: Literal["authors", "backdoorbench"] = option(
        "authors", "source of the schedule, where it is not given"
    )
    rule: Literal["defender", "oracle"] = option(
        "defender",
        "choice of the threshold: the largest that keeps the accuracy on held-out reserved images "
        "(defender), or, of those that keep the test accuracy, the one with the lowest test ASR "
        "(oracle, BackdoorBench's)",
    )
    eps: float = option(0.4, "size of the perturbation, relative to γ and β", low=0)
    alpha: float = option(0.2, "α, weight of the clean loss", low=0, high=1)
    drop: float = option(0.1, "share of the clean accuracy that pruning may cost", low=0, high=1)
    held_out: float = held_out_option()
    schedule: ScheduleConfig = option(
        ScheduleConfig(
            steps=2000,
            batch_size=128,
            optimizer=OptimConfig(lr=0.2, weight_decay=0.0, schedule="constant"),
        ),
        "length, batch size and optimiser of the masks",
    )

    __post_init__ = check_fields

    def build(self, info: DataInfo) -> Repair:
        """Build the repair ANP with these settings for the data set that `info` describes."""
        return make_anp(self, info)


PRESETS = presets(
    "preset",
    ANPConfig(preset="authors"),
    ANPConfig(
        preset="backdoorbench",
        schedule=ScheduleConfig(
            steps=2000, optimizer=OptimConfig(weight_decay=0.0, schedule="constant")
        ),
    ),
)


def anp_loss(model: Model, eps: float, alpha: float) -> Loss:
    """Build ANP's loss of the masks: α · CE(clean) + (1 − α) · CE(perturbed).

    The parameters of the loss are the masks; those of the model come in `data.reference_params`.
    The perturbation begins at U(−ε, ε) and moves by ε · sign of its gradient. As in the authors'
    code, it is not bounded by ε afterwards. The model is in train mode. The loss reports
    `clean_loss`, `noisy_loss` and `accuracy` on the clean images.
    """

    def loss(masks, batch_stats, batch, key, data):
        def run(masks, noise):
            scales = jax.tree.map(jnp.add, masks, noise["scale"])
            biases = jax.tree.map(lambda one: 1 + one, noise["bias"])
            params = masked(data.reference_params, scales, biases)
            outputs = model.apply(Variables(params, batch_stats), batch.images, train=True)
            return cross_entropy(outputs.logits, batch.labels).mean(), outputs

        leaves, tree = jax.tree.flatten({"scale": masks, "bias": masks})
        keys = jax.random.split(stream(key, "noise"), len(leaves))
        drawn = [
            jax.random.uniform(each, leaf.shape, minval=-eps, maxval=eps)
            for each, leaf in zip(keys, leaves, strict=True)
        ]
        noise = jax.tree.unflatten(tree, drawn)
        fixed = jax.lax.stop_gradient(masks)
        slopes = jax.grad(lambda noise: run(fixed, noise)[0])(noise)
        noise = jax.tree.map(lambda one, slope: one + eps * jnp.sign(slope), noise, slopes)
        clean, outputs = run(masks, jax.tree.map(jnp.zeros_like, noise))
        noisy, _ = run(masks, jax.lax.stop_gradient(noise))
        reported = {
            "clean_loss": clean,
            "noisy_loss": noisy,
            "accuracy": accuracy(outputs.logits, batch.labels),
        }
        return alpha * clean + (1 - alpha) * noisy, (outputs.batch_stats, reported)

    return loss


def mask_loop(
    key: jax.Array, model: Model, variables: Variables, reserved: Split, config: ANPConfig, info
) -> TrainLoop:
    """Build the `TrainLoop` that learns ANP's masks; its parameters are the masks."""
    begin = Variables(ones_for(model, variables.params), variables.batch_stats)
    return repair_loop(
        stream(key, "steps"), begin, reserved,
        loss=anp_loss(model, config.eps, config.alpha),
        project=clipped, reference_params=variables.params, schedule=config.schedule, info=info,
    )  # fmt: skip


def make_anp(config: ANPConfig, info: DataInfo) -> Repair:
    """Return ANP, the repair that prunes the channels with the lowest learned masks.

    The trace is that of the masks' training, with the chosen `threshold` and the number of `pruned`
    channels. If no threshold keeps the accuracy, the threshold is −1 and nothing is pruned.

    Deviations: batches are shuffled epochs, where the authors draw with replacement. The rule
    `defender` is d3jax's.
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
        learned, judged = judged_by(config, key, reserved, test_set, triggered_set)
        loop = mask_loop(key, model, variables, learned, config, info)
        state, records = fit(loop, hooks.within("masks"))
        masks = jax.device_get(state.variables.params)
        chosen = choose(model, variables, masks, judged, triggered_set, config.drop)
        count, size = count_at(masks, chosen)
        hooks.say(f"prunes {count} of {size} channels, those with masks up to {chosen:.2f}")
        found = {"threshold": chosen, "pruned": count}
        trace = trace_of([record | found for record in records])
        return Repaired(pruned(variables, masks, chosen), trace)

    def check(model: Model, shapes: Variables, size: int) -> None:
        check_channels(model)
        check_divisible(config.rule, size)

    needs = ("test_set", "triggered_set") if config.rule == "oracle" else ()
    return Repair(repair, check, needs=needs, rule=config.rule)
