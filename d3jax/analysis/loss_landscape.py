"""The loss landscape between models: losses on a line, in a plane, and to second order.

Clean and backdoor loss are computed along the line from one model to another and beyond it. They
are also computed in the plane through three models, and by a Taylor expansion.

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
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ..core.images import as_float
from ..core.losses import cross_entropy
from ..core.types import Array, Attack, Model, Params, Split, Variables
from ..data.batched import batched_sums, consecutive

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
                point = estimated(model, point, reserved)
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
    length = float(_dot(one, one)) ** 0.5
    if not length:
        raise ValueError("the first two models are the same")
    u = jax.tree.map(lambda x: x / length, one)
    along = float(_dot(two, u))
    rest = jax.tree.map(lambda x, y: x - along * y, two, u)
    height = float(_dot(rest, rest)) ** 0.5
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


def estimated(
    model: Model, variables: Variables, images: Split, batch_size: int = 250
) -> Variables:
    """Return a model's variables with BatchNorm statistics that are estimated again on `images`.

    They are the mean over batches of the statistics in train mode. A running statistic moves by m ·
    old + (1 − m) · batch. Two old values, 0 and 1, therefore give the batch's value without knowing
    m.
    """
    if not jax.tree.leaves(variables.batch_stats):
        return variables
    size = min(batch_size, len(images.labels))
    moved = functools.partial(_moved, model, variables.params)
    parts = []
    for (levels,) in consecutive(images.images, batch_size=size, drop_last=True):
        batch = as_float(jnp.asarray(levels))
        zero, one = (
            moved(
                jax.tree.map(lambda x, fill=fill: jnp.full_like(x, fill), variables.batch_stats),
                batch,
            )
            for fill in (0, 1)
        )
        parts.append(jax.tree.map(lambda a, b: a / (1 - (b - a)), zero, one))
    return variables._replace(
        batch_stats=jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *parts)
    )


@functools.partial(jax.jit, static_argnums=0)
def _moved(model: Model, params: Params, batch_stats: Params, images: jax.Array) -> Params:
    return model.apply(Variables(params, batch_stats), images, train=True).batch_stats


def make_backdoor_loss(
    model: Model, attack: Attack, batch_stats: Params
) -> Callable[..., jax.Array]:
    """Build `loss(params, trigger, images, labels)`, the mean cross-entropy of triggered images.

    It is taken under the class that the attacker wants, in eval mode with these statistics. The
    images are floats, and all of them are of other classes than the wanted one.
    """

    def loss(params: Params, trigger: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        logits = model.apply(
            Variables(params, batch_stats), attack.stamp(trigger, images), train=False
        ).logits
        return cross_entropy(logits, attack.relabel(labels)).mean()

    return loss


def hessian_product(
    loss: Callable[..., jax.Array], params: Params, direction: Params, *data: Any
) -> Params:
    """Return the product of a direction with the Hessian of `loss(params, *data)` at `params`.

    It is computed forward over reverse, so the Hessian itself is never formed.
    """
    return jax.jvp(lambda params: jax.grad(loss)(params, *data), (params,), (direction,))[1]


class Taylor(NamedTuple):
    """A second-order Taylor expansion along a direction Δ: `value`, `slope` and `curvature`.

    `value` is the function at the point, `slope` is gᵀΔ, and `curvature` is ΔᵀHΔ.
    """

    value: float
    slope: float
    curvature: float

    def __call__(
        self, t: float | Float[np.ndarray, "*points"]
    ) -> float | Float[np.ndarray, "*points"]:
        """Return a loss's second-order Taylor expansion at `t`: L + t gᵀΔ + ½ t² ΔᵀHΔ."""
        return self.value + t * self.slope + 0.5 * t**2 * self.curvature


def taylor(loss: Callable[..., jax.Array], params: Params, direction: Params, *data: Any) -> Taylor:
    """Return the Taylor expansion of `loss(params, *data)` along a direction, to second order.

    Arrays that are passed as `data` do not become constants of the compiled program, unlike arrays
    inside the function.
    """

    @jax.jit
    def expand(params: Params, direction: Params, *data: Any):
        value, gradient = jax.value_and_grad(loss)(params, *data)
        product = hessian_product(loss, params, direction, *data)
        return value, _dot(gradient, direction), _dot(product, direction)

    return Taylor(*map(float, expand(params, direction, *data)))


def _dot(a: Params, b: Params) -> jax.Array | float:
    """Return the inner product of two trees of parameters."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return sum(jnp.vdot(x, y) for x, y in pairs)


def top_eigenvalues(
    loss: Callable[..., jax.Array],
    params: Params,
    *data: Any,
    count: int = 3,
    tolerance: float = 1e-2,
) -> Float[np.ndarray, " count"]:
    """Return the `count` largest eigenvalues of the Hessian of `loss(params, *data)`.

    The largest is first. They are computed by Lanczos' method (scipy's) on Hessian-vector products.
    """
    from scipy.sparse.linalg import LinearOperator, eigsh

    flat, restore = jax.flatten_util.ravel_pytree(params)

    @jax.jit
    def product(flat: jax.Array, x: jax.Array, *data: Any) -> jax.Array:
        return jax.flatten_util.ravel_pytree(
            hessian_product(loss, restore(flat), restore(x), *data)
        )[0]

    def multiply(x):
        return np.asarray(product(flat, jnp.asarray(x, flat.dtype).ravel(), *data), np.float64)

    # scipy has no stubs and hides its arguments, and its `tol=0` may be any float.
    operator = LinearOperator((flat.size, flat.size), matvec=multiply, dtype=np.float64)  # pyright: ignore[reportCallIssue]
    start = np.random.default_rng(0).normal(size=flat.size)
    return np.sort(
        eigsh(operator, count, which="LA", tol=tolerance, v0=start, return_eigenvectors=False)  # pyright: ignore[reportArgumentType]
    )[::-1]


def changes(
    first: Params, others: Sequence[Params], bins: int = 61
) -> list[dict[str, dict[str, Any]]]:
    """Return norm and histogram of each weight tensor's change from one model to several others.

    The result has a dict for each of the others, by the tensor's name. It holds the `norm` of the
    change, also `relative` to the tensor's norm. A histogram of the changes has `counts` between
    `edges`. A tensor has its own edges, the same for all others. Changes beyond the edges are in
    the outermost bins.
    """
    leaves = jax.tree_util.tree_leaves_with_path(first)
    found: list[dict[str, dict[str, Any]]] = [{} for _ in others]
    for (path, before), *after in zip(leaves, *map(jax.tree.leaves, others), strict=True):
        name, length = (
            jax.tree_util.keystr(path, simple=True, separator="/"),
            float(np.linalg.norm(before)),
        )
        moved = [np.asarray(leaf) - np.asarray(before) for leaf in after]
        limit = max(float(np.quantile(np.abs(change), 0.999)) for change in moved) or 1.0
        edges = np.linspace(-limit, limit, bins + 1)
        for change, mine in zip(moved, found, strict=True):
            norm = float(np.linalg.norm(change))
            counts, _ = np.histogram(np.clip(change, -limit, limit), edges)
            mine[name] = {
                "norm": norm,
                "relative": norm / length if length else float("inf"),
                "counts": counts,
                "edges": edges,
            }
    return found
