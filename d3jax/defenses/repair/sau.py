"""SAU, shared adversarial unlearning (Wei, Zha & Wu, NeurIPS 2023, arXiv 2307.10562).

An adversarial example of the model that a frozen copy of the backdoored model mistakes in the same
way is *shared*; triggered images are of this kind. Every step finds perturbations that are shared,
by projected gradient ascent, and trains the model to see them otherwise than the copy:

    L = λ₁ CE(f(x), y) + λ₂ CE(f(x̃), y) + λ₃ L_u        x̃ = x + δ,  ‖δ‖∞ ≤ bound

L_u lowers the probability of the copy's wrong class. The settings are those of BackdoorBench's
program, which is the authors'.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ...config.fields import check_fields, option
from ...config.recipes import OptimConfig, ScheduleConfig
from ...core.losses import accuracy, cross_entropy
from ...core.types import DataInfo, Model, Repair, Split, Variables
from ...training.loop import TrainLoop
from ...training.step import Loss
from .common import one_loop, repair_loop


@dataclasses.dataclass(frozen=True, kw_only=True)
class SAUConfig:
    """Settings of SAU, which unlearns adversarial examples shared with the backdoored model.

    The defaults are the authors': 100 rounds over the reserved images in batches of 256, without
    augmentation, and Adam with amsgrad and learning rate 1e-4. Their program builds a cosine
    schedule and never uses it. For Tiny ImageNet they take 20 rounds.
    """

    bound: float = option(0.2, "largest change of a pixel, in [0, 1]", above=0)
    rate: float = option(0.2, "step of the perturbation", above=0)
    steps: int = option(5, "steps of the perturbation", low=1)
    beta_adversarial: float = option(0.01, "β₁, weight of fooling both models", low=0)
    beta_shared: float = option(1.0, "β₂, weight of equal predictions of both models", low=0)
    lam_clean: float = option(1.0, "λ₁, weight of the clean loss", low=0, member=True)
    lam_adversarial: float = option(0.0, "λ₂, weight of the true labels on x̃", low=0, member=True)
    lam_shared: float = option(1.0, "λ₃, weight of L_u", low=0, member=True)
    schedule: ScheduleConfig = option(
        ScheduleConfig(
            augment="none",
            optimizer=OptimConfig(name="amsgrad", lr=1e-4, weight_decay=0.0, schedule="constant"),
        ),
        "length, batch size and optimiser",
    )

    __post_init__ = check_fields

    def build(self, info: DataInfo) -> Repair:
        """Build the repair SAU with these settings for the data set that `info` describes."""
        return make_sau(self, info)


def js_divergence(p: Float[Array, "B K"], q: Float[Array, "B K"]) -> Float[Array, " B"]:
    """Return the Jensen–Shannon divergence [B] of probabilities, which are at least 1e-8."""
    p, q = jnp.maximum(p, 1e-8), jnp.maximum(q, 1e-8)
    middle = (p + q) / 2
    own = jnp.sum(p * jnp.log(p) + q * jnp.log(q), -1) / 2
    return own - jnp.sum(middle * jnp.log(middle), -1)


def unlearning_terms(
    probabilities: Float[Array, "B K"], wrong: Int[Array, " B"]
) -> Float[Array, " B"]:
    """Return L_u of each image [B]: high where the copy's wrong class `wrong` is likely.

    −½ [ln(1e-6 + min(1 − p, 0.999)) + ln(1 + 1e-6 − max(p, 0.001))] with p the probability of that
    class. There is no gradient below p = 0.001.
    """
    p = jnp.take_along_axis(probabilities, wrong[:, None], 1)[:, 0]
    others = jnp.minimum(probabilities.sum(1) - p, 0.999)
    left = (1 - jnp.maximum(p, 0.001)) + 1e-6  # in this order, which float32 does not round away
    return -(jnp.log(1e-6 + others) + jnp.log(left)) / 2


def sau_loss(model: Model, config: SAUConfig) -> Loss:
    """Build SAU's loss; the frozen copy is `data.loss_inputs["copy"]`.

    Both nets normalise by their stored statistics, which never change. x̃ is not clipped to [0, 1].
    The loss reports `clean_loss`, `shared_loss`, `shared` (the share of shared examples) and
    `accuracy`.
    """

    def loss(params, batch_stats, batch, key, data):
        images, labels, inputs = batch.images, batch.labels, data.loss_inputs

        def logits_of(variables: Variables, images: jax.Array) -> jax.Array:
            return model.apply(variables, images, train=False).logits

        own, copy = Variables(params, batch_stats), inputs["copy"]
        fixed = jax.lax.stop_gradient(own)
        clean = [logits_of(one, images).argmax(-1) for one in (fixed, copy)]

        def inner(change: jax.Array) -> jax.Array:
            found = [logits_of(one, images + change) for one in (fixed, copy)]
            return inner_loss(found, clean, labels, config)

        change = jnp.full_like(images, config.bound)
        for _ in range(config.steps):  # not a loop of XLA, in which convolutions are slow on CPU
            moved = change - config.rate * jnp.sign(jax.grad(inner)(change))
            change = jnp.clip(moved, -config.bound, config.bound)
        perturbed = images + jax.lax.stop_gradient(change)
        both = logits_of(own, jnp.concatenate([images, perturbed]))
        first, second = jnp.split(both, 2)
        wrong = logits_of(copy, perturbed).argmax(-1)
        chosen = (wrong != labels) & (wrong != clean[1])
        terms = unlearning_terms(jax.nn.softmax(second), wrong)
        parts = {
            "clean": cross_entropy(first, labels).mean(),
            "adversarial": cross_entropy(second, labels).mean(),
            "shared": jnp.where(chosen, terms, 0).mean(),
        }
        value = (
            inputs["clean"] * parts["clean"]
            + inputs["adversarial"] * parts["adversarial"]
            + inputs["shared"] * parts["shared"]
        )
        shared = (second.argmax(-1) == wrong) & chosen & (wrong != clean[0])
        reported = {
            "clean_loss": parts["clean"],
            "shared_loss": parts["shared"],
            "shared": shared.mean(),
            "accuracy": accuracy(first, labels),
        }
        return value, (batch_stats, reported)

    return loss


def inner_loss(
    perturbed: list[jax.Array], clean: list[jax.Array], labels: jax.Array, config: SAUConfig
) -> jax.Array:
    """Return the loss that SAU's perturbation descends: β₁ L_adv + β₂ L_sh.

    `perturbed` are the logits [B, K] of model and copy on x̃, `clean` their predictions [B] on x.
    L_adv counts images that do not fool a model yet, and L_sh those that are not shared.
    """
    found = [logits.argmax(-1) for logits in perturbed]
    fooled = [a != b for a, b in zip(found, clean, strict=True)]
    shared = fooled[0] & fooled[1] & (found[0] == found[1])
    adversarial = jnp.float32(0)
    for logits, done in zip(perturbed, fooled, strict=True):
        adversarial += jnp.where(done, 0, cross_entropy(logits, labels)).sum()
    apart = js_divergence(*(jax.nn.softmax(logits) for logits in perturbed))
    size = len(labels)
    return (
        -config.beta_adversarial * adversarial / (2 * size)
        + config.beta_shared * jnp.where(shared, 0, apart).sum() / size
    )


def make_sau(config: SAUConfig, info: DataInfo) -> Repair:
    """Return SAU, the repair that unlearns shared adversarial examples.

    The trace holds `loss`, `clean_loss`, `shared_loss`, `shared` and `accuracy` of the batches. The
    metric `shared` is taken at the end of the perturbation's steps.

    Deviation: an epoch is cut into equal batches, where the authors' code ends on a short one.
    """

    def loop(key: jax.Array, model: Model, variables: Variables, reserved: Split) -> TrainLoop:
        weights: dict[str, Any] = {
            "clean": jnp.float32(config.lam_clean),
            "adversarial": jnp.float32(config.lam_adversarial),
            "shared": jnp.float32(config.lam_shared),
        }
        return repair_loop(
            key, variables, reserved,
            loss=sau_loss(model, config), loss_inputs=weights | {"copy": variables},
            schedule=config.schedule, info=info,
        )  # fmt: skip

    return one_loop(loop)
