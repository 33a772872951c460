"""The loss landscape between models: losses on a line and in a plane.

Clean and backdoor loss are computed along the line from one model to another and beyond it, and in
the plane through three models.

Wei, Liu & Zha (ICCV 2025, arXiv 2411.09585) explain by these why fine-tuning fails. The backdoored
model lies in a region of low clean and low backdoor loss, and fine-tuning ends inside it. Further
along the same direction the backdoor is removed, while the clean loss stays low.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float

from ..core.images import as_float
from ..core.losses import cross_entropy
from ..core.types import Array, Attack, Model, Params, Split, Variables
from ..data.batched import batched_sums
from ..training.batch_statistics import with_estimated_statistics

Statistics = Literal["interpolated", "estimated", "first"]
"""The choice of BatchNorm's statistics along a line.

They are mixed as the parameters are, estimated again at every point, or those of the first model.
"""


Numbers = Sequence[float] | Float[np.ndarray, " n"]
"""A sequence or an array of numbers."""


class Losses(NamedTuple):
    """Clean loss, backdoor loss, ACC and ASR of models at points of weight space, as arrays [...].

    `clean_loss` is the mean cross-entropy (nats) of clean images under their labels.
    `backdoor_loss` is that of triggered images under the class that the attacker wants. Images of
    that class are left out. `acc` and `asr` are shares.
    """

    clean_loss: Float[np.ndarray, "*points"]
    backdoor_loss: Float[np.ndarray, "*points"]
    acc: Float[np.ndarray, "*points"]
    asr: Float[np.ndarray, "*points"]


def mixed(models: Sequence[Variables], weights: Numbers) -> Variables:
    """Return the weighted mean of several models' variables, for weights that sum to 1.

    Beyond the models some weights are below 0. At a model the mixture is exactly that model.
    Statistics called `var` are mixed by their logarithms, because on a straight line they would be
    negative beyond the models.
    """
    params = [variables.params for variables in models]
    stats = [variables.batch_stats for variables in models]

    def level(path: Any, *leaves: Array) -> Array | float:
        if (
            jax.tree_util.keystr(path[-1:], simple=True) == "var"
            and sum(bool(w) for w in weights) > 1
        ):
            return functools.reduce(
                jnp.multiply,
                [
                    jnp.maximum(leaf, 1e-12) ** w
                    for leaf, w in zip(leaves, weights, strict=True)
                    if w
                ],
            )
        return straight(*leaves)

    def straight(*leaves: Array) -> Array | float:
        return sum(w * leaf for leaf, w in zip(leaves, weights, strict=True) if w)

    return Variables(
        jax.tree.map(straight, *params), jax.tree_util.tree_map_with_path(level, *stats)
    )


@functools.lru_cache(maxsize=32)
def _sums(model: Model, attack: Attack) -> Callable[..., jax.Array]:
    """Build a function that sums losses, hits and image counts of P models on a batch, [P, 6].

    The six are loss, hits and number of images, first clean, then triggered. `Losses` are computed
    from them.
    """

    def sums(
        variables: Variables,
        trigger: Any,
        images: jax.Array,
        labels: jax.Array,
        rows: jax.Array,
        valid: jax.Array,
    ) -> jax.Array:
        clean = as_float(images)
        wanted = attack.relabel(labels)
        counted = valid & (wanted != labels)
        says = [
            model.apply(variables, x, train=False).logits
            for x in (clean, attack.stamp(trigger, clean))
        ]
        says = [
            jnp.where(jnp.isfinite(logits).all(-1, keepdims=True), logits, jnp.nan)
            for logits in says
        ]

        def total(values, mask):
            return jnp.where(mask, values, 0).sum()

        def hits(logits, aim):  # argmax of NaN is 0, which is a class
            return (logits.argmax(-1) == aim) & jnp.isfinite(logits[:, 0])

        return jnp.stack(
            [
                total(cross_entropy(says[0], labels), valid),
                total(hits(says[0], labels), valid),
                valid.sum(),
                total(cross_entropy(says[1], wanted), counted),
                total(hits(says[1], wanted), counted),
                counted.sum(),
            ]
        )

    return jax.jit(jax.vmap(sums, (0, None, None, None, None, None)))


def losses_at(
    model: Model,
    attack: Attack,
    trigger: Any,
    points: Iterator[Variables] | Sequence[Variables],
    images: Split,
    batch_size: int = 500,
    together: int | None = None,
) -> Losses:
    """Return clean loss, backdoor loss, ACC and ASR of n models, such as points of a line.

    The result is `Losses` [n]. One compiled program takes `together` points at a time. None means
    eight, and one on CPU, whose convolutions with the weights of several nets at once are five
    times slower. The backdoor loss and the ASR are NaN where no image is counted.
    """
    found = []
    together = together or (1 if jax.default_backend() == "cpu" else 8)
    points = iter(points)
    while some := list(itertools.islice(points, together)):
        # The last group is filled up, so that it fits the compiled program.
        filled = some + some[-1:] * (together - len(some))
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *filled)
        compute = functools.partial(_sums(model, attack), stacked, trigger)
        sums = batched_sums(compute, *images, batch_size=batch_size, dtype=np.float64)
        found.append(sums[: len(some)])
    sums = np.concatenate([*found, np.zeros((0, 6))])
    with np.errstate(invalid="ignore", divide="ignore"):
        clean, triggered = sums[:, :2] / sums[:, 2:3], sums[:, 3:5] / sums[:, 5:]
    return Losses(clean[:, 0], triggered[:, 0], clean[:, 1], triggered[:, 1])


def path_losses(
    model: Model,
    attack: Attack,
    trigger: Any,
    first: Variables,
    second: Variables,
    ts: Numbers,
    images: Split,
    statistics: Statistics = "interpolated",
    reserved: Split | None = None,
) -> Losses:
    """Return clean and backdoor loss, ACC and ASR at points t of the line through two models.

    The result is `Losses` [T]. The model `first` is at t = 0 and `second` at t = 1. BatchNorm's
    statistics are "interpolated" as the parameters are, or "estimated" again at every point from
    the `reserved` images. Estimated ones are not a model's own at 0 and 1 either. Or they are those
    of the "first" model, as in a Taylor expansion there.
    """

    def points() -> Iterator[Variables]:
        for t in ts:
            point = mixed((first, second), (1 - t, t))
            if statistics == "first":
                point = point._replace(batch_stats=first.batch_stats)
            elif statistics == "estimated":
                if reserved is None:
                    raise TypeError("statistics: estimated needs `reserved` images")
                point = with_estimated_statistics(model, point, reserved)
            yield point

    return losses_at(model, attack, trigger, points(), images)


class Plane(NamedTuple):
    """The plane through three models' parameters: directions `u` and `v`, and coordinates `places`.

    `u` and `v` are orthonormal directions of parameters. `places` [3, 2] are the models'
    coordinates in the plane, the first at (0, 0).
    """

    u: Params
    v: Params
    places: Float[np.ndarray, "3 2"]


def plane_of(first: Params, second: Params, third: Params) -> Plane:
    """Return the `Plane` through the parameters of three models: two directions and coordinates.

    Raises `ValueError` where they lie on a line.
    """
    one, two = (jax.tree.map(jnp.subtract, other, first) for other in (second, third))
    length = float(jnp.sqrt(optax.tree.vdot(one, one)))
    if not length:
        raise ValueError("the first two models are the same")
    u = jax.tree.map(lambda x: x / length, one)
    along = float(jnp.asarray(optax.tree.vdot(two, u)))
    rest = jax.tree.map(lambda x, y: x - along * y, two, u)
    height = float(jnp.sqrt(optax.tree.vdot(rest, rest)))
    if height < 1e-4 * (height**2 + along**2) ** 0.5:
        raise ValueError("the three models lie on a line")
    v = jax.tree.map(lambda x: x / height, rest)
    return Plane(u, v, np.array([[0, 0], [length, 0], [along, height]]))


def plane_losses(
    model: Model,
    attack: Attack,
    trigger: Any,
    models: Sequence[Variables],
    xs: Numbers,
    ys: Numbers,
    images: Split,
) -> Losses:
    """Return clean and backdoor losses on a grid [len(ys), len(xs)] of the plane of three models.

    The result is `Losses`. BatchNorm's statistics are mixed as the parameters are.
    """
    plane = plane_of(*(variables.params for variables in models))
    # Every point of the plane is one mixture of the three models with weights that sum to 1.
    corners = np.vstack([plane.places.T, np.ones(3)])

    def points() -> Iterator[Variables]:
        for y in ys:
            for x in xs:
                yield mixed(
                    models, np.round(np.linalg.solve(corners, np.array([x, y, 1.0])), 6).tolist()
                )

    found = losses_at(model, attack, trigger, points(), images)
    return Losses(*(part.reshape(len(ys), len(xs)) for part in found))
