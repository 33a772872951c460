"""Wide residual networks WRN-d-k (Zagoruyko and Komodakis 2016, arXiv 1605.07146)."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from ..config.fields import MOST_CHANNELS, check_fields, option
from ..core.errors import ConfigError
from ..core.types import DataInfo, Model, NormLayer
from .layers.conv import Conv
from .layers.linen import Linear, model_of, normalise
from .layers.norm import BatchNorm
from .preact_resnet import Block, block_norms


@dataclasses.dataclass(frozen=True)
class WideResNetConfig:
    """Settings of a wide residual network WRN-d-k: its depth d and its widening factor k.

    The default is WRN-16-1, the network of NAD's, ABL's and DLP's experiments.
    """

    depth: int = option(
        16, "number of layers d: 6n + 4 for n blocks in each stage", low=10, high=3004
    )
    width: int = option(
        1, "widening factor k: the stages have 16k, 32k and 64k channels", low=1, high=MOST_CHANNELS
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if self.depth % 6 != 4:
            raise ConfigError(
                f"depth: {self.depth} is not 6n + 4; near it are "
                f"{self.depth // 6 * 6 + 4} and {self.depth // 6 * 6 + 10}"
            )

    def build(self, info: DataInfo, dtype: jnp.dtype = jnp.float32) -> Model:
        """Build a wide residual network with these settings for the data set of `info`."""
        return make_wide_resnet(self, info, dtype)


class _WideResNet(nn.Module):
    config: WideResNetConfig
    info: DataInfo
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, images, train, active):
        x = Conv(16, dtype=self.dtype, name="stem")(normalise(images, self.info))
        x = active("stem", x)
        for stage in range(3):
            for block in range((self.config.depth - 4) // 6):
                stride, channels = 2 if stage and not block else 1, 16 * self.config.width << stage
                name = f"block{stage + 1}_{block + 1}"
                x = Block(channels, stride, self.dtype, name=name)(x, train, active)
            x = active(f"block{stage + 1}", x)
        x = active("relu", nn.relu(BatchNorm(train, self.dtype, name="norm")(x)))
        x = active("penultimate", x.mean((1, 2), dtype=jnp.float32))
        return Linear(self.info.num_classes, name="head")(x)


def make_wide_resnet(
    config: WideResNetConfig, info: DataInfo, dtype: jnp.dtype = jnp.float32
) -> Model:
    """Return the wide residual network WRN-d-k as a `Model` for images of `info.shape`.

    Its features include `block1`…`block3` [B, h, w, c] and `penultimate` [B, 64k]. Deviations:
    there is no dropout, which is the paper's own default; the 1×1 shortcuts act on the activated
    input, as in the authors' code.
    """
    count = (config.depth - 4) // 6
    stages = [[stage > 0 or config.width > 1, *(count - 1) * [False]] for stage in range(3)]
    blocks = block_norms(stages)
    last = f"block3_{count}"
    producers = ((last, "Conv_1"), *(((last, "shortcut"),) if stages[2][-1] else ()))
    norm = NormLayer(
        ("norm",), producers, producers[-1], (("head",),), "block3", "relu", not stages[2][-1]
    )
    return model_of(_WideResNet(config, info, dtype), info, (*blocks, norm))
