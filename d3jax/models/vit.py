"""Vision transformers (ViT, Dosovitskiy et al. 2021, arXiv 2010.11929)."""

from __future__ import annotations

import dataclasses
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp

from ..config.fields import MOST_CHANNELS, check_fields, option, presets
from ..core.errors import ConfigError
from ..core.types import DataInfo, Model
from .layers.linen import Linear, model_of, normalise, resize


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """Settings of a vision transformer: patch size, width, depth, heads and pooling.

    `b16` is ViT-B/16 at 224 pixels (85,806,346 parameters at 10 classes), which the field starts
    from pretrained weights. `small` learns images of 28 or 32 pixels from random weights.
    """

    preset: Literal["b16", "small"] = option(
        "small", "preset of the settings below; given ones take precedence"
    )
    resize: int = option(0, "pixels to which images are enlarged first (0: as they are)", low=0)
    patch: int = option(4, "side of a patch in pixels", low=1)
    width: int = option(192, "dimension of a token", low=1, high=MOST_CHANNELS)
    depth: int = option(6, "number of layers", low=1, high=1000)
    heads: int = option(3, "number of attention heads", low=1)
    pool: Literal["token", "mean"] = option(
        "mean", "input of the classifier: the class token, or the mean over patches"
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if self.width % self.heads:
            raise ConfigError(f"heads: {self.heads} do not divide the width of {self.width}")

    def build(self, info: DataInfo, dtype: jnp.dtype = jnp.float32) -> Model:
        """Build a vision transformer with these settings for the data set that `info` describes."""
        return make_vit(self, info, dtype)


PRESETS = presets(
    "preset",
    ViTConfig(preset="small"),
    ViTConfig(preset="b16", resize=224, patch=16, width=768, depth=12, heads=12, pool="token"),
)


class _Layer(nn.Module):
    heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, active):
        width, xavier = x.shape[-1], nn.initializers.xavier_uniform()

        def norm(name):
            return nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name=name)

        attention = nn.MultiHeadDotProductAttention(
            self.heads, dtype=self.dtype, kernel_init=xavier, name="attention"
        )
        x = x + active(f"{self.name}/attention", attention(norm("norm1")(x)))

        def dense(channels, name):
            return nn.Dense(
                channels,
                dtype=self.dtype,
                kernel_init=xavier,
                bias_init=nn.initializers.normal(1e-6),
                name=name,
            )

        hidden = nn.gelu(dense(4 * width, "hidden")(norm("norm2")(x)), approximate=False)
        return active(self.name, x + dense(width, "out")(active(f"{self.name}/hidden", hidden)))


class _ViT(nn.Module):
    config: ViTConfig
    info: DataInfo
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, images, train, active):
        config, width = self.config, self.config.width
        x = resize(normalise(images, self.info), config.resize)
        patches = (config.patch, config.patch)
        # One matrix product for all patches. nn.Conv with the patch as its stride gives the same
        # numbers, but its backward pass is slower on CPU.
        x = nn.Dense(
            width, dtype=self.dtype, kernel_init=nn.initializers.lecun_normal(), name="patches"
        )(_cut(x, *patches))
        if config.pool == "token":
            token = self.param("token", nn.initializers.zeros, (1, 1, width))
            x = jnp.concatenate([jnp.tile(token.astype(x.dtype), (len(x), 1, 1)), x], 1)
        places = self.param("places", nn.initializers.normal(0.02), (1, x.shape[1], width))
        x = active("tokens", x + places.astype(x.dtype))
        for i in range(config.depth):
            x = _Layer(config.heads, self.dtype, name=f"layer{i + 1}")(x, active)
            x = active(f"block{i + 1}", x)
        x = nn.LayerNorm(epsilon=1e-6, name="norm")(x.astype(jnp.float32))
        x = active("penultimate", x[:, 0] if config.pool == "token" else x.mean(1))
        return Linear(self.info.num_classes, name="head")(x)


def _cut(x, height: int, width: int):
    """Cut images [B, H, W, C] into patches [B, H/height · W/width, height · width · C]."""
    b, rows, columns, c = x.shape
    x = x.reshape(b, rows // height, height, columns // width, width, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, -1, height * width * c)


def make_vit(config: ViTConfig, info: DataInfo, dtype: jnp.dtype = jnp.float32) -> Model:
    """Return a vision transformer as a `Model` for images of the shape `info.shape`.

    Its features include `block1`… [B, tokens, width] and `penultimate` [B, width]. It has no
    dropout, which is also torchvision's default. Raises `ConfigError` where patches do not tile the
    image.
    """
    sides = [config.resize] if config.resize else info.shape[:2]
    if any(side % config.patch for side in sides):
        raise ConfigError(
            f"model: patches of {config.patch} pixels do not tile images of "
            f"{'×'.join(map(str, sides))}"
        )
    return model_of(_ViT(config, info, dtype), info)
