"""Robustness: the ASR of a trigger that is moved, resized or made weaker or stronger at test time.

A printed trigger never has exactly the place, the size and the contrast that the model was trained
with. Li et al. 2021 (arXiv 2104.02361) measure how the ASR falls when they change.

`shifted`, `scaled` and `strengthened` change a stamp: each is a function `(stamp, amount) -> stamp`
of a `stamp(images) -> images` on float images [B, H, W, C] in [0, 1]. The amount may be traced. At
the amount that changes nothing (0, 1 and 1), the new stamp returns the same pixels as the old one.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..config.fields import check_fields, option
from ..core.errors import refuse
from ..core.images import as_float, as_levels
from ..core.types import Array, Attack, Model, Split, Variables
from ..data.batched import batched_sums
from ..runtime.compilation import fast

Stamp = Callable[[Array], jax.Array]
"""A function that puts a trigger on float images [B, H, W, C] in [0, 1]."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RobustnessConfig:
    """Settings of robustness, which measures the ASR when the trigger changes at test time.

    An empty list leaves out a change.
    """

    shift: tuple[int, ...] = option(
        (0, 1, 2, 4, 8), "pixels by which the trigger moves, both up and to the left", low=0
    )
    scale: tuple[float, ...] = option(
        (0.5, 0.75, 1.0, 1.25, 1.5, 2.0),
        "factors of the trigger's height and width, about the centre of its bounding box",
        above=0,
    )
    strength: tuple[float, ...] = option(
        (0.25, 0.5, 0.75, 1.0, 1.25, 1.5),
        "factors of the residual, which is the stamped image minus the clean one",
        low=0,
    )

    def __post_init__(self) -> None:
        check_fields(self)
        amounts = (self.shift, self.scale, self.strength)
        refuse(not any(amounts), "shift: is empty, as are scale and strength; give an amount")


def shifted(stamp: Stamp, pixels: int | jax.Array) -> Stamp:
    """Return a stamp whose trigger lies `pixels` pixels further up and further to the left.

    The image is rolled down and to the right, stamped, and rolled back. No pixel is interpolated,
    so this is exact for every attack that can stamp any image. A part of the trigger that leaves
    the image at the top or left comes back at the bottom or right. An attack that makes its trigger
    for each image (input_aware, refool) makes that of the rolled image.
    """

    def change(images: Array) -> jax.Array:
        moved = jnp.roll(images, pixels, (1, 2))
        return jnp.roll(stamp(moved), -pixels, (1, 2))

    return change


def scaled(stamp: Stamp, factor: float | jax.Array) -> Stamp:
    """Return a stamp whose trigger has `factor` times its height and width.

    The centre of the bounding box of all pixels that the trigger changes stays at its place. What
    leaves the image is cut off.

    - *Opaque* values do not depend on the image: a black image, a white one and this one get the
      same value in this channel of this pixel. They are resized together with their mask, and
      pasted over the image. A patch is thus exact: it stays opaque, and the image appears where the
      patch was.
    - For all other values, the residual stamp(x) − x is resized and added to the image. The values
      of a trigger that is generated for each image (input_aware) are among them.

    The resizing averages over the area of a pixel. A pixel of the trigger becomes a rectangle, and
    a pixel of the result is the mean over what the rectangles cover of it.
    """

    def change(images: Array) -> jax.Array:
        stamped = stamp(images)
        black, white = stamp(jnp.zeros((2, *images.shape[1:])).at[1].set(1))
        opaque = (black == white) & (stamped == black)
        touched = opaque | (as_levels(stamped) != as_levels(images))
        rows, columns = (_overlaps(touched.any((axis, 3)), factor) for axis in (2, 1))

        def resize(values: jax.Array) -> jax.Array:
            return jnp.einsum("bip,bjq,bpqc->bijc", rows, columns, values, precision="highest")

        over = resize(jnp.where(opaque, stamped, 0.0))
        under = images + resize(jnp.where(opaque, 0.0, stamped - images))
        cover = resize(opaque.astype(jnp.float32))
        return jnp.where(factor == 1, stamped, jnp.clip(over + (1 - cover) * under, 0, 1))

    return change


