"""How data drift: what a change of the world does to images and labels, by a strength that grows from update to update.

Every drift is `f(keys [B], images [B, H, W, C] in [0, 1], strength) -> images`, pure, for a strength that may be traced, and the exact
identity at strength 0. Each image has its own key, so that what becomes of it does not depend on its batch. Units stand with each. Nothing here is from the paper on evolving models (Li et al., arXiv 2206.04677), whose
drifts are not known in detail: these are the usual ones.
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
    """The drift, and at strength 0 the very images: its arithmetic would give them back up to rounding only."""

    @functools.wraps(drift)
    def exact(keys: jax.Array, images: Array, strength: jax.Array) -> jax.Array:
        return jnp.where(strength == 0, images, drift(keys, images, strength))

    return exact


@_unless_zero
def rotation(keys: jax.Array, images: Array, strength: jax.Array) -> Array:
    """Turned counter-clockwise about the centre by `strength` degrees: bilinear, black outside."""
    height, width = images.shape[1:3]
    angle = jnp.deg2rad(strength)
    y, x = jnp.arange(height) - (height - 1) / 2, jnp.arange(width) - (width - 1) / 2
    from_x = jnp.cos(angle) * x[None, :] - jnp.sin(angle) * y[:, None]
    from_y = jnp.sin(angle) * x[None, :] + jnp.cos(angle) * y[:, None]
    grid = jnp.stack([from_x / max((width - 1) / 2, 0.5), from_y / max((height - 1) / 2, 0.5)], -1)
    return sample(images, grid)


@_unless_zero
def hue(keys: jax.Array, images: Array, strength: jax.Array) -> Array:
    """The hue of HSV moved on by `strength` turns of the colour circle. Only for three channels."""
    low, high = images.min(-1), images.max(-1)
    red, green, blue = images[..., 0], images[..., 1], images[..., 2]
    spread = jnp.where(high > low, high - low, 1)
    # By comparison with the others, not with `high`: a compiler may compute the images twice, with other rounding.
    turns = jnp.where(
        (red >= green) & (red >= blue), (green - blue) / spread,
        jnp.where(green >= blue, 2 + (blue - red) / spread, 4 + (red - green) / spread),
    )  # fmt: skip
    turns = turns + 6 * strength
    # A channel is high within a sixth on both sides of its own hue, low beyond two sixths, linear in between.
    apart = [jnp.abs(jnp.mod(turns - own + 3, 6) - 3) for own in (0, 2, 4)]
    share = jnp.clip(2 - jnp.stack(apart, -1), 0, 1)
    return low[..., None] + (high - low)[..., None] * share


@_unless_zero
def brightness(keys: jax.Array, images: Array, strength: jax.Array) -> jax.Array:
    """Every value times 1 + `strength`, clipped."""
    return jnp.clip(images * (1 + strength), 0, 1)


@_unless_zero
def contrast(keys: jax.Array, images: Array, strength: jax.Array) -> jax.Array:
    """Every value's distance to its image's mean times 1 + `strength`, clipped; at −1 all images are even."""
    mean = images.mean((1, 2, 3), keepdims=True)
    return jnp.clip(mean + (1 + strength) * (images - mean), 0, 1)


@_unless_zero
def noise(keys: jax.Array, images: Array, strength: jax.Array) -> jax.Array:
    """Gaussian noise of standard deviation `strength` on every value, clipped."""
    return jnp.clip(
        images + strength * jax.vmap(lambda key: jax.random.normal(key, images.shape[1:]))(keys),
        0,
        1,
    )


@_unless_zero
def blur(keys: jax.Array, images: Array, strength: jax.Array) -> jax.Array:
    """A Gaussian mean with a standard deviation of `strength` pixels; near the border over the pixels there are."""
    rows, columns = (_means(side, strength) for side in images.shape[1:3])
    return jnp.einsum("ih,jw,bhwc->bijc", rows, columns, images, precision="highest")


def _means(side: int, deviation: jax.Array) -> jax.Array:
    """The matrix [side, side] of a Gaussian mean along a line, each row summing to 1."""
    apart = (jnp.arange(side)[:, None] - jnp.arange(side)[None, :]) / jnp.maximum(
        jnp.abs(deviation), 1e-3
    )
    weights = jnp.exp(-apart * apart / 2)
    return weights / weights.sum(1, keepdims=True)


DRIFTS: dict[str, Drift] = {
    "rotation": rotation, "hue": hue, "brightness": brightness, "contrast": contrast, "noise": noise, "blur": blur,
}  # fmt: skip


def check_kinds(names: Iterable[str]) -> None:
    """Raises `ConfigError` for a name that is no drift's."""
    for name in names:
        if name not in DRIFTS:
            raise ConfigError(
                f"drift: {name!r} is not one of {', '.join(DRIFTS)}{did_you_mean(name, DRIFTS)}"
            )


def compose(names: Sequence[str], channels: int) -> Drift:
    """`f(keys, images, strengths [len(names)]) -> images`: the drifts of `names` one after another, each with its own noise.

    Raises `ConfigError` for an unknown name, and for hue on images that have no colour.
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
    return jax.vmap(lambda key: jax.random.fold_in(key, i))(keys)


def keys_of(key: jax.Array, rows: Array) -> jax.Array:
    """The keys [B] of the `rows` [B] of a set."""
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)


def label_shift(
    key: jax.Array, labels: jax.Array, strength: float | jax.Array, num_classes: int
) -> jax.Array:
    """Rows [N] of a set with `labels` [N], drawn so that class k weighs exp(`strength` · (k / (K − 1) − ½)) of what it did.

    Systematic resampling: as many rows as there are, each about as often as its weight says; at strength 0 each row once, in order.
    The drawn rows of a class are spread over a shuffle by `key`.
    """
    count = len(labels)
    order = jax.random.permutation(key, count)
    weights = jnp.exp(strength * (labels[order] / max(num_classes - 1, 1) - 0.5))
    upto = jnp.cumsum(weights)
    places = (jnp.arange(count) + 0.5) / count * upto[-1]
    rows = order[jnp.clip(jnp.searchsorted(upto, places), 0, count - 1)]
    return jnp.where(strength == 0, jnp.arange(count), rows)
