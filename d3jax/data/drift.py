"""Data drifts: changes of images and labels whose strength grows from update to update.

Every drift is a pure `f(keys [B], images [B, H, W, C] in [0, 1], strength) -> images`. The strength
may be traced, and strength 0 is the exact identity. Each image has its own key, so that its result
does not depend on its batch. The unit of the strength is in the docstring of each drift.

None of these drifts is from the paper on evolving models (Li et al., arXiv 2206.04677), which does
not give its drifts in detail. They are the usual ones.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp

from ..config.fields import did_you_mean
from ..core.errors import ConfigError
from ..core.types import Array
from .grid_sample import sample

Drift = Callable[[jax.Array, Array, jax.Array], Array]


def _unless_zero(drift: Drift) -> Drift:
    """Wrap a data drift so that it returns exactly the given images at strength 0.

    The drift's own arithmetic would return them only up to rounding.
    """

    @functools.wraps(drift)
    def exact(keys: jax.Array, images: Array, strength: jax.Array) -> jax.Array:
        return jnp.where(strength == 0, images, drift(keys, images, strength))

    return exact


@_unless_zero
def rotation(keys: jax.Array, images: Array, strength: jax.Array) -> Array:
    """Rotate images counter-clockwise about their centre by `strength` degrees.

    Pixels are sampled bilinearly; those from outside the image are black.
    """
    height, width = images.shape[1:3]
    angle = jnp.deg2rad(strength)
    y, x = jnp.arange(height) - (height - 1) / 2, jnp.arange(width) - (width - 1) / 2
    from_x = jnp.cos(angle) * x[None, :] - jnp.sin(angle) * y[:, None]
    from_y = jnp.sin(angle) * x[None, :] + jnp.cos(angle) * y[:, None]
    grid = jnp.stack([from_x / max((width - 1) / 2, 0.5), from_y / max((height - 1) / 2, 0.5)], -1)
    return sample(images, grid)


@_unless_zero
def hue(keys: jax.Array, images: Array, strength: jax.Array) -> Array:
    """Shift the HSV hue of RGB images by `strength` turns of the colour circle."""
    low, high = images.min(-1), images.max(-1)
    red, green, blue = images[..., 0], images[..., 1], images[..., 2]
    spread = jnp.where(high > low, high - low, 1)
    # Compared with the other channels and not with `high`, because a compiler may compute the
    # images twice, with different rounding.
    turns = jnp.where(
        (red >= green) & (red >= blue), (green - blue) / spread,
        jnp.where(green >= blue, 2 + (blue - red) / spread, 4 + (red - green) / spread),
    )  # fmt: skip
    turns = turns + 6 * strength
    # A channel is high within a sixth on both sides of its own hue and low beyond two sixths. It is
    # linear in between.
    apart = [jnp.abs(jnp.mod(turns - own + 3, 6) - 3) for own in (0, 2, 4)]
    share = jnp.clip(2 - jnp.stack(apart, -1), 0, 1)
    return low[..., None] + (high - low)[..., None] * share


@_unless_zero
def brightness(keys: jax.Array, images: Array, strength: jax.Array) -> jax.Array:
    """Multiply every pixel value of images by 1 + `strength`, and clip to [0, 1]."""
    return jnp.clip(images * (1 + strength), 0, 1)


@_unless_zero
def contrast(keys: jax.Array, images: Array, strength: jax.Array) -> jax.Array:
    """Multiply the distance of every pixel value to its image's mean by 1 + `strength`.

    The result is clipped to [0, 1]. At strength −1 every image is uniform.
    """
    mean = images.mean((1, 2, 3), keepdims=True)
    return jnp.clip(mean + (1 + strength) * (images - mean), 0, 1)


@_unless_zero
def noise(keys: jax.Array, images: Array, strength: jax.Array) -> jax.Array:
    """Add Gaussian noise of deviation `strength` to every pixel value, and clip to [0, 1]."""
    return jnp.clip(
        images + strength * jax.vmap(lambda key: jax.random.normal(key, images.shape[1:]))(keys),
        0,
        1,
    )


@_unless_zero
def blur(keys: jax.Array, images: Array, strength: jax.Array) -> jax.Array:
    """Blur images by a Gaussian with a standard deviation of `strength` pixels.

    Near the border, the mean is over the pixels inside the image.
    """
    rows, columns = (_means(side, strength) for side in images.shape[1:3])
    return jnp.einsum("ih,jw,bhwc->bijc", rows, columns, images, precision="highest")


def _means(side: int, deviation: jax.Array) -> jax.Array:
    """Return the matrix [side, side] that blurs a line of pixels by a Gaussian; rows sum to 1."""
    apart = (jnp.arange(side)[:, None] - jnp.arange(side)[None, :]) / jnp.maximum(
        jnp.abs(deviation), 1e-3
    )
    weights = jnp.exp(-apart * apart / 2)
    return weights / weights.sum(1, keepdims=True)


DRIFTS: dict[str, Drift] = {
    "rotation": rotation,
    "hue": hue,
    "brightness": brightness,
    "contrast": contrast,
    "noise": noise,
    "blur": blur,
}


def check_kinds(names: Iterable[str]) -> None:
    """Raise `ConfigError` for a name that is not the name of a data drift, such as "hue"."""
    for name in names:
        if name not in DRIFTS:
            raise ConfigError(
                f"drift: {name!r} is not one of {', '.join(DRIFTS)}{did_you_mean(name, DRIFTS)}"
            )


def compose(names: Sequence[str], channels: int) -> Drift:
    """Return one drift function that applies the data drifts called `names` one after another.

    It is a function `f(keys, images, strengths [len(names)]) -> images`. Each drift draws its own
    noise. Raises `ConfigError` for an unknown name, and for hue on images that have no colour.
    """
    check_kinds(names)
    if "hue" in names and channels != 3:
        raise ConfigError(f"drift: hue needs 3 channels, the images have {channels}")

    def drift(keys: jax.Array, images: Array, strengths: jax.Array) -> Array:
        for i, name in enumerate(names):
            images = DRIFTS[name](_within(keys, i), images, strengths[i])
        return images

    return drift


def _within(keys: jax.Array, i: int) -> jax.Array:
    """Derive from the random key of each image [B] the key that the i-th drift uses."""
    return jax.vmap(lambda key: jax.random.fold_in(key, i))(keys)


def keys_of(key: jax.Array, rows: Array) -> jax.Array:
    """Derive from one random key a key for the drift of each image, by row numbers [B]."""
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)


def label_shift(
    key: jax.Array, labels: jax.Array, strength: float | jax.Array, num_classes: int
) -> jax.Array:
    """Resample a labelled set so that its class frequencies shift, and return row numbers [N].

    The row of a label k among `labels` [N] has the weight exp(`strength` · (k / (K − 1) − ½)).
    Systematic resampling draws N row numbers, each row about as often as its weight says. At
    strength 0 each row is drawn once, in order. Which rows of a class are drawn depends on a
    shuffle by `key`.
    """
    count = len(labels)
    order = jax.random.permutation(key, count)
    weights = jnp.exp(strength * (labels[order] / max(num_classes - 1, 1) - 0.5))
    upto = jnp.cumsum(weights)
    places = (jnp.arange(count) + 0.5) / count * upto[-1]
    rows = order[jnp.clip(jnp.searchsorted(upto, places), 0, count - 1)]
    return jnp.where(strength == 0, jnp.arange(count), rows)
