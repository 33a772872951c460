"""CLP: channel Lipschitzness-based pruning (Zheng et al., ECCV 2022, arXiv 2208.03111). No data.

A channel that answers a trigger must react strongly to small changes. Of every BatchNorm layer the
channels are pruned whose upper bound on the Lipschitz constant

    c_k = σ_max(W_k) · |γ_k| / √v_k      W_k the kernel of channel k as a matrix [in, k·k]

is more than `u` standard deviations above the layer's mean.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import numpy as np

from ...config.fields import check_fields, option
from ...core.types import DataInfo, Model, NormLayer, Params, Repair, Repaired, Split, Variables
from ...training.loop import Hooks
from .pruning import check_channels, layer_at, silence


@dataclasses.dataclass(frozen=True)
class CLPConfig:
    """Default: the authors' threshold, and the layers that feed each norm.

    `module_order` is the pairing of the authors' release: the convolution before a norm in the
    order of the net's modules. In PreActResNet18 that is the 1×1 shortcut for the first norm of the
    second block of stages 2 to 4, and WaNet falls from 94.15/99.50 to 53.50/93.96 (ACC/ASR).
    """

    u: float = option(3.0, "deviations above the mean from which a channel is pruned", low=0)
    pairing: Literal["producer", "module_order"] = option(
        "producer",
        "kernels of a norm: of all convolutions that feed it, or of the one before it in the order "
        "of modules, as the authors' code",
    )

    __post_init__ = check_fields

    def build(self, info: DataInfo) -> Repair:
        """Return the repair for a data set."""
        return make_clp(self, info)


def lipschitz(variables: Variables, norm: NormLayer, pairing: str) -> np.ndarray:
    """Return the upper bounds [C] of a norm's channels.

    With several producers, or the identity beside them, the bounds add up, as their outputs do.
    """
    paths = (norm.previous,) if pairing == "module_order" else norm.producers
    scale = np.abs(np.asarray(layer_at(variables.params, norm.path)["scale"], np.float64))
    deviation = np.sqrt(np.asarray(layer_at(variables.batch_stats, norm.path)["var"], np.float64))
    kernels = [np.asarray(layer_at(variables.params, path)["kernel"]) for path in paths]
    bound = sum(singular_values(kernel) for kernel in kernels)
    return (bound + (norm.identity and pairing == "producer")) * scale / deviation


def singular_values(kernel: np.ndarray) -> np.ndarray:
    """Return the largest singular value [out] of each channel of a kernel [h, w, in, out]."""
    height, width, count, channels = kernel.shape
    matrices = kernel.transpose(3, 2, 0, 1).reshape(channels, count, height * width)
    return np.linalg.norm(matrices.astype(np.float64), ord=2, axis=(1, 2))


def outlying(bounds: np.ndarray, u: float) -> np.ndarray:
    """Return which channels [C] lie more than `u` standard deviations (unbiased) above the mean."""
    return bounds > bounds.mean() + u * bounds.std(ddof=1)


def make_clp(config: CLPConfig, info: DataInfo) -> Repair:
    """Return CLP. The trace holds the number of pruned channels, `pruned`.

    Deviation: a layer of one channel has no deviation and keeps it.
    """

    def repair(
        key: jax.Array, model: Model, variables: Variables, reserved: Split, hooks: Hooks = Hooks()
    ) -> Repaired:
        check_channels(model)
        host: Variables = jax.device_get(variables)
        bounds = {norm.path: lipschitz(host, norm, config.pairing) for norm in model.channels}
        pruned = {path: outlying(one, config.u) for path, one in bounds.items() if len(one) > 1}
        count = sum(int(mask.sum()) for mask in pruned.values())
        hooks.say(f"prunes {count} of {sum(map(len, bounds.values()))} channels")
        params: Params = silence(variables.params, pruned)
        trace = {name: np.array([value]) for name, value in (("step", 1), ("pruned", count))}
        return Repaired(variables._replace(params=params), trace)

    def check(model: Model, shapes: Variables, size: int) -> None:
        check_channels(model)

    return Repair(repair, check)
