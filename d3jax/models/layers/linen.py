"""Parts that all Flax Linen architectures share: normalisation, linear layer, `Model` wrapper."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from ...core.errors import did_you_mean, names
from ...core.types import DataInfo, Model, NormLayer, Outputs, Variables
from .conv import apart, torch_uniform


def normalise(images: jax.Array, info: DataInfo) -> jax.Array:
    """Normalise images in [0, 1] by the channel means and standard deviations of the data set."""
    return (images - jnp.asarray(info.mean, jnp.float32)) / jnp.asarray(info.std, jnp.float32)


def resize(images: jax.Array, side: int) -> jax.Array:
    """Resize images [B, H, W, C] bilinearly to [B, side, side, C], or leave them if `side` is 0.

    Interpolation is between the centres of pixels.
    """
    return (
        jax.image.resize(images, (len(images), side, side, images.shape[3]), "bilinear")
        if side
        else images
    )


class Linear(nn.Module):
    """A linear layer with PyTorch's initial weights: `kernel` and `bias` from U(±1/√inputs).

    The classifier of every model in this package is a float32 `Linear` called `head`.
    """

    channels: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = torch_uniform(x.shape[-1])
        kernel = self.param("kernel", init, (x.shape[-1], self.channels))
        bias = self.param("bias", init, (self.channels,))
        x = apart(x.astype(self.dtype))
        return x @ kernel.astype(self.dtype) + bias.astype(self.dtype)


Edit = Mapping[str, Callable[[jax.Array], jax.Array]]
"""Functions that replace activations [B, ...], by the names of the activations."""


class Activations:
    """A recorder of the named activations of one network call, which can also edit some of them.

    A network calls it on every activation, and continues with the array that it returns.
    """

    def __init__(self, edit: Edit | None = None):
        self._edit = edit or {}
        self.features: dict[str, jax.Array] = {}

    def __call__(self, name: str, x: jax.Array) -> jax.Array:
        """Record the activation `name` of a network and return it, edited if an edit names it."""
        self.features[name] = self._edit[name](x) if name in self._edit else x
        return self.features[name]

    def check(self) -> None:
        """Raise `ValueError` if an edit names an activation that the network does not have."""
        for name in set(self._edit) - set(self.features):
            known = names(self.features)
            hint = did_you_mean(name, self.features)
            raise ValueError(f"edit: {name!r} is no activation of this net{hint}; it has {known}")


def model_of(net: nn.Module, info: DataInfo, channels: tuple[NormLayer, ...] = ()) -> Model:
    """Wrap a Flax Linen module as a `Model` of pure functions.

    The call of the module is `(images, train, activations) -> logits`.
    """
    example = jnp.zeros((1, *info.shape), jnp.float32)

    @jax.jit
    def init_all(key: jax.Array) -> Mapping[str, Any]:
        return net.init(key, example, True, Activations())

    def init(key: jax.Array) -> Variables:
        variables = init_all(key)
        return Variables(variables["params"], variables.get("batch_stats", {}))

    def apply(
        variables: Variables, images: jax.Array, *, train: bool, edit: Edit | None = None
    ) -> Outputs:
        active, stats = Activations(edit), variables.batch_stats
        given = (variables._asdict(), images, train, active)
        if train:
            logits, new = net.apply(*given, mutable=["batch_stats"])
            stats = new.get("batch_stats", {})
        else:
            logits = cast(jax.Array, net.apply(*given))
        active.check()
        return Outputs(logits, active.features, stats)

    @functools.cache
    def activations() -> dict[str, jax.ShapeDtypeStruct]:
        shapes = jax.eval_shape(init, jax.random.key(0))
        outputs = jax.eval_shape(functools.partial(apply, train=False), shapes, example)
        return {
            name: jax.ShapeDtypeStruct(found.shape[1:], found.dtype)
            for name, found in outputs.features.items()
        }

    return Model(init, apply, activations, channels)
