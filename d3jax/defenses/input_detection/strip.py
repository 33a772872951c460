"""STRIP: strong intentional perturbation (Gao et al., ACSAC 2019, arXiv 1902.06531).

A triggered input keeps its prediction when other images are laid over it. The score of an input is
minus the mean entropy of the predictions for x + α · x_j with clean images x_j.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ...config.fields import check_fields, option
from ...core.errors import ConfigError
from ...core.images import as_float
from ...core.random import stream
from ...core.types import Array, DataInfo, InputDetector, Model, Split, Variables
from ...data.batched import batched_map
from ...runtime.compilation import fast
from ...training.loop import Hooks


@dataclasses.dataclass(frozen=True)
class STRIPConfig:
    """Default: BackdoorBench's settings."""

    alpha: float = option(1.0, "weight of the overlays", above=0)
    overlays: int = option(100, "clean images laid over every input", low=1)
    fpr: float = option(
        0.1, "share of the clean reserved images that the threshold rejects", above=0, high=1
    )

    __post_init__ = check_fields

    def build(self, info: DataInfo) -> InputDetector:
        """Return the detector for a data set."""
        return make_strip(self, info)


MIXED = 2000
"""Images with overlays that the model sees at once."""


class State(NamedTuple):
    """The `overlays` [n, H, W, C] uint8, and the `threshold` float32 []."""

    overlays: jax.Array
    threshold: jax.Array


@functools.partial(fast, static=3)
def _entropies(
    model: Model,
    alpha: float,
    mean: tuple[float, ...],
    variables: Variables,
    overlays: Array,
    images: Array,
) -> jax.Array:
    """Return the mean entropy [B] of each image under all overlays, in nats.

    Images are added in the normalised space of the data set: in pixels x + α · (x_j − mean).
    """
    moved = alpha * (as_float(overlays) - jnp.asarray(mean))
    mixed = as_float(images)[:, None] + moved[None]
    logits = model.apply(variables, mixed.reshape(-1, *images.shape[1:]), train=False).logits
    odds = jax.nn.softmax(logits.astype(jnp.float32))
    entropy = -(odds * jnp.log(odds + 1e-8)).sum(-1)
    return entropy.reshape(mixed.shape[:2]).mean(1)


def make_strip(config: STRIPConfig, info: DataInfo) -> InputDetector:
    """Return STRIP. Its threshold is the `fpr` quantile of the entropies of the reserved images.

    An entropy is between 0 and ln K.
    """
    batch_size = max(1, MIXED // config.overlays)

    def score(model: Model, variables: Variables, state: State, images: Array) -> jax.Array:
        return -_entropies(model, config.alpha, info.mean, variables, state.overlays, images)

    def prepare(
        key: jax.Array, model: Model, variables: Variables, reserved: Split, hooks: Hooks = Hooks()
    ) -> State:
        rows = jax.random.permutation(stream(key, "overlays"), len(reserved.labels))
        overlays = jnp.asarray(reserved.images)[rows[: config.overlays]]
        state = State(overlays, jnp.float32(0))
        compute = functools.partial(score, model, variables, state)
        scores = batched_map(compute, reserved.images, batch_size=batch_size)
        return state._replace(threshold=jnp.float32(np.quantile(scores, 1 - config.fpr)))

    def check(model: Model, shapes: Variables, size: int) -> None:
        if size < config.overlays:
            raise ConfigError(
                f"overlays: {config.overlays} are more than the {size} reserved images"
            )

    def threshold(state: State) -> float:
        return float(state.threshold)

    return InputDetector(prepare, score, threshold, check, batch_size)
