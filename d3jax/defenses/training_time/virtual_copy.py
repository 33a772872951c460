"""The virtual copy of ASD: a copy of the model whose later layers are trained for a short time.

ASD (Gao et al., CVPR 2023, arXiv 2303.12993) keeps the labels of the images whose loss the copy
lowers least.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.extend.core import Literal

from ...config.recipes import TrainConfig
from ...core.types import DataInfo, Model, Params, Split, Variables
from ...data.augment import make_augment
from ...data.batching import epoch_plan
from ...training.loop import Hooks, fit
from ...training.optim import make_optimizer
from ...training.split_loop import split_loop
from ...training.step import classification_loss


def make_copy(
    key: jax.Array, model: Model, variables: Variables, split: Split, config: TrainConfig,
    info: DataInfo, hooks: Hooks,
) -> Callable[[int, Variables], Variables]:  # fmt: skip
    """Build `copy(epoch, variables)`, which trains a virtual copy and returns its variables.

    The copy minimises the cross-entropy of the given labels of all images. The parameters that
    `earlier_layers` marks stay as they are, but all running statistics are updated. The copies of
    all epochs share one compiled step. They log to `hooks`, and the log of a copy
    replaces that of the copy before. They are not saved: after a stop, a copy is trained from its
    beginning.
    """
    per_epoch, batch_size = epoch_plan(len(split.labels), config.batch_size, drop_last=True)
    steps = config.steps or config.epochs * per_epoch
    tx = make_optimizer(config.optimizer, steps=steps, steps_per_epoch=per_epoch)
    fixed = earlier_layers(model, variables, info)
    loop = split_loop(
        key, variables, split,
        loss=classification_loss(model),
        tx=optax.multi_transform({False: tx, True: optax.set_to_zero()}, fixed),
        steps=steps, steps_per_epoch=per_epoch, batch_size=batch_size,
        augment=make_augment(info, config.augment), sam=config.sam,
    )  # fmt: skip
    nothing, part = Hooks(), hooks.within("virtual")
    part = part._replace(
        save=nothing.save, saved=nothing.saved, restore=nothing.restore, say=nothing.say
    )

    def copy(epoch: int, variables: Variables) -> Variables:
        # The first state of the optimiser does not depend on the variables.
        own = jax.random.fold_in(key, epoch)
        state = dataclasses.replace(loop.state, variables=variables, key=own)
        return fit(loop._replace(state=state), part)[0].variables

    return copy


def earlier_layers(model: Model, variables: Variables, info: DataInfo) -> Any:
    """Mark the parameters of the earlier half of a model's layers, as a pytree of Python bools.

    Of an odd number of layers, the middle one is marked. A single layer is not. The layers that are
    not marked are stages 3 and 4 and the classifier in PreActResNet18 and ResNet18.
    """
    layers = layers_of(model, variables, info)
    later = layers[-max(1, len(layers) // 2) :]
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: _layer(path) not in later, variables.params
    )


def layers_of(model: Model, variables: Variables, info: DataInfo) -> list[str]:
    """Return the names of a model's layers, in the order in which the network first reads them.

    A layer is a top-level entry of the parameters. The order is that of the traced operations. A
    layer without effect on the logits is left out.
    """
    leaves, tree = jax.tree_util.tree_flatten_with_path(variables.params)

    def logits(values: list[Any], batch_stats: Params, images: jax.Array) -> jax.Array:
        given = Variables(tree.unflatten(values), batch_stats)
        return model.apply(given, images, train=False).logits

    given = [value for _, value in leaves], variables.batch_stats
    with jax.disable_jit():  # so that compiled functions inside the model are traced too
        traced = jax.make_jaxpr(logits)(*given, jnp.zeros((1, *info.shape))).jaxpr
    named = dict(zip(traced.invars, (_layer(path) for path, _ in leaves), strict=False))
    read = (one for operation in traced.eqns for one in operation.invars)
    known = (named.get(one) for one in read if not isinstance(one, Literal))
    return list(dict.fromkeys(name for name in known if name))


def _layer(path: tuple[Any, ...]) -> str:
    """Return the name of the layer that a path in the parameters belongs to."""
    return jax.tree_util.keystr(path[:1], simple=True)
