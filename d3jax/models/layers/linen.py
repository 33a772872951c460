"""What every Linen architecture here shares: normalisation of images, the classifier, and the bridge to `Model`."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from ...core.types import DataInfo, Model, Outputs, Variables
from .conv import torch_uniform


def normalise(images: jax.Array, info: DataInfo) -> jax.Array:
    """Images in [0, 1] to the channel means and spreads of the data set."""
    return (images - jnp.asarray(info.mean, jnp.float32)) / jnp.asarray(info.std, jnp.float32)


def resize(images: jax.Array, side: int) -> jax.Array:
    """Images [B, H, W, C] as [B, side, side, C], bilinear between the centres of pixels; as they are where `side` is 0."""
    return (
        jax.image.resize(images, (len(images), side, side, images.shape[3]), "bilinear")
        if side
        else images
    )


class Linear(nn.Module):
    """A linear layer with PyTorch's initial weights: `kernel` and `bias` from U(±1/√inputs).

    The classifier of every model here is one in float32 called `head`.
    """

    channels: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = torch_uniform(x.shape[-1])
        kernel = self.param("kernel", init, (x.shape[-1], self.channels))
        bias = self.param("bias", init, (self.channels,))
        return x.astype(self.dtype) @ kernel.astype(self.dtype) + bias.astype(self.dtype)


def model_of(net: nn.Module, info: DataInfo) -> Model:
    """A `Model` from a Linen module whose call is `(images, train) -> (logits, features)`."""

    def init(key: jax.Array) -> Variables:
        variables = jax.jit(functools.partial(net.init, train=True))(
            key, jnp.zeros((1, *info.shape), jnp.float32)
        )
        return Variables(variables["params"], variables.get("batch_stats", {}))

    def apply(variables: Variables, images: jax.Array, *, train: bool) -> Outputs:
        if not train:
            logits, features = net.apply(variables._asdict(), images, train=False)
            return Outputs(logits, features, variables.batch_stats)
        (logits, features), new = net.apply(
            variables._asdict(), images, train=True, mutable=["batch_stats"]
        )
        return Outputs(logits, features, new.get("batch_stats", {}))

    return Model(init, apply)
