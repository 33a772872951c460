"""The network PreActResNet18 (He et al. 2016, arXiv 1603.05027), in BackdoorBench's variant."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from ..config.fields import MOST_CHANNELS, check_fields, option
from ..core.types import DataInfo, Model, NormLayer
from .layers.conv import Conv
from .layers.linen import Linear, model_of, normalise
from .layers.norm import BatchNorm


@dataclasses.dataclass(frozen=True)
class PreActResNet18Config:
    """Settings of the network PreActResNet18: the number of channels of its first stage.

    `width` 64 is the published network, with 11,171,146 parameters at 10 classes and 3 channels.
    Results of a narrower one must be labelled as such.
    """

    width: int = option(
        64, "channels of the first stage (64: the published network)", low=1, high=MOST_CHANNELS
    )

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, info: DataInfo, dtype: jnp.dtype = jnp.float32) -> Model:
        """Build PreActResNet18 with these settings for the data set that `info` describes."""
        return make_preact_resnet18(self, info, dtype)


class Block(nn.Module):
    """A pre-activation residual block: two 3×3 convolutions, each after a BatchNorm and a ReLU.

    Where the shape changes, the shortcut is a 1×1 convolution. Activations are `relu1`, `conv1`,
    `relu2`, `conv2` and the block's output, which has the block's name.
    """

    channels: int
    stride: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, train, active):
        activated = active(f"{self.name}/relu1", nn.relu(BatchNorm(train, self.dtype)(x)))
        shortcut = x
        if self.stride != 1 or x.shape[-1] != self.channels:
            shortcut = Conv(self.channels, 1, self.stride, self.dtype, name="shortcut")(activated)
        y = Conv(self.channels, 3, self.stride, self.dtype)(activated)
        y = nn.relu(BatchNorm(train, self.dtype)(active(f"{self.name}/conv1", y)))
        y = Conv(self.channels, 3, 1, self.dtype)(active(f"{self.name}/relu2", y))
        return active(self.name, active(f"{self.name}/conv2", y) + shortcut)


class _PreActResNet(nn.Module):
    width: int
    info: DataInfo
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, images, train, active):
        x = Conv(self.width, dtype=self.dtype, name="stem")(normalise(images, self.info))
        x = active("stem", x)
        for stage in range(4):
            for block in range(2):
                stride, name = 2 if stage and not block else 1, f"block{stage + 1}_{block + 1}"
                x = Block(self.width << stage, stride, self.dtype, name=name)(x, train, active)
            x = active(f"block{stage + 1}", x)
        x = active("penultimate", x.mean((1, 2), dtype=jnp.float32))
        return Linear(self.info.num_classes, name="head")(x)


def make_preact_resnet18(
    config: PreActResNet18Config, info: DataInfo, dtype: jnp.dtype = jnp.float32
) -> Model:
    """Return PreActResNet18 as a `Model` for images of the shape `info.shape`.

    Its features include `block1`…`block4` [B, h, w, c] and `penultimate` [B, 8·width]. The field's
    variant deviates from He et al.: the last block has no norm or ReLU after it, and the 1×1
    shortcut acts on the activated input. Running variances are the biased ones (PyTorch: unbiased).
    """
    blocks = [[stage > 0, False] for stage in range(4)]
    return model_of(_PreActResNet(config.width, info, dtype), info, block_norms(blocks))


def block_norms(stages: Sequence[Sequence[bool]]) -> tuple[NormLayer, ...]:
    """Return a `NormLayer` for each BatchNorm in the blocks of a pre-activation residual network.

    `stages` holds, for every block of every stage, whether its shortcut is a convolution.
    """
    norms, before, identity, entry = [], (("stem",),), False, "stem"
    for stage, blocks in enumerate(stages, 1):
        for block, shortcut in enumerate(blocks, 1):
            name = f"block{stage}_{block}"
            first, second, side = ((name, part) for part in ("Conv_0", "Conv_1", "shortcut"))
            sides = (side,) if shortcut else ()
            own = (name, "BatchNorm_0"), (name, "BatchNorm_1")
            norms += [
                NormLayer(
                    own[0], before, before[-1], (first, *sides), entry, f"{name}/relu1", identity
                ),
                NormLayer(own[1], (first,), first, (second,), f"{name}/conv1", f"{name}/relu2"),
            ]
            before, identity, entry = (second, *sides), not shortcut, name
        entry = f"block{stage}"
    return tuple(norms)


def count_parameters(params) -> int:
    """Return the number of scalars in a pytree of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
