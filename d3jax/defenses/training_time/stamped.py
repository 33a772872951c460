"""The defender's trigger, a square patch, and networks that stamp it on every image.

NAB and PDB train a model with a backdoor of the defender. At test time the patch is stamped on
every image, so that the defender's backdoor outweighs the attacker's.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, UInt8

from ...core.errors import ConfigError
from ...core.losses import accuracy, cross_entropy
from ...core.types import Array, Batch, DataInfo, Model, Outputs, Params, Variables
from ...metrics.attack_success import predict
from ...training.step import Loss


class Stamp(NamedTuple):
    """A defender's trigger: a square patch of `side` pixels at the top left, and a class shift.

    `colour` has the value of each channel, in pixels of [0, 1]. A value outside [0, 1] is allowed,
    because the defender changes the input of the network and no file. `shift` is the number s of
    classes by which the model's prediction for a stamped image differs from the true class: it is
    (y + s) mod K.
    """

    side: int
    colour: tuple[float, ...]
    shift: int = 0


def put_on(stamp: Stamp, images: Float[Array, "B H W C"]) -> Float[jax.Array, "B H W C"]:
    """Return float images with the patch of a stamp at the top left; other pixels are kept."""
    colour = jnp.asarray(stamp.colour, images.dtype)
    return jnp.asarray(images).at[:, : stamp.side, : stamp.side].set(colour)


@functools.lru_cache(maxsize=8)
def stamped(model: Model, stamp: Stamp) -> Model:
    """Return the network that puts the patch on every image and undoes the shift of the classes.

    Its logits are out_i = logit_{(i + s) mod K} with s = `stamp.shift`. It has the variables of the
    model. Its activations and features are those of the model for the stamped images, and an `edit`
    replaces them as in the model.

    The classifier of the model still has the shifted classes. A method that reads rows of the
    classifier as classes must shift them by s.
    """

    def apply(variables: Variables, images: jax.Array, *, train: bool, edit: Any = None) -> Outputs:
        given = {} if edit is None else {"edit": edit}
        outputs = model.apply(variables, put_on(stamp, images), train=train, **given)
        return outputs._replace(logits=jnp.roll(outputs.logits, -stamp.shift, axis=-1))

    return model._replace(apply=apply)


def stamped_loss(model: Model, stamp: Stamp) -> Loss:
    """Build a loss of training: the mean cross-entropy of a batch, with a stamp on some images.

    `data.loss_inputs` is the mask [N] of the training images that are stamped. The stamp comes
    after the augmentation, so that it is always at the top left. Reports `accuracy`.
    """

    def loss(params: Params, batch_stats: Params, batch: Batch, key: jax.Array, data: Any):
        marked = data.loss_inputs[batch.rows][:, None, None, None]
        images = jnp.where(marked, put_on(stamp, batch.images), batch.images)
        outputs = model.apply(Variables(params, batch_stats), images, train=True)
        value = cross_entropy(outputs.logits, batch.labels).mean()
        return value, (outputs.batch_stats, {"accuracy": accuracy(outputs.logits, batch.labels)})

    return loss


def rejected(
    model: Model, network: Model, variables: Variables, images: UInt8[Array, "B H W C"]
) -> Bool[jax.Array, " B"]:
    """Return which test images [B] NAB's filter rejects: the stamp changes their prediction.

    `network` is the `stamped` network of `model`, with the same variables. The attacker's trigger
    acts on an image without the stamp, but not beside it. A clean image whose prediction the stamp
    changes is rejected too.
    """
    return predict(model, variables, images) != predict(network, variables, images)


def check_side(side: int, info: DataInfo) -> None:
    """Raise `ConfigError` if a patch with this side covers the images of a data set."""
    height, width, _ = info.shape
    if side >= min(height, width):
        raise ConfigError(
            f"side: {side} pixels cover the images of {info.name}, which are {height}×{width}"
        )
