"""What every Linen architecture here shares: normalisation of images, the classifier, and the bridge to `Model`."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from ..base import DataInfo, Model, Outputs, Variables
from .conv import torch_uniform


def normalise(images: jax.Array, info: DataInfo) -> jax.Array:
    """Images in [0, 1] to the channel means and spreads of the data set."""
    return (images - jnp.asarray(info.mean, jnp.float32)) / jnp.asarray(info.std, jnp.float32)


class Head(nn.Module):
    """The linear classifier, in float32; its parameters stand at `head/kernel` and `head/bias` in every model here."""

    classes: int

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        init = torch_uniform(features.shape[-1])
        kernel = self.param("kernel", init, (features.shape[-1], self.classes))
        bias = self.param("bias", init, (self.classes,))
        return features.astype(jnp.float32) @ kernel + bias


def model_of(net: nn.Module, info: DataInfo) -> Model:
    """A `Model` from a Linen module whose call is `(images, train) -> (logits, features)`."""

    def init(key: jax.Array) -> Variables:
        variables = jax.jit(functools.partial(net.init, train=True))(key, jnp.zeros((1, *info.shape), jnp.float32))
        return Variables(variables["params"], variables.get("batch_stats", {}))

    def apply(variables: Variables, images: jax.Array, *, train: bool) -> Outputs:
        if not train:
            logits, features = net.apply(variables._asdict(), images, train=False)
            return Outputs(logits, features, variables.batch_stats)
        (logits, features), new = net.apply(variables._asdict(), images, train=True, mutable=["batch_stats"])
        return Outputs(logits, features, new.get("batch_stats", {}))

    return Model(init, apply)
