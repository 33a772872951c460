"""The curvature of a loss in parameter space: Taylor expansions, and the Hessian's eigenvalues."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float

from ..core.losses import cross_entropy
from ..core.types import Attack, Model, Params, Variables


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
        return value, optax.tree.vdot(gradient, direction), optax.tree.vdot(product, direction)

    return Taylor(*map(float, expand(params, direction, *data)))


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
