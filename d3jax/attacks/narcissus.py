"""The Narcissus attack: a noise that stands for the target class, on a few of its images.

Source: Zeng et al. 2022, arXiv 2204.05255.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..config.fields import check_fields, option
from ..core.errors import AttackError
from ..core.images import as_float, as_levels
from ..core.losses import cross_entropy
from ..core.random import stream
from ..core.types import Array, Attack, DataInfo, Model, Preparation, Prepared, Split, Variables
from ..data.augment import make_augment
from ..data.batching import epoch_plan
from ..training.loop import TrainLoop, fit
from ..training.split_loop import split_loop
from ..training.step import classification_loss
from .poisoning import RateOf, clean_label, poison_rows, rate_of_option, rate_option, target_option


@dataclasses.dataclass(frozen=True)
class NarcissusConfig:
    """Settings of the Narcissus attack, which adds one noise to a few target-class images.

    By default 0.05 % of the training set is poisoned, which is 25 of CIFAR-10's 50,000 images. The
    noise has at most 16 of 255 levels, and three times as many at test time.
    """

    rate: float = rate_option(0.0005)
    rate_of: RateOf = rate_of_option()
    target: int | str = target_option()
    eps: float = option(16.0, "ε: largest noise (ℓ∞) in 8-bit levels", low=1, high=255)
    amplify: float = option(3.0, "factor of the noise at test time", above=0)
    warm_up: int = option(
        5, "passes over the target class that train the surrogate before the search", low=0
    )
    warm_up_lr: float = option(0.1, "RAdam's learning rate in the warm-up", above=0)
    rounds: int = option(1000, "passes over the target class of the search for the noise", low=1)
    batch_size: int = option(350, "images per step of the warm-up and of the search", low=1)
    lr: float = option(0.01, "RAdam's learning rate in the search, for images in [−1, 1]", above=0)

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, info: DataInfo) -> Attack:
        """Build the Narcissus attack with these settings for the data set of `info`."""
        return make_narcissus(self, info)


def make_narcissus(config: NarcissusConfig, info: DataInfo) -> Attack:
    """Return the Narcissus `Attack`, which adds one noise to a few target-class images.

    A poisoned training image is x + noise and keeps its label. The stamped image at test time is
    x + amplify · noise. Both are clipped, in 8-bit levels. The trigger is
    `{"noise": [H, W, C] int32}` with values from −⌊ε⌋ to ⌊ε⌋.

    The surrogate is a clean model of the same architecture. The warm-up trains it further on the
    images of the target class alone. Then the noise minimises the surrogate's cross-entropy of
    these images with the target. It starts at 0 and is projected to the ℓ∞ ball after every step.

    Deviations: the attacker of the paper has only the images of the target class and a second data
    set, on which the surrogate is trained. Here the surrogate is trained on the whole training set,
    so the attacker is stronger. The amplified noise may fool a clean model, too, so compare the ASR
    with that of a clean model. The authors' code searches with the batch statistics of BatchNorm,
    and with another label for the target than the surrogate was trained with. Here the search uses
    the running statistics and the same label. A warm-up of many steps so ends at a loss near 0, and
    the noise found after it is smaller.

    `select` raises `AttackError` where the rate amounts to no image, or where the target class has
    too few. The preparation raises `AttackError` where the search leaves the noise at 0.
    """
    target = info.class_of(config.target)

    def init(key: jax.Array) -> dict[str, jax.Array]:
        most = math.floor(config.eps)
        return {"noise": jax.random.randint(key, info.shape, -most, most + 1)}

    def add(trigger: dict[str, jax.Array], images: Array, factor: float = 1.0) -> jax.Array:
        noise = jnp.round(factor * trigger["noise"]).astype(jnp.int32)
        return as_float(jnp.clip(as_levels(images) + noise, 0, 255))

    def stamp(trigger: dict[str, jax.Array], images: Array) -> jax.Array:
        return add(trigger, images, config.amplify)

    def prepare(key, model, clean, dataset, poisoned, hooks):
        rows = np.flatnonzero(np.asarray(dataset.train.labels) == target)
        own = Split(*(np.asarray(part)[rows] for part in dataset.train))
        if config.warm_up:
            loop = warm_up_loop(stream(key, "warm_up"), model, clean, own, config, info)
            clean = fit(loop, hooks.within("warm_up"))[0].variables
        loop = noise_loop(stream(key, "search"), model, clean, own, config, info)
        state, lines = fit(loop, hooks.within("noise"))
        noise = noise_levels(state.variables.params["noise"], config)
        if not noise.any():
            raise AttackError(
                "the search found no noise of a whole level: the surrogate has no gradient left "
                f"after the warm-up (lower warm_up: {config.warm_up} or warm_up_lr: "
                f"{config.warm_up_lr:g}), or the step is too small (raise lr: {config.lr:g})"
            )
        return Prepared({"noise": noise}), lines

    attack = clean_label(
        config, info, init=init, stamp=stamp, preparation=Preparation(prepare, surrogate=True)
    )
    return attack._replace(poison=poison_rows(add, attack.relabel))


def warm_up_loop(
    key: jax.Array,
    model: Model,
    clean: Variables,
    own: Split,
    config: NarcissusConfig,
    info: DataInfo,
) -> TrainLoop:
    """Return the train loop that trains a surrogate further on the target class's images `own`.

    It updates the running statistics, too.
    """
    steps_per_epoch, batch_size = epoch_plan(len(own.labels), config.batch_size, drop_last=False)
    return split_loop(
        key,
        clean,
        own,
        loss=classification_loss(model),
        tx=optax.radam(config.warm_up_lr),
        steps=config.warm_up * steps_per_epoch,
        steps_per_epoch=steps_per_epoch,
        batch_size=batch_size,
        augment=make_augment(info),
    )


def noise_loop(
    key: jax.Array,
    model: Model,
    surrogate: Variables,
    own: Split,
    config: NarcissusConfig,
    info: DataInfo,
) -> TrainLoop:
    """Return the train loop that searches for the noise on the target class's images `own`.

    Its only parameter is the `noise` [H, W, C] float32, for images in [0, 1]. The noise is added
    after the augmentation.
    """
    steps_per_epoch, batch_size = epoch_plan(len(own.labels), config.batch_size, drop_last=False)

    def loss(params, batch_stats, batch, key, data):
        images = jnp.clip(batch.images + params["noise"], 0, 1)
        logits = model.apply(data.reference_params, images, train=False).logits
        return cross_entropy(logits, batch.labels).mean(), (batch_stats, {})

    def project(params, data):
        return {"noise": jnp.clip(params["noise"], -config.eps / 255, config.eps / 255)}

    return split_loop(
        key,
        Variables({"noise": jnp.zeros(info.shape)}, {}),
        own,
        loss=loss,
        tx=optax.radam(config.lr / 2),  # [0, 1] is half as wide as [−1, 1]
        steps=config.rounds * steps_per_epoch,
        steps_per_epoch=steps_per_epoch,
        batch_size=batch_size,
        augment=make_augment(info),
        project=project,
        reference_params=surrogate,
    )


def noise_levels(noise: jax.Array, config: NarcissusConfig) -> jax.Array:
    """Return a noise [H, W, C] in [−1, 1] in whole 8-bit levels, of which at most ε are taken."""
    most = math.floor(config.eps)
    return jnp.clip(as_levels(noise), -most, most)
