"""Triggers of FTrojan and CTRL, which raise some DCT coefficients of an image's colour channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64, Int32

from ..config.fields import check_fields, option
from ..core.dct import dct_matrix
from ..core.errors import AttackError, names, refuse
from ..core.images import as_float, as_levels
from ..core.types import Array, DataInfo

WINDOW = 32
"""The published side of the windows in pixels, to which `POSITIONS` belong."""
POSITIONS = ((15, 15), (31, 31))
"""The published coefficients: a middle frequency and the highest frequency of a window."""

YCRCB_TO_RGB = np.array([[1, 1.403, 0], [1, -0.714, -0.344], [1, 0, 1.773]])
"""OpenCV's factors [R G B, Y Cr Cb] from (Y, Cr − 128, Cb − 128) to (R, G, B), after BT.601.

The opposite direction is Y = 0.299 R + 0.587 G + 0.114 B, Cr = 0.713 (R − Y) + 128 and
Cb = 0.564 (B − Y) + 128.
"""
YUV_TO_RGB = np.array([[1, 0, 1.140], [1, -0.395, -0.581], [1, 2.032, 0]])
"""OpenCV's factors [R G B, Y U V] from (Y, U − 128, V − 128) to (R, G, B).

The opposite direction has the same Y, and U = 0.492 (B − Y) + 128 and V = 0.877 (R − Y) + 128.
"""


def window_option() -> Any:
    """Declare the config field `window`: the side of the windows that are transformed."""
    return option(
        WINDOW, "side in pixels of the square windows into which the images are divided", low=2
    )


def positions_option() -> Any:
    """Declare the config field `positions`: the coefficients to raise in every window."""
    return option(
        POSITIONS,
        "DCT coefficients to raise in every window, as [vertical, horizontal] frequencies from 0 "
        "to `window` − 1",
        low=0,
    )


def channels_option(second: str, third: str) -> Any:
    """Declare the config field `channels`: the channels of the colour space to change."""
    return option(
        (1, 2),
        f"channels to change: 0 is Y, 1 {second}, 2 {third}; grey images have Y only, so [0]",
        low=0,
        high=2,
    )


def magnitude_option(default: float) -> Any:
    """Declare the config field `magnitude`: how much each coefficient is raised."""
    return option(
        default,
        "number that is added to each coefficient of the orthonormal DCT of 8-bit levels",
        above=0,
    )


def check_settings(config: Any) -> None:
    """Check the fields of an attack's config, with its `positions` and `channels`.

    Raises `ConfigError` for positions that are no pairs, for an empty list, and for repetitions.
    """
    check_fields(config)
    wrong = [list(position) for position in config.positions if len(position) != 2]
    refuse(wrong, f"positions: want pairs [vertical, horizontal], got {names(wrong)}")
    for name in ("positions", "channels"):
        values = getattr(config, name)
        refuse(not values, f"{name}: the list is empty, want one or more entries")
        refuse(len(set(values)) < len(values), f"{name}: an entry is repeated in {_listed(values)}")


def frequency_trigger(
    config: Any, info: DataInfo, to_rgb: Float64[np.ndarray, "3 3"]
) -> tuple[Callable[[jax.Array], Any], Callable[[Any, Array], jax.Array]]:
    """Return the functions `init` and `stamp` of an attack that raises DCT coefficients.

    `config` has `window`, `positions`, `channels` and `magnitude`, and `to_rgb` are the factors of
    the colour space. The trigger is `{"offset": [H, W, C] int32}` in 8-bit levels, from `offset`,
    and the stamped image is x + offset, clipped to 8 bits.

    The colour transform is affine and the DCT is linear, so the transform adds the same offset to
    every image. Converting to the colour space and back with the published three-digit factors
    changes a level by less than 0.08. The results differ by at most one level, in about 1 % of the
    values. The offset is rounded alone, so that the result is the same on every backend. Since x is
    a whole number, this equals rounding the sum.

    Raises `AttackError` as `offset` does.
    """
    levels = offset(config, info, to_rgb)

    def init(key: jax.Array) -> dict[str, jax.Array]:
        return {"offset": jnp.asarray(levels)}

    def stamp(trigger: dict[str, jax.Array], images: Array) -> jax.Array:
        return as_float(jnp.clip(as_levels(images) + trigger["offset"], 0, 255))

    return init, stamp


def offset(
    config: Any, info: DataInfo, to_rgb: Float64[np.ndarray, "3 3"]
) -> Int32[np.ndarray, "H W C"]:
    """Return what raised coefficients add to every image, in whole 8-bit levels.

    Every window has the same `wave`. It is added to the `channels` of the colour space, and to the
    only channel of grey images.

    Raises `AttackError` for a `window` that does not divide the images, for `positions` outside a
    window, for grey images with other `channels` than 0, and for a `magnitude` that changes no
    level.
    """
    check_images(config, info)
    height, width, depth = info.shape
    repeats = (height // config.window, width // config.window)
    waves = np.tile(wave(config.window, config.positions, config.magnitude), repeats)
    chosen = np.isin(np.arange(depth), config.channels)
    factors = to_rgb if depth == 3 else np.ones((1, 1))
    levels = np.rint((waves[..., None] * chosen) @ factors.T).astype(np.int32)
    if not levels.any():
        raise AttackError(
            f"magnitude: {config.magnitude:g} changes no pixel by a whole level in windows of "
            f"{config.window}×{config.window}, want a larger one"
        )
    return levels


def wave(n: int, positions: tuple, magnitude: float) -> Float64[np.ndarray, "n n"]:
    """Return what raising coefficients by `magnitude` adds to a window of n×n pixels."""
    spectrum, matrix = np.zeros((n, n)), dct_matrix(n)
    spectrum[tuple(zip(*positions, strict=True))] = magnitude
    return matrix.T @ spectrum @ matrix


def check_images(config: Any, info: DataInfo) -> None:
    """Raise `AttackError` if the settings of a frequency trigger do not fit the images."""
    height, width, depth = info.shape
    if depth not in (1, 3):
        raise AttackError(f"channels: the images have {depth} channels, want 1 or 3")
    if depth == 1 and config.channels != (0,):
        raise AttackError(
            f"channels: {_listed(config.channels)} does not apply to grey images, want [0]"
        )
    sides = [n for n in range(2, min(height, width) + 1) if height % n == width % n == 0]
    if config.window not in sides:
        suits = [n for n in sides if n <= WINDOW]
        advice = f"want one of {names(sides)}{_published(suits[-1])}" if suits else "and none does"
        raise AttackError(
            f"window: {config.window} does not divide {height}×{width} images, {advice}"
        )
    outside = [list(position) for position in config.positions if max(position) >= config.window]
    if outside:
        raise AttackError(
            f"positions: {names(outside)} lies outside a window of {config.window}×{config.window}"
            f", want 0 to {config.window - 1}{_published(config.window)}"
        )


def _published(n: int) -> str:
    """Return the hint that gives the published positions, scaled to windows of n×n pixels."""
    scaled = [[(k + 1) * n // WINDOW - 1 for k in position] for position in POSITIONS]
    return f"; the published trigger, scaled, is window: {n} with positions: {scaled}"


def _listed(values: tuple) -> str:
    """Return a setting's tuple as the list that a config file has, such as "[[15, 15]]"."""
    return str([list(value) if isinstance(value, tuple) else value for value in values])
