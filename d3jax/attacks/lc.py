"""The LC attack: target-class images that are hard to learn, with a patch in their corners.

Source: Turner, Tsipras and Madry 2019, arXiv 1912.02771.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..config.fields import check_fields, option
from ..core.errors import AttackError
from ..core.images import as_float, as_levels
from ..core.losses import cross_entropy
from ..core.random import stream
from ..core.types import Array, Attack, DataInfo, Preparation, Prepared, Variables
from ..training.loop import TrainLoop, fit
from ..training.step import init_state, make_train_step
from .poisoning import RateOf, clean_label, rate_of_option, rate_option, target_option

LEFT = np.array([[1, -1, -1], [-1, 1, -1], [1, -1, 1]])
"""The signs of the change of each pixel in a left corner; right corners have the mirror image."""
CHUNK = 100
"""Number of images that one step of PGD perturbs."""


@dataclasses.dataclass(frozen=True)
class LCConfig:
    """Settings of the LC attack, which perturbs target-class images and patches their corners.

    By default PGD makes 100 steps within 8 levels. Then 3×3 checkers of full contrast are added to
    all four corners.
    """

    rate: float = rate_option()
    rate_of: RateOf = rate_of_option()
    target: int | str = target_option()
    eps: float = option(
        8.0,
        "ε: largest perturbation (ℓ∞) in 8-bit levels, usually 8 or 16 (0: none)",
        low=0,
        high=255,
    )
    step: float = option(1.5, "step size of PGD in 8-bit levels", above=0)
    steps: int = option(100, "number of PGD steps", low=1)
    amplitude: int = option(255, "8-bit levels that the patch adds or subtracts", low=1, high=255)

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, info: DataInfo) -> Attack:
        """Build the LC attack with these settings for the data set that `info` describes."""
        return make_lc(self, info)


def make_lc(config: LCConfig, info: DataInfo) -> Attack:
    """Return the LC `Attack`, which adds a checker patch to the corners of target-class images.

    The patch adds ±amplitude on 3×3 checkers in the corners, and the result is clipped. The trigger
    is `{"patch": [H, W, 1] int32}`. The patch grows with the image (6×6 at 64 pixels).

    Poisoned training images are also perturbed away from their class. This is untargeted PGD on the
    cross-entropy of a clean model of the same architecture. Deviation: the recipe's model is an
    adversarially trained ResNet18.

    Raises `AttackError` for images under 6 pixels. Its `select` raises `AttackError` where the
    target class has too few images.
    """
    height, width = info.shape[:2]
    block = 3 * max(1, min(height, width) // 32)
    if min(height, width) < 2 * block:
        raise AttackError(
            f"lc: patches of {block} pixels in the corners do not fit {height}×{width} images"
        )
    signs = np.kron(LEFT, np.ones((block // 3, block // 3), int))
    patch = np.zeros((height, width, 1), np.int32)
    for rows in (slice(0, block), slice(height - block, height)):
        patch[rows, :block, 0], patch[rows, width - block :, 0] = signs, signs[:, ::-1]

    def init(key: jax.Array) -> dict[str, jax.Array]:
        return {"patch": jnp.asarray(config.amplitude * patch)}

    def stamp(trigger: dict[str, jax.Array], images: Array) -> jax.Array:
        return as_float(jnp.clip(as_levels(images) + trigger["patch"], 0, 255))

    def prepare(key, model, clean, dataset, poisoned, hooks):
        rows = np.flatnonzero(poisoned)
        images, lines = as_float(jnp.asarray(dataset.train.images)[rows]), []
        if len(rows) and config.eps:
            labels = jnp.asarray(dataset.train.labels)[rows]
            loop = perturbation_loop(key, model, clean, images, labels, config)
            state, lines = fit(loop, hooks)
            images = state.variables.params["images"]
        return Prepared(init(key), as_levels(images).astype(jnp.uint8)), lines

    return clean_label(
        config,
        info,
        init=init,
        stamp=stamp,
        preparation=Preparation(prepare, surrogate=True, replaces=True),
    )


class Originals(NamedTuple):
    """The starting point of the LC attack's PGD: the images, their labels and the clean model.

    `images` [n, H, W, C] are float32, `labels` [n] are the true ones, and `clean` holds the model's
    variables.
    """

    images: jax.Array
    labels: jax.Array
    clean: Variables


def perturbation_loop(
    key, model, clean: Variables, images: jax.Array, labels: jax.Array, config: LCConfig
) -> TrainLoop:
    """Return the LC attack's train loop, which perturbs images [n, H, W, C] by PGD in chunks.

    Each chunk of the images gets `config.steps` steps. The loop's parameters are all images, and a
    step moves only those of one chunk. All images stay within ε of the originals.
    """
    size = min(CHUNK, len(labels))
    tx = optax.chain(optax.scale_by_sign(), optax.scale(config.step / 255))  # gradient ascent

    def draw(key: jax.Array, step: jax.Array, data: Originals) -> jax.Array:
        first = step // config.steps * size
        return jnp.minimum(first + jnp.arange(size), len(labels) - 1)  # repeats the last image

    def loss(params, batch_stats, rows: jax.Array, key: jax.Array, data: Originals):
        logits = model.apply(data.clean, params["images"][rows], train=False).logits
        return cross_entropy(logits, data.labels[rows]).mean(), (batch_stats, {})

    def project(params, data: Originals):
        eps = config.eps / 255
        near = jnp.clip(params["images"], data.images - eps, data.images + eps)
        return {"images": jnp.clip(near, 0, 1)}

    step = make_train_step(tx, loss=loss, batches=draw, project=project)
    state = init_state(Variables({"images": images}, {}), tx, stream(key, "pgd"))
    steps = config.steps * -(-len(labels) // size)
    return TrainLoop(step, state, Originals(images, labels, clean), steps)
