"""ResNet-18, -34 and -50 (He et al. 2016, arXiv 1512.03385) as torchvision has them, and with the stem for small images."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp

from ..config.fields import MOST_CHANNELS, check_fields, option
from ..core.types import DataInfo, Model, NormLayer, Path
from .layers.conv import Conv
from .layers.linen import Linear, model_of, normalise
from .layers.norm import BatchNorm

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
"""Blocks of each stage, by depth."""
KERNELS = {18: (3, 3), 34: (3, 3), 50: (1, 3, 1)}
"""Sizes of a block's convolutions, by depth. The stride is that of the first one of 3×3."""
EXPANSION = 4
"""Channels that a bottleneck block gives, in those of its middle."""


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """Default: ResNet-18 for images of 32 pixels. `width` 64 is the published net; a narrower one must be labelled."""

    depth: Literal[18, 34, 50] = option(18, "layers; 50 has bottleneck blocks")
    stem: Literal["small", "imagenet"] = option(
        "small",
        "small: a 3×3 convolution; imagenet: 7×7 of stride 2, then a pooling (224 pixels, torchvision's)",
    )
    width: int = option(
        64, "channels of the first stage (64: the published nets)", low=1, high=MOST_CHANNELS
    )

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, info: DataInfo, dtype: jnp.dtype = jnp.float32) -> Model:
        """Return the model for images of a data set."""
        return make_resnet(self, info, dtype)


class _Block(nn.Module):
    """Convolutions, each before a BatchNorm, the last norm added to a shortcut and then a ReLU.

    Activations: `conv1`, `relu1`, … and `norm` before the sum; `shortcut`; the output, after the block's name.
    """

    channels: tuple[int, ...]
    kernels: tuple[int, ...]
    stride: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, train, active):
        shortcut, y = x, x
        for i, (channels, size) in enumerate(zip(self.channels, self.kernels, strict=True), 1):
            stride = self.stride if i == _strided(self.kernels) else 1
            y = Conv(channels, size, stride, self.dtype, name=f"Conv_{i - 1}")(y)
            y = BatchNorm(train, self.dtype, name=f"BatchNorm_{i - 1}")(
                active(f"{self.name}/conv{i}", y)
            )
            if i < len(self.channels):
                y = active(f"{self.name}/relu{i}", nn.relu(y))
        y = active(f"{self.name}/norm", y)
        if self.stride != 1 or x.shape[-1] != self.channels[-1]:
            shortcut = Conv(self.channels[-1], 1, self.stride, self.dtype, name="shortcut")(x)
            shortcut = active(f"{self.name}/shortcut", shortcut)
            shortcut = BatchNorm(train, self.dtype, name="shortcut_norm")(shortcut)
        return active(self.name, nn.relu(y + shortcut))


class _ResNet(nn.Module):
    config: ResNetConfig
    info: DataInfo
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, images, train, active):
        config, large = self.config, self.config.stem == "imagenet"
        x = normalise(images, self.info)
        x = Conv(config.width, 7 if large else 3, 2 if large else 1, self.dtype, name="stem")(x)
        x = BatchNorm(train, self.dtype, name="norm")(active("stem", x))
        x = active("relu", nn.relu(x))
        if large:
            x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))  # pyright: ignore[reportArgumentType]  # its hint forgets pairs
        for stage, count in enumerate(BLOCKS[config.depth], 1):
            for block in range(1, count + 1):
                stride = 2 if stage > 1 and block == 1 else 1
                channels, kernels = channels_of(config, stage), KERNELS[config.depth]
                name = f"block{stage}_{block}"
                x = _Block(channels, kernels, stride, self.dtype, name=name)(x, train, active)
            x = active(f"block{stage}", x)
        x = active("penultimate", x.mean((1, 2), dtype=jnp.float32))
        return Linear(self.info.num_classes, name="head")(x)


def make_resnet(config: ResNetConfig, info: DataInfo, dtype: jnp.dtype = jnp.float32) -> Model:
    """A ResNet for images of `info.shape`; features `block1`…`block4` [B, h, w, c] and `penultimate` [B, 8·width] (ResNet-50: 32·width).

    The stride of a bottleneck block is that of its 3×3 convolution, as torchvision has it (the paper: of the first 1×1).
    Deviation: running variances are the biased ones (PyTorch: unbiased).
    """
    return model_of(_ResNet(config, info, dtype), info, tuple(_norms(config)))


def channels_of(config: ResNetConfig, stage: int) -> tuple[int, ...]:
    """Return the channels that the convolutions of a block of stage 1 to 4 give."""
    wide = config.width << (stage - 1)
    return (wide, wide, EXPANSION * wide) if config.depth == 50 else (wide, wide)


def has_shortcut(config: ResNetConfig, stage: int, block: int) -> bool:
    """Return whether a block's shortcut is a convolution: where the shape changes."""
    return block == 1 and (stage > 1 or config.depth == 50)


def _strided(kernels: tuple[int, ...]) -> int:
    return kernels.index(3) + 1


def _norms(config: ResNetConfig) -> Iterator[NormLayer]:
    """Yield the BatchNorm layers in torchvision's order; a shortcut's follows those of its block."""
    counts, last = BLOCKS[config.depth], len(KERNELS[config.depth])
    places = [(stage, i) for stage, count in enumerate(counts, 1) for i in range(1, count + 1)]

    def readers(place: tuple[int, int] | None) -> tuple[Path, ...]:
        """Return the layers that read what a block gets, or what the head does (None)."""
        if place is None:
            return (("head",),)
        name = f"block{place[0]}_{place[1]}"
        side = ((name, "shortcut"),) if has_shortcut(config, *place) else ()
        return ((name, "Conv_0"), *side)

    yield NormLayer(("norm",), (("stem",),), ("stem",), readers(places[0]), "stem", "relu")
    for place, following in zip(places, [*places[1:], None], strict=True):
        name = f"block{place[0]}_{place[1]}"
        for i in range(last):
            conv, ends = (name, f"Conv_{i}"), i == last - 1
            after = readers(following) if ends else ((name, f"Conv_{i + 1}"),)
            output = f"{name}/norm" if ends else f"{name}/relu{i + 1}"
            norm = (name, f"BatchNorm_{i}")
            yield NormLayer(norm, (conv,), conv, after, f"{name}/conv{i + 1}", output)
        if has_shortcut(config, *place):
            conv = (name, "shortcut")
            entry = f"{name}/shortcut"
            yield NormLayer((name, "shortcut_norm"), (conv,), conv, readers(following), entry, name)
