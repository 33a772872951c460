"""The network ConvNeXt (Liu et al. 2022, arXiv 2201.03545)."""

from __future__ import annotations

import dataclasses
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp

from ..config.fields import MOST_CHANNELS, check_fields, option, presets
from ..core.errors import ConfigError
from ..core.types import DataInfo, Model
from .layers.depthwise import Depthwise
from .layers.linen import Linear, model_of, normalise, resize

DEPTHS = (3, 3, 9, 3)
"""Number of blocks in each stage of ConvNeXt-T."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvNeXtConfig:
    """Settings of the convolutional network ConvNeXt: patch size, width and image enlargement.

    `tiny` is ConvNeXt-T at 224 pixels (27,827,818 parameters at 10 classes), which the field starts
    from pretrained weights. `small_images` is half as wide and cuts images of 28 or 32 pixels into
    patches of 2.
    """

    preset: Literal["tiny", "small_images"] = option(
        "small_images", "preset of the settings below; given ones take precedence"
    )
    resize: int = option(0, "pixels to which images are enlarged first (0: as they are)", low=0)
    patch: int = option(2, "side of the stem's patches in pixels", low=1)
    width: int = option(
        48, "channels of the first stage (96: ConvNeXt-T)", low=1, high=MOST_CHANNELS
    )

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, info: DataInfo, dtype: jnp.dtype = jnp.float32) -> Model:
        """Build a ConvNeXt with these settings for the data set that `info` describes."""
        return make_convnext(self, info, dtype)


PRESETS = presets(
    "preset",
    ConvNeXtConfig(preset="small_images"),
    ConvNeXtConfig(preset="tiny", resize=224, patch=4, width=96),
)


class _Block(nn.Module):
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, active):
        channels, start = x.shape[-1], nn.initializers.truncated_normal(0.02)

        def dense(out, name):
            return nn.Dense(out, dtype=self.dtype, kernel_init=start, name=name)

        y = active(f"{self.name}/depthwise", Depthwise(7, self.dtype, name="depthwise")(x))
        y = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm")(y)
        hidden = nn.gelu(dense(4 * channels, "hidden")(y), approximate=False)
        y = dense(channels, "out")(active(f"{self.name}/hidden", hidden))
        scale = self.param("scale", nn.initializers.constant(1e-6), (channels,))
        return active(self.name, x + y * scale.astype(self.dtype))


class _ConvNeXt(nn.Module):
    config: ConvNeXtConfig
    info: DataInfo
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, images, train, active):
        x = resize(normalise(images, self.info), self.config.resize)

        def norm(name):
            return nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name=name)

        for stage, depth in enumerate(DEPTHS, 1):
            side = 2 if stage > 1 else self.config.patch
            x = norm(f"norm{stage}")(x) if stage > 1 else x
            x = nn.Conv(
                self.config.width << stage - 1,
                (side, side),
                (side, side),
                "VALID",
                dtype=self.dtype,
                kernel_init=nn.initializers.truncated_normal(0.02),
                name=f"down{stage}",
            )(x)
            x = norm("norm1")(x) if stage == 1 else x
            for i in range(depth):
                x = _Block(self.dtype, name=f"block{stage}_{i + 1}")(x, active)
            x = active(f"block{stage}", x)
        x = nn.LayerNorm(epsilon=1e-6, name="norm")(x.mean((1, 2), dtype=jnp.float32))
        return Linear(self.info.num_classes, name="head")(active("penultimate", x))


def make_convnext(config: ConvNeXtConfig, info: DataInfo, dtype: jnp.dtype = jnp.float32) -> Model:
    """Return a ConvNeXt as a `Model` for images of the shape `info.shape`.

    It has the layers of ConvNeXt-T. Its features include `block1`…`block4` [B, h, w, c] and
    `penultimate` [B, 8·width]. Deviation: there is no stochastic depth. Raises `ConfigError` for
    images that are too small to be halved three times after the stem.
    """
    side = config.resize or min(info.shape[:2])
    if side // config.patch < 8:
        raise ConfigError(
            f"model: images of {side} pixels in patches of {config.patch} cannot be halved "
            f"three times; want {8 * config.patch}"
        )
    return model_of(_ConvNeXt(config, info, dtype), info)
