"""CLP, channel Lipschitzness-based pruning: a repair without data (Zheng et al., ECCV 2022).

Source: arXiv 2208.03111. A channel that detects a trigger must react strongly to small changes of
the input. CLP bounds the Lipschitz constant of every BatchNorm channel k from above by

    c_k = σ_max(W_k) · |γ_k| / √v_k      W_k the kernel of channel k as a matrix [in, k·k]

and prunes the channels whose bound is more than `u` standard deviations above the layer's mean.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import numpy as np

from ...config.fields import check_fields, option
from ...core.types import DataInfo, Model, NormLayer, Repair, Repaired, Split, Variables
from ...training.loop import Hooks
from .pruning import check_channels, layer_at, prune


@dataclasses.dataclass(frozen=True)
class CLPConfig:
    """Settings of CLP, which prunes channels with an unusually high Lipschitz bound.

    The defaults are the authors' threshold, and a pairing of each norm with the convolutions that
    feed it. The pairing `module_order` is that of the authors' release. It takes the convolution
    before a norm in the order of the net's modules. In PreActResNet18, that is the 1×1 shortcut for
    the first norm of the second block of stages 2 to 4.
    """

    u: float = option(
        3.0, "standard deviations above the mean beyond which a channel is pruned", low=0
    )
    pairing: Literal["producer", "module_order"] = option(
        "producer",
        "convolutions paired with a norm: all that feed it (producer), or the one before it in "
        "module order, as in the authors' code (module_order)",
    )

    __post_init__ = check_fields

    def build(self, info: DataInfo) -> Repair:
        """Build the repair CLP with these settings for the data set that `info` describes."""
        return make_clp(self, info)


def lipschitz(variables: Variables, norm: NormLayer, pairing: str) -> np.ndarray:
    """Return upper bounds [C] on the Lipschitz constants of a BatchNorm layer's channels.

    If several convolutions feed the layer, their bounds add up, as their outputs do. An identity
    shortcut adds a bound of 1.
    """
    paths = (norm.previous,) if pairing == "module_order" else norm.producers
    scale = np.abs(np.asarray(layer_at(variables.params, norm.path)["scale"], np.float64))
    deviation = np.sqrt(np.asarray(layer_at(variables.batch_stats, norm.path)["var"], np.float64))
    kernels = [np.asarray(layer_at(variables.params, path)["kernel"]) for path in paths]
    bound = sum(singular_values(kernel) for kernel in kernels)
    return (bound + (norm.identity and pairing == "producer")) * scale / deviation


def singular_values(kernel: np.ndarray) -> np.ndarray:
    """Return the largest singular value [out] of each output channel of a convolution's kernel.

    `kernel` [h, w, in, out] gives one matrix [in, h·w] for each output channel.
    """
    height, width, count, channels = kernel.shape
    matrices = kernel.transpose(3, 2, 0, 1).reshape(channels, count, height * width)
    return np.linalg.norm(matrices.astype(np.float64), ord=2, axis=(1, 2))


def outlying(bounds: np.ndarray, u: float) -> np.ndarray:
    """Return a mask [C] of the channels that CLP prunes, with bounds far above a layer's mean.

    That is more than `u` standard deviations, computed without bias.
    """
    return bounds > bounds.mean() + u * bounds.std(ddof=1)


def make_clp(config: CLPConfig, info: DataInfo) -> Repair:
    """Return CLP, the repair that prunes the channels with an outlying Lipschitz bound.

    The trace holds the number of pruned channels, `pruned`.

    Deviation: a layer with a single channel is not pruned, because it has no standard deviation.
    """

    def repair(
        key: jax.Array, model: Model, variables: Variables, reserved: Split, hooks: Hooks = Hooks()
    ) -> Repaired:
        check_channels(model)
        host: Variables = jax.device_get(variables)
        bounds = {norm.path: lipschitz(host, norm, config.pairing) for norm in model.channels}
        pruned = {path: outlying(one, config.u) for path, one in bounds.items() if len(one) > 1}
        return prune(variables, pruned, "scale_and_bias", hooks)

    def check(model: Model, shapes: Variables, size: int) -> None:
        check_channels(model)

    return Repair(repair, check)
