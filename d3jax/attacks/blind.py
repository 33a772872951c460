"""The Blind attack: changed training code adds the loss of triggered images to the model's loss.

Source: Bagdasaryan and Shmatikov 2021, arXiv 2005.03823.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from ..config.fields import check_fields, check_foreign, option
from ..core.random import stream
from ..core.types import Array, Attack, Batch, DataInfo, Params
from ..training.step import Loss
from .badnets import Corner, corner
from .poisoning import Mode, labeller, mode_option, target_option

KEPT = -1
"""The value in `PIXELS` of a pixel that the trigger leaves as it is."""
PIXELS = np.array(
    [
        [1, 0, 1],
        [KEPT, 1, KEPT],
        [KEPT, KEPT, 0],
        [KEPT, 1, KEPT],
        [1, 0, 1],
    ]
)
"""The nine pixels of the authors' pattern: 1 is a white pixel, 0 a black one."""


@dataclasses.dataclass(frozen=True)
class BlindConfig:
    """Settings of the Blind attack, which changes the training code and no training data.

    By default the trigger is the authors' pattern of nine black and white pixels. The weights and
    the threshold are BackdoorBench's.
    """

    target: int | str = target_option()
    mode: Mode = mode_option()
    pattern: Literal["pixels", "white"] = option(
        "pixels",
        "pixels: the authors' nine black and white pixels in 5×3; white: a square of `size`",
    )
    size: int = option(1, "side of the white square in pixels (1: the paper's single pixel)", low=1)
    position: Corner = option("top_right", "place of the pattern in the image")
    margin: int = option(
        3, "pixels between the pattern and the border (ignored at the centre)", low=0
    )
    clean_weight: float = option(1.0, "weight of the loss on clean images", above=0)
    attack_weight: float = option(0.9, "weight of the loss on triggered images", above=0)
    threshold: float = option(
        1.0, "the attack loss counts only in batches whose clean loss is below this", above=0
    )

    def __post_init__(self) -> None:
        check_fields(self)
        check_foreign(self, "pattern", {"size": ("white",)})

    def build(self, info: DataInfo) -> Attack:
        """Build the Blind attack with these settings for the data set that `info` describes."""
        return make_blind(self, info)


def make_blind(config: BlindConfig, info: DataInfo) -> Attack:
    """Return the Blind `Attack`, whose training code adds the loss of triggered images.

    The loss is w_c · L(x, y) + w_a · [L(x, y) < threshold] · L(stamp(x), relabel(y)), for all
    images x of a batch and their labels y. The factor in brackets is 0 or 1, without a gradient.
    The trigger is `{"mask": [H, W, 1], "pattern": [H, W, C]}`. No training image is poisoned:
    `select` draws no row, and `poison` returns the batch without a poisoned row.

    The attacker's code runs after the augmentation, so the trigger does not move with the image.
    Running statistics are updated by the clean images. Where the attack loss counts, the triggered
    images update them afterwards. The step also reports `clean_loss`, `attack_loss` and `attacked`,
    which is 1 where the attack loss counts.

    Deviations: the authors balance the losses by MGDA. Users measured 18 % clean accuracy with it
    on CIFAR-10, and an author recommended fixed weights (backdoors101, issue 17). BackdoorBench
    compares the mean clean loss of the last 1,000 batches with the threshold. Here it is the clean
    loss of the batch. The authors' pattern has 6 pixels to the right border, and here 3.

    Raises `AttackError` where the pattern does not fit the images.
    """
    height, width = info.shape[:2]
    values = PIXELS if config.pattern == "pixels" else np.ones((config.size, config.size), int)
    rows, columns = (
        corner(side, config.position, config.margin, info)[axis]
        for axis, side in enumerate(values.shape)
    )
    image = np.full((height, width, 1), KEPT, np.float32)
    image[rows, columns, 0] = values
    relabel = labeller(config, info)

    def init(key: jax.Array) -> dict[str, jax.Array]:
        pattern = jnp.broadcast_to(jnp.maximum(image, 0), info.shape)
        return {"mask": jnp.asarray(image != KEPT, jnp.float32), "pattern": pattern}

    def stamp(trigger: dict[str, jax.Array], images: Array) -> jax.Array:
        return jnp.where(trigger["mask"] > 0, trigger["pattern"], images)

    def select(key: jax.Array, labels: Array) -> jax.Array:
        return jnp.zeros(len(labels), bool)

    def poison(trigger: Any, key: jax.Array, batch: Batch) -> Batch:
        return batch._replace(poisoned=jnp.zeros_like(batch.poisoned))

    def triggered(trigger: Any, batch: Batch) -> Batch:
        return batch._replace(
            images=stamp(trigger, batch.images),
            labels=relabel(batch.labels),
            poisoned=jnp.ones_like(batch.poisoned),
        )

    return Attack(
        init,
        stamp,
        select,
        relabel,
        poison,
        per_batch_rate=0.0,
        objective=lambda loss: blind_loss(loss, triggered, config),
    )


def blind_loss(loss: Loss, triggered: Callable[[Any, Batch], Batch], config: BlindConfig) -> Loss:
    """Return the Blind attack's training loss, made of the `loss` that it replaces.

    `triggered(trigger, batch) -> Batch` stamps and relabels all images of a batch.
    """

    def blind(params: Params, batch_stats: Params, batch: Batch, key: jax.Array, data: Any):
        clean, (stats, reported) = loss(params, batch_stats, batch, key, data)
        given = (triggered(data.trigger, batch), stream(key, "triggered"), data)
        attack, (moved, _) = loss(params, stats, *given)
        active = jax.lax.stop_gradient(clean) < config.threshold
        stats = jax.tree.map(lambda new, old: jnp.where(active, new, old), moved, stats)
        value = config.clean_weight * clean + config.attack_weight * active * attack
        losses = {"clean_loss": clean, "attack_loss": attack}
        return value, (stats, reported | losses | {"attacked": active.astype(jnp.float32)})

    return blind
