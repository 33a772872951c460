"""LC: target-class images made hard to learn, with a patch in the corners (Turner, Tsipras and Madry 2019, arXiv 1912.02771)."""

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
from .poisoning import RateOf, clean_label, rate_option, target_option

LEFT = np.array([[1, -1, -1], [-1, 1, -1], [1, -1, 1]])
"""The sign of what is added to the pixels of a left corner; right corners have its mirror image."""
CHUNK = 100
"""Images that a step of the search perturbs."""


@dataclasses.dataclass(frozen=True)
class LCConfig:
    """Default: PGD of 100 steps within 8 levels, then 3×3 checkers at full contrast in all four corners."""

    rate: float = rate_option()
    rate_of: RateOf = option(
        "set", "what `rate` is a share of: the training set, or the target class"
    )
    target: int | str = target_option()
    eps: float = option(
        8.0,
        "ε of the perturbation (ℓ∞) in 8-bit levels; the field has 8 and 16 (0: none)",
        low=0,
        high=255,
    )
    step: float = option(1.5, "step of PGD in 8-bit levels", above=0)
    steps: int = option(100, "steps of PGD", low=1)
    amplitude: int = option(255, "8-bit levels that the patch adds or takes away", low=1, high=255)

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, info: DataInfo) -> Attack:
        """Return the attack for a data set."""
        return make_lc(self, info)


def make_lc(config: LCConfig, info: DataInfo) -> Attack:
    """LC: ±amplitude on 3×3 checkers in the corners, clipped. The trigger is `{"patch": [H, W, 1] int32}`.

    Poisoned training images are also perturbed away from their class: untargeted PGD on the cross-entropy of a clean model of the
    same architecture. Deviation: the recipe's model is an adversarially trained ResNet18. The patch grows with the image (6×6 at
    64 pixels). Raises `AttackError` for images under 6 pixels, and as every clean-label attack where the class is too small.
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
    """What PGD begins with: `images [n, H, W, C]` float32, their `labels [n]`, and the variables of the `clean` model."""

    images: jax.Array
    labels: jax.Array
    clean: Variables


def perturbation_loop(
    key, model, clean: Variables, images: jax.Array, labels: jax.Array, config: LCConfig
) -> TrainLoop:
    """Return PGD as a loop: `config.steps` steps for each chunk of the images [n, H, W, C], one chunk after another.

    Its parameters are all images, of which a step moves a chunk's; all stay within ε of where they were.
    """
    size = min(CHUNK, len(labels))
    tx = optax.chain(optax.scale_by_sign(), optax.scale(config.step / 255))  # ascent

    def draw(key: jax.Array, step: jax.Array, data: Originals) -> jax.Array:
        first = step // config.steps * size
        return jnp.minimum(first + jnp.arange(size), len(labels) - 1)  # the last image fills up

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
