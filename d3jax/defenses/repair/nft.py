"""NFT, neural mask fine-tuning (Karim et al., ECCV 2024).

A mask in [μ_l, 1] for every BatchNorm channel of layer l is trained on mixed clean images:

    min_m  CE(mixup) + η · Σ |1 − m| / n        μ_l = a · exp(−b · l)

n is the number of clean images in a class. Masks of early layers, which learn general features, may
change little. The result is the model with γ · m in place of γ.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from ...config.fields import check_fields, option
from ...config.recipes import OptimConfig, ScheduleConfig
from ...core.losses import accuracy, cross_entropy
from ...core.random import stream
from ...core.types import DataInfo, Model, Repair, Repaired, Split, Variables
from ...training.loop import Hooks, fit, trace_of
from ...training.step import Loss
from .common import repair_loop
from .masks import Masks, masked, ones_for
from .pruning import check_channels


@dataclasses.dataclass(frozen=True, kw_only=True)
class NFTConfig:
    """Settings of NFT, which fine-tunes masks of BatchNorm channels on mixed clean images.

    The defaults are the authors' program's: 1,000 steps of batches of 128, SGD with momentum 0.95
    and learning rate 0.05. They have 1 % of the training images (`reserved.fraction: 0.01`).
    """

    eta: float = option(0.001, "η, weight of the distance of the masks to 1", low=0, member=True)
    first: float = option(0.8, "a, least mask of the first layer", low=0, high=1)
    decay: float = option(0.5, "b, decay of the least mask from layer to layer", low=0)
    mix: float = option(1.0, "α of Beta(α, α), from which a batch draws its mixing", above=0)
    schedule: ScheduleConfig = option(
        ScheduleConfig(
            steps=1000,
            batch_size=128,
            optimizer=OptimConfig(lr=0.05, momentum=0.95, weight_decay=0.0, schedule="cosine_40"),
        ),
        "length, batch size and optimiser of the masks",
    )

    __post_init__ = check_fields

    def build(self, info: DataInfo) -> Repair:
        """Build the repair NFT with these settings for the data set that `info` describes."""
        return make_nft(self, info)


def least_masks(model: Model, masks: Masks, config: NFTConfig) -> Masks:
    """Return the least mask of every channel: a · exp(−b · l) in the l-th BatchNorm layer."""
    names = ["/".join(norm.path) for norm in model.channels]
    return {
        name: config.first * jnp.exp(-config.decay * layer) * masks[name]
        for layer, name in enumerate(names)
    }


def nft_loss(model: Model, mix: float) -> Loss:
    """Build NFT's loss of the masks; the model's parameters come in `data.reference_params`.

    A batch is mixed with itself in another order, by one draw of Beta(α, α). `data.loss_inputs` has
    `eta`, which is η over the number of images in a class.
    """

    def loss(masks, batch_stats, batch, key, data):
        share = jax.random.beta(stream(key, "share"), mix, mix)
        order = jax.random.permutation(stream(key, "order"), len(batch.labels))
        images = share * batch.images + (1 - share) * batch.images[order]
        params = masked(data.reference_params, masks)
        outputs = model.apply(Variables(params, batch_stats), images, train=True)
        ce = share * cross_entropy(outputs.logits, batch.labels).mean()
        ce += (1 - share) * cross_entropy(outputs.logits, batch.labels[order]).mean()
        away = sum((jnp.sum(jnp.abs(1 - one)) for one in masks.values()), jnp.float32(0))
        reported = {
            "clean_loss": ce,
            "away": away,
            "accuracy": accuracy(outputs.logits, batch.labels),
        }
        return ce + data.loss_inputs["eta"] * away, (outputs.batch_stats, reported)

    return loss


def make_nft(config: NFTConfig, info: DataInfo) -> Repair:
    """Return NFT, the repair that fine-tunes masks of BatchNorm channels.

    The trace holds `loss`, `clean_loss`, `away` (Σ|1 − m|) and `accuracy` of the mixed batches.

    Deviations: batches are shuffled epochs, where the authors draw with replacement. The learning
    rate falls in every step; theirs falls after each of 5 rounds of 200 steps. Running statistics
    are those of the masks' training.
    """

    def repair(
        key: jax.Array, model: Model, variables: Variables, reserved: Split, hooks: Hooks = Hooks()
    ) -> Repaired:
        check_channels(model)
        masks = ones_for(model, variables.params)
        low = least_masks(model, masks, config)
        per_class = len(reserved.labels) / info.num_classes
        loop = repair_loop(
            stream(key, "steps"), Variables(masks, variables.batch_stats), reserved,
            loss=nft_loss(model, config.mix),
            project=lambda masks, data: jax.tree.map(
                lambda one, low: jnp.clip(one, low, 1), masks, data.loss_inputs["low"]
            ),
            loss_inputs={"eta": jnp.float32(config.eta / per_class), "low": low},
            reference_params=variables.params, schedule=config.schedule, info=info,
        )  # fmt: skip
        state, records = fit(loop, hooks.within("masks"))
        params = masked(variables.params, state.variables.params)
        return Repaired(Variables(params, state.variables.batch_stats), trace_of(records))

    def check(model: Model, shapes: Variables, size: int) -> None:
        check_channels(model)

    return Repair(repair, check)
