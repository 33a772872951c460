"""EP, entropy-based pruning: a repair that reads the untrusted training set.

Source: Zheng, Tang, Li & Liu, NeurIPS 2022 (arXiv 2210.02646). In a backdoored model, a channel of
the backdoor has two kinds of activations, for triggered and for clean images. Over a batch of the
poisoned training set, the standardised activations of such a channel have a low entropy.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import numpy as np
from jaxtyping import Float

from ...config.fields import check_fields, option, presets
from ...core.random import stream
from ...core.types import DataInfo, Model, Repair, Repaired, Split, Variables
from ...training.loop import Hooks
from .pruning import check_channels, inputs_of, prune


@dataclasses.dataclass(frozen=True, kw_only=True)
class EPConfig:
    """Settings of EP, which prunes channels whose activations have a low entropy.

    They are a preset, and the values that differ from it. The preset `authors` takes a batch of 500
    training images and bins of width 0.01, and sets γ of the pruned channels to 0. The preset
    `backdoorbench` takes 256 images and bins of width 0.1, and sets β to 0 too.
    """

    preset: Literal["authors", "backdoorbench"] = option(
        "authors", "source of images, width and silence, where they are not given"
    )
    images: int = option(500, "training images in the batch", low=2)
    width: float = option(0.01, "width of a bin, in standard deviations", above=0)
    u: float = option(
        3.0, "standard deviations below the mean entropy beyond which a channel is pruned", low=0
    )
    silence: Literal["scale", "scale_and_bias"] = option(
        "scale", "what becomes 0 in a pruned channel: γ (scale), or γ and β"
    )

    __post_init__ = check_fields

    def build(self, info: DataInfo) -> Repair:
        """Build the repair EP with these settings for the data set that `info` describes."""
        return make_ep(self, info)


PRESETS = presets(
    "preset",
    EPConfig(preset="authors"),
    EPConfig(preset="backdoorbench", images=256, width=0.1, silence="scale_and_bias"),
)


def entropies(values: Float[np.ndarray, "B C"], width: float) -> Float[np.ndarray, " C"]:
    """Return the entropy in nats of each channel's activations, standardised over the batch.

    The bins have the given width and span the range of all channels of the layer. Values on the
    edge of a bin are not counted, as in the authors' code. A constant channel has entropy 0.
    """
    spread = values.std(0)
    standard = (values - values.mean(0)) / np.where(spread > 0, spread, 1)
    first, last = standard.min(), standard.max()
    edges = np.arange(first, last + width, width)
    found = []
    for channel in np.sort(standard, axis=0).T:
        upper = np.searchsorted(channel, edges[1:], side="left")
        lower = np.searchsorted(channel, edges[:-1], side="right")
        counts = np.maximum(upper - lower, 0)
        shares = counts[counts > 0] / max(1, counts.sum())
        found.append(float(-(shares * np.log(shares)).sum()))
    return np.array(found)


def make_ep(config: EPConfig, info: DataInfo) -> Repair:
    """Return EP, the repair that prunes channels by the entropy of their activations.

    It needs the training set, and no reserved images. An activation is the largest value of a
    channel's input over its pixels. The trace holds the number of `pruned` channels.

    Deviation: the images of the batch are not augmented.
    """

    def repair(
        key: jax.Array,
        model: Model,
        variables: Variables,
        reserved: Split,
        hooks: Hooks = Hooks(),
        *,
        training_set: Split,
    ) -> Repaired:
        size = len(training_set.labels)
        order = jax.random.permutation(stream(key, "images"), size)
        images = np.asarray(training_set.images)[np.asarray(order[: config.images])]
        found = {
            path: entropies(one.max((1, 2)) if one.ndim == 4 else one, config.width)
            for path, one in inputs_of(model, variables, images).items()
        }
        low = {
            path: one < one.mean() - config.u * one.std(ddof=1)
            for path, one in found.items()
            if len(one) > 1
        }
        return prune(variables, low, config.silence, hooks)

    def check(model: Model, shapes: Variables, size: int) -> None:
        check_channels(model)

    return Repair(repair, check, needs=("training_set",))
