"""Sharpness-aware minimisation (SAM): the gradient is taken where the loss is higher nearby.

Sources: SAM (Foret et al., ICLR 2021, arXiv 2010.01412) and its adaptive form ASAM (Kwon et al.,
ICML 2021, arXiv 2102.11600). A step takes the gradient g at the parameters w, moves to w + e, takes
the gradient there, and applies it to w:

    e = ρ · g / ‖g‖                  plain
    e = ρ · w² ⊙ g / ‖ |w| ⊙ g ‖     adaptive

The norm is over all parameters together.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from ..config.recipes import SamConfig
from ..core.types import Params

TINY = 1e-12
"""Added to the norm, so that a gradient of zero moves nothing."""


def ascended(params: Params, grads: Params, config: SamConfig) -> Params:
    """Return the parameters w + e at which SAM takes its second gradient."""
    scales = jax.tree.map(jnp.abs if config.adaptive else jnp.ones_like, params)
    size = optax.tree.norm(jax.tree.map(jnp.multiply, scales, grads))
    factor = config.rho / (size + TINY)
    return jax.tree.map(lambda w, s, g: w + factor * s**2 * g, params, scales, grads)