def _overlaps(touched: jax.Array, factor: float | jax.Array) -> jax.Array:
    """Return the weights [B, N, N] that resize a line of N pixels about the centre of its trigger.

    The weight of pixel q in pixel p is the length of p that q covers after resizing. `touched`
    [B, N] marks the pixels of the trigger. Without any, the centre is that of the image.
    """
    size = touched.shape[1]
    first, end = touched.argmax(1), size - touched[:, ::-1].argmax(1)
    centre = (first + end)[:, None] / 2
    edges = (centre + factor * (jnp.arange(size + 1) - centre))[:, None]
    pixels = jnp.arange(size)[:, None]
    covered = jnp.minimum(edges[..., 1:], pixels + 1) - jnp.maximum(edges[..., :-1], pixels)
    return jnp.maximum(covered, 0)


def strengthened(stamp: Stamp, factor: float | jax.Array) -> Stamp:
    """Return a stamp whose residual is `factor` times as strong: clip(x + factor·(stamp(x) − x)).

    An additive trigger gets `factor` times its amplitude. A patch gets the opacity `factor` below
    1, and `factor` times its contrast to the image above 1.
    """

    def change(images: Array) -> jax.Array:
        stamped = stamp(images)
        return jnp.clip(stamped + (factor - 1) * (stamped - images), 0, 1)

    return change


class Change(NamedTuple):
    """A change of the trigger: `apply(stamp, amount) -> stamp`, and the amount of no change."""

    apply: Callable[[Stamp, Any], Stamp]
    none: float


CHANGES = {
    "shift": Change(shifted, 0),
    "scale": Change(scaled, 1.0),
    "strength": Change(strengthened, 1.0),
}
"""The changes of the trigger, by the name of their setting."""


class Measured(NamedTuple):
    """The ASR under one `amount` of a `change`, measured on so many triggered `images`."""

    change: str
    amount: float
    asr: float
    images: int


def robustness(
    model: Model,
    variables: Variables,
    attack: Attack,
    trigger: Any,
    test: Split,
    config: RobustnessConfig,
    unchanged: float,
    batch_size: int = 500,
) -> list[Measured]:
    """Measure a model's ASR under every change of the trigger in `config`.

    It is measured on the test images for which the attacker wants another label than their own.
    Changed images are rounded to 8-bit levels, as a file would hold them. `unchanged` is the ASR of
    the trigger as it is, and is returned for the amounts that change nothing.

    The ASR is NaN without such images. It is also NaN for shift and scale where the trigger is only
    known as a stamped copy of each test image, as in the attack released.
    """
    split = _images_to_stamp(attack, test)
    classify = functools.partial(fast(functools.partial(_classes, model)), variables)
    found = []
    for name, (apply, none) in CHANGES.items():
        stamp = functools.partial(jax.jit(functools.partial(_stamped, attack, apply)), trigger)
        for amount in getattr(config, name):
            if amount == none:
                asr = unchanged
            elif attack.copies_only and name != "strength":
                asr = float("nan")
            else:
                asr = _asr(classify, functools.partial(stamp, amount), split, batch_size)
            found.append(Measured(name, amount, asr, len(split.labels)))
    return found


def _images_to_stamp(attack: Attack, test: Split) -> Split:
    """Return the test images to stamp, clean, with the labels that the attacker wants for them."""
    wanted = np.asarray(attack.relabel(jnp.asarray(test.labels)))
    rows = np.flatnonzero(wanted != np.asarray(test.labels))
    return Split(np.asarray(test.images)[rows], wanted[rows])


def _asr(
    classify: Callable[[jax.Array], jax.Array],
    stamp: Callable[[Array], jax.Array],
    split: Split,
    batch_size: int,
) -> float:
    """Return the share of a split's stamped images that get the split's labels; NaN for none."""
    if not len(split.labels):
        return float("nan")

    def hits(images: Any, labels: Any, rows: Any, valid: Any) -> jax.Array:
        return (valid & (classify(stamp(images)) == labels)).sum()

    return int(batched_sums(hits, *split, batch_size=batch_size)) / len(split.labels)


def _classes(model: Model, variables: Variables, images: jax.Array) -> jax.Array:
    return model.apply(variables, as_float(images), train=False).logits.argmax(-1)


def _stamped(
    attack: Attack, apply: Callable[..., Stamp], trigger: Any, amount: Any, images: jax.Array
) -> jax.Array:
    """Return uint8 images with the changed trigger, made of uint8 images."""
    stamp = apply(functools.partial(attack.stamp, trigger), amount)
    return as_levels(stamp(as_float(images))).astype(jnp.uint8)
