"""The networks ResNet-18, -34 and -50 (He et al. 2016, arXiv 1512.03385), as in torchvision.

A second stem, a single 3×3 convolution, is for small images.
"""

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
"""Number of blocks in each stage, by depth."""
KERNELS = {18: (3, 3), 34: (3, 3), 50: (1, 3, 1)}
"""Sizes of a block's convolutions, by depth. The first 3×3 convolution has the block's stride."""
EXPANSION = 4
"""Ratio of a bottleneck block's output channels to the channels of its 3×3 convolution."""


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """Settings of the network ResNet-18, -34 or -50: its depth, stem and width.

    The default is ResNet-18 for images of 32 pixels. `width` 64 is the published network.
    Results of a narrower one must be labelled as such.
    """

    depth: Literal[18, 34, 50] = option(18, "number of layers; 50 has bottleneck blocks")
    stem: Literal["small", "imagenet"] = option(
        "small",
        "small: a 3×3 convolution; imagenet: a 7×7 one of stride 2, then a pooling, "
        "as in torchvision for 224 pixels",
    )
    width: int = option(
        64, "channels of the first stage (64: the published networks)", low=1, high=MOST_CHANNELS
    )

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, info: DataInfo, dtype: jnp.dtype = jnp.float32) -> Model:
        """Build a ResNet with these settings for the data set that `info` describes."""
        return make_resnet(self, info, dtype)


class _Block(nn.Module):
    """A residual block: convolutions, each followed by a BatchNorm, and a ReLU of the sum.

    The sum is of the last norm's output and a shortcut. Activations are `conv1`, `relu1`, … and
    `norm` before the sum, `shortcut` (the output of its convolution), and the block's output, which
    has the block's name.
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
            x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))  # pyright: ignore[reportArgumentType]  # its type hint lacks pairs
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
    """Return a ResNet as a `Model` for images of the shape `info.shape`.

    Its features include `block1`…`block4` [B, h, w, c] and `penultimate`, which is [B, 8·width], or
    [B, 32·width] for ResNet-50. In a bottleneck block, the 3×3 convolution has the stride, as in
    torchvision (in the paper: the first 1×1). Deviation: running variances are the biased ones
    (PyTorch: unbiased).
    """
    return model_of(_ResNet(config, info, dtype), info, tuple(_norms(config)))


def channels_of(config: ResNetConfig, stage: int) -> tuple[int, ...]:
    """Return the output channels of each convolution in a ResNet block of a stage from 1 to 4."""
    wide = config.width << (stage - 1)
    return (wide, wide, EXPANSION * wide) if config.depth == 50 else (wide, wide)


def has_shortcut(config: ResNetConfig, stage: int, block: int) -> bool:
    """Return whether a ResNet block's shortcut is a convolution, as where the shape changes."""
    return block == 1 and (stage > 1 or config.depth == 50)


def _strided(kernels: tuple[int, ...]) -> int:
    return kernels.index(3) + 1


def _norms(config: ResNetConfig) -> Iterator[NormLayer]:
    """Yield a `NormLayer` for each BatchNorm of a ResNet, in torchvision's order.

    That of a shortcut comes after those of its block.
    """
    counts, last = BLOCKS[config.depth], len(KERNELS[config.depth])
    places = [(stage, i) for stage, count in enumerate(counts, 1) for i in range(1, count + 1)]

    def readers(place: tuple[int, int] | None) -> tuple[Path, ...]:
        """Return the paths of the layers that read a block's input; for None, of the head."""
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
