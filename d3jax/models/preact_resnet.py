"""PreActResNet18 (He et al. 2016, arXiv 1603.05027) as BackdoorBench and its relatives run it."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from ..config.fields import check_fields, option
from ..core.types import DataInfo, Model
from .layers.conv import Conv
from .layers.linen import Linear, model_of, normalise
from .layers.norm import BatchNorm


@dataclasses.dataclass(frozen=True)
class PreActResNet18Config:
    """`width` 64 is the published net (11,171,146 parameters at 10 classes, 3 channels); a narrower one must be labelled."""

    width: int = option(64, "channels of the first stage (64: the published net)", low=1)

    def __post_init__(self) -> None:
        check_fields(self)


class Block(nn.Module):
    """Two 3×3 convolutions, each behind a BatchNorm and a ReLU, beside a shortcut: 1×1 where the shape changes."""

    channels: int
    stride: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, train):
        activated = nn.relu(BatchNorm(train, self.dtype)(x))
        shortcut = x
        if self.stride != 1 or x.shape[-1] != self.channels:
            shortcut = Conv(self.channels, 1, self.stride, self.dtype, name="shortcut")(activated)
        y = Conv(self.channels, 3, self.stride, self.dtype)(activated)
        y = Conv(self.channels, 3, 1, self.dtype)(nn.relu(BatchNorm(train, self.dtype)(y)))
        return y + shortcut


class _PreActResNet(nn.Module):
    width: int
    info: DataInfo
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, images, train):
        x = Conv(self.width, dtype=self.dtype, name="stem")(normalise(images, self.info))
        features = {}
        for stage in range(4):
            for block in range(2):
                stride = 2 if stage and not block else 1
                x = Block(
                    self.width << stage, stride, self.dtype, name=f"block{stage + 1}_{block + 1}"
                )(x, train)
            features[f"block{stage + 1}"] = x
        features["penultimate"] = x.mean((1, 2), dtype=jnp.float32)
        return Linear(self.info.num_classes, name="head")(features["penultimate"]), features


def preact_resnet18(
    config: PreActResNet18Config, info: DataInfo, dtype: jnp.dtype = jnp.float32
) -> Model:
    """PreActResNet18 for images of `info.shape`; features `block1`…`block4` [B, h, w, c] and `penultimate` [B, 8·width].

    Deviations of this variant from He et al., as the field runs it: no norm or ReLU after the last block, and the 1×1
    shortcut acts on the activated input. Running variances are the biased ones (PyTorch: unbiased).
    """
    return model_of(_PreActResNet(config.width, info, dtype), info)


def count_parameters(params) -> int:
    """The number of trainable scalars."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
