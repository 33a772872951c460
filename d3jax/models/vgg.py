"""VGG19 with batch normalisation (Simonyan and Zisserman 2015, arXiv 1409.1556; Ioffe and Szegedy 2015, arXiv 1502.03167)."""

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
"""Of each stage its channels, in widths, and how many convolutions it has; a pooling by 2 ends it."""
POOLED = 7
"""Side to which torchvision pools what the convolutions give, whatever the image's size."""


@dataclasses.dataclass(frozen=True)
class VGG19BNConfig:
    """`width` 64 with the `torchvision` classifier is the published net (139,622,218 parameters at 10 classes)."""

    width: int = option(
        64, "channels of the first stage (64: the published net)", low=1, high=MOST_CHANNELS
    )
    classifier: Literal["torchvision", "linear"] = option(
        "torchvision",
        "torchvision: 7×7 pooled features and two hidden layers of 64·width; linear: their mean, one layer",
    )

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, info: DataInfo, dtype: jnp.dtype = jnp.float32) -> Model:
        """Return the model for images of a data set."""
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
    """x [B, H, W, C] → [B, side, side, C]: each output the mean over pixels ⌊iH/side⌋ to ⌈(i+1)H/side⌉ − 1, as PyTorch's
    adaptive pooling has them. Maps smaller than `side` are repeated."""
    for axis in (1, 2):
        size = x.shape[axis]
        bounds = [(i * size // side, -(-(i + 1) * size // side)) for i in range(side)]
        x = jnp.stack([jnp.take(x, jnp.arange(*bound), axis).mean(axis) for bound in bounds], axis)
    return x


def make_vgg19_bn(config: VGG19BNConfig, info: DataInfo, dtype: jnp.dtype = jnp.float32) -> Model:
    """VGG19-BN for images of `info.shape`; features `block1`…`block5` [B, h, w, c] and `penultimate` [B, 64·width] or [B, 8·width].

    Deviation: without the dropout of 0.5 between the hidden layers. Raises `ConfigError` for images under 32 pixels, of which
    five poolings leave nothing.
    """
    if min(info.shape[:2]) < 32:
        raise ConfigError(
            f"model: vgg19_bn halves images five times, those of {info.name} are {info.shape[0]}×{info.shape[1]}; want 32 or more"
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
