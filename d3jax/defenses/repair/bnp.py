"""BNP, BatchNorm statistics-based pruning (Zheng, Tang, Li & Liu, NeurIPS 2022, arXiv 2210.02646).

The running statistics of a backdoored model come from poisoned images. On clean images, the
statistics of a channel of the backdoor differ from them. BNP measures the difference of the two
normal distributions and prunes the channels in which it is large:

    KL(N(μ₁, v₁) ‖ N(μ₂, v₂)) = ln(σ₂/σ₁) + (v₁ + (μ₁ − μ₂)²) / (2 v₂) − ½

1 stands for the clean batch and 2 for the running statistics.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import numpy as np

from ...config.fields import check_fields, option, presets
from ...core.random import stream
from ...core.types import DataInfo, Model, Repair, Repaired, Split, Variables
from ...training.loop import Hooks
from .pruning import check_channels, inputs_of, layer_at, prune

TINY = 1e-5
"""The least variance, that of BatchNorm."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BNPConfig:
    """Settings of BNP, which prunes channels whose statistics differ on clean images.

    They are a preset, and the values that differ from it. The preset `authors` has the divergence
    of the paper and sets γ of the pruned channels to 0. The preset `backdoorbench` has the
    logarithm of the variances, which counts it twice, and sets β to 0 too.
    """

    preset: Literal["authors", "backdoorbench"] = option(
        "authors", "source of logarithm and silence, where they are not given"
    )
    images: int = option(500, "clean images in the batch", low=2)
    u: float = option(
        3.0, "standard deviations above the mean beyond which a channel is pruned", low=0
    )
    logarithm: Literal["deviation", "variance"] = option(
        "deviation", "ln(σ₂/σ₁), as in the paper (deviation), or ln(v₂/v₁) (variance)"
    )
    silence: Literal["scale", "scale_and_bias"] = option(
        "scale", "what becomes 0 in a pruned channel: γ (scale), or γ and β"
    )

    __post_init__ = check_fields

    def build(self, info: DataInfo) -> Repair:
        """Build the repair BNP with these settings for the data set that `info` describes."""
        return make_bnp(self, info)


PRESETS = presets(
    "preset",
    BNPConfig(preset="authors"),
    BNPConfig(preset="backdoorbench", logarithm="variance", silence="scale_and_bias"),
)


def divergence(
    mean: np.ndarray, var: np.ndarray, other_mean: np.ndarray, other_var: np.ndarray, logarithm: str
) -> np.ndarray:
    """Return the divergence [C] of normal distributions with these means and variances."""
    factor = 1.0 if logarithm == "variance" else 0.5
    return (
        factor * np.log(other_var / var) + (var + (mean - other_mean) ** 2) / (2 * other_var) - 0.5
    )


def make_bnp(config: BNPConfig, info: DataInfo) -> Repair:
    """Return BNP, the repair that prunes channels whose statistics differ on clean images.

    The trace holds the number of `pruned` channels.

    Deviation: BackdoorBench takes the statistics of clean and poisoned images together; here they
    are those of clean ones, as in the paper.
    """

    def repair(
        key: jax.Array, model: Model, variables: Variables, reserved: Split, hooks: Hooks = Hooks()
    ) -> Repaired:
        order = jax.random.permutation(stream(key, "images"), len(reserved.labels))
        images = np.asarray(reserved.images)[np.asarray(order[: config.images])]
        high = {}
        for path, values in inputs_of(model, variables, images).items():
            own = values.reshape(-1, values.shape[-1]).astype(np.float64)
            running = layer_at(variables.batch_stats, path)
            mean, var = (np.asarray(running[name], np.float64) for name in ("mean", "var"))
            found = divergence(
                own.mean(0), np.maximum(own.var(0), TINY), mean, np.maximum(var, TINY),
                config.logarithm,
            )  # fmt: skip
            if len(found) > 1:
                high[path] = found > found.mean() + config.u * found.std(ddof=1)
        return prune(variables, high, config.silence, hooks)

    def check(model: Model, shapes: Variables, size: int) -> None:
        check_channels(model)

    return Repair(repair, check)
