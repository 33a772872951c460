"""The network VGG19 with batch normalisation.

VGG: Simonyan and Zisserman 2015, arXiv 1409.1556. Batch normalisation: Ioffe and Szegedy 2015,
arXiv 1502.03167.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp

from ..config.fields import MOST_CHANNELS, check_fields, option
from ..core.errors import ConfigError
from ..core.types import DataInfo, Model, NormLayer
from .layers.conv import Conv
from .layers.linen import Linear, model_of, normalise
from .layers.norm import BatchNorm

STAGES = ((1, 2), (2, 2), (4, 4), (8, 4), (8, 4))
"""Channels of each stage in multiples of `width`, and its number of convolutions.

A pooling by 2 ends each stage.
"""
POOLED = 7
"""Side to which torchvision pools the last feature maps, whatever the size of the image."""


@dataclasses.dataclass(frozen=True)
class VGG19BNConfig:
    """Settings of the network VGG19 with batch normalisation: its width and its classifier.

    `width` 64 with the `torchvision` classifier is the published network, with 139,622,218
    parameters at 10 classes.
    """

    width: int = option(
        64, "channels of the first stage (64: the published network)", low=1, high=MOST_CHANNELS
    )
    classifier: Literal["torchvision", "linear"] = option(
        "torchvision",
        "torchvision: 7×7 pooled features, then two hidden layers of 64·width; "
        "linear: mean features, then no hidden layer",
    )

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, info: DataInfo, dtype: jnp.dtype = jnp.float32) -> Model:
        """Build VGG19-BN with these settings for the data set that `info` describes."""
        return make_vgg19_bn(self, info, dtype)


class _VGG(nn.Module):
    config: VGG19BNConfig
    info: DataInfo
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, images, train, active):
        x = normalise(images, self.info)
        for stage, (multiple, count) in enumerate(STAGES, 1):
            for i in range(count):
                channels, place = multiple * self.config.width, f"{stage}_{i + 1}"
                x = Conv(channels, bias=True, dtype=self.dtype, name=f"conv{place}")(x)
                x = BatchNorm(train, self.dtype, name=f"norm{place}")(active(f"conv{place}", x))
                x = active(f"relu{place}", nn.relu(x))
            x = active(f"block{stage}", nn.max_pool(x, (2, 2), (2, 2)))
        if self.config.classifier == "linear":
            x = x.mean((1, 2), dtype=jnp.float32)
        else:
            x = adaptive_mean(x, POOLED).reshape(len(x), -1)
            for i in range(2):
                x = nn.relu(Linear(64 * self.config.width, self.dtype, name=f"hidden{i + 1}")(x))
                x = active(f"hidden{i + 1}", x)
        x = active("penultimate", x.astype(jnp.float32))
        return Linear(self.info.num_classes, name="head")(x)


def adaptive_mean(x, side: int):
    """Average feature maps [B, H, W, C] to [B, side, side, C], as PyTorch's adaptive pooling does.

    Output i of an axis is the mean over pixels ⌊iH/side⌋ to ⌈(i+1)H/side⌉ − 1. Maps smaller than
    `side` are repeated.
    """
    for axis in (1, 2):
        size = x.shape[axis]
        bounds = [(i * size // side, -(-(i + 1) * size // side)) for i in range(side)]
        x = jnp.stack([jnp.take(x, jnp.arange(*bound), axis).mean(axis) for bound in bounds], axis)
    return x


def make_vgg19_bn(config: VGG19BNConfig, info: DataInfo, dtype: jnp.dtype = jnp.float32) -> Model:
    """Return VGG19 with batch normalisation as a `Model` for images of the shape `info.shape`.

    Its features include `block1`…`block5` [B, h, w, c] and `penultimate`, which is [B, 64·width],
    or [B, 8·width] with the linear classifier. Deviation: there is no dropout of 0.5 between the
    hidden layers. Raises `ConfigError` for images under 32 pixels, of which five poolings leave
    nothing.
    """
    if min(info.shape[:2]) < 32:
        raise ConfigError(
            f"model: vgg19_bn halves images five times, those of {info.name} are "
            f"{info.shape[0]}×{info.shape[1]}; want 32 or more"
        )
    places = [
        f"{stage}_{i + 1}" for stage, (_, count) in enumerate(STAGES, 1) for i in range(count)
    ]
    classifier = "head" if config.classifier == "linear" else "hidden1"
    after = [*(f"conv{place}" for place in places[1:]), classifier]
    norms = tuple(
        NormLayer((f"norm{place}",), ((conv,),), (conv,), ((reader,),), conv, f"relu{place}")
        for place, reader in zip(places, after, strict=True)
        for conv in [f"conv{place}"]
    )
    return model_of(_VGG(config, info, dtype), info, norms)
