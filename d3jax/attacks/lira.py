"""The LIRA attack: a network adds a small residual to each image, trained jointly with a model.

Source: Doan, Lao, Zhao and Li, "LIRA: Learnable, Imperceptible and Robust Backdoor Attacks", ICCV
2021 (openaccess.thecvf.com; no arXiv version was found).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ..config.fields import MOST_CHANNELS, check_fields, option
from ..core.images import as_float, as_levels
from ..core.losses import cross_entropy
from ..core.random import stream
from ..core.types import (
    Array,
    Attack,
    DataInfo,
    Dataset,
    Model,
    Preparation,
    Variables,
)
from ..data.augment import make_augment
from ..data.batching import epoch_plan
from ..models.unet import unet
from ..training.loop import TrainLoop, fit
from ..training.split_loop import split_loop
from .poisoning import (
    Mode,
    dirty_label,
    labeller,
    mode_option,
    rate_option,
    stamped_once,
    target_option,
)


@dataclasses.dataclass(frozen=True)
class LIRAConfig:
    """Settings of the LIRA attack, in which a network adds a small residual to each image.

    The defaults are those of BackdoorBench, with a U-Net in place of its autoencoder. At 32×32
    pixels and 3 channels the U-Net has 7.8 million parameters, as the authors' has.
    """

    rate: float = rate_option()
    target: int | str = target_option()
    mode: Mode = mode_option()
    eps: float = option(
        0.01,
        "ε: largest residual (ℓ∞) of pixels in [0, 1]; below half an 8-bit level it would be lost",
        low=0.002,
        high=1,
    )
    alpha: float = option(
        0.5,
        "α: weight of the clean loss in the joint training; the attack loss has 1 − α",
        low=0,
        high=1,
    )
    epochs: int = option(50, "passes over the training set in the joint training", low=1)
    steps: int = option(
        0, "steps of the joint training (0: as many as `epochs` passes have)", low=0
    )
    batch_size: int = option(128, "images per step of the joint training", low=1)
    lr: float = option(0.01, "SGD's learning rate for the joint training's classifier", above=0)
    generator_lr: float = option(1e-4, "Adam's learning rate for the generator", above=0)
    width: int = option(
        32, "channels of the generator's first level; each halving doubles them",
        low=1, high=MOST_CHANNELS,
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, info: DataInfo) -> Attack:
        """Build the LIRA attack with these settings for the data set that `info` describes."""
        return make_lira(self, info)


def make_lira(config: LIRAConfig, info: DataInfo) -> Attack:
    """Return the LIRA `Attack`, in which a network adds a small residual to each image.

    The stamped image is clip(x + ε · tanh(G(x))), rounded to 8-bit levels. The rounding adds up to
    half a level to ε. The trigger is `{"generator": params}`.

    The generator G is trained before the victim, jointly with a new classifier f of the victim's
    architecture (`joint_loop`). Afterwards f is discarded and G is frozen. Poisoned training images
    are stamped once, and the victim is trained from scratch. The poisoned set can be released.

    G is a U-Net (`models.unet`). The authors' code has a U-Net for CIFAR-10, with three halvings by
    average pooling, bilinear doubling and BatchNorm. Here there are up to four halvings by maximum
    pooling, transposed convolutions and instance normalisation. The residual of an image
    therefore does not depend on the other images of its batch.

    Deviations from the published recipe:

    - The authors continue with f, or train another classifier, on the loss of the joint training.
      All images are in it with and without the trigger. Here `rate` of the images is poisoned.
    - They update G at a copy of f one step ahead, and f with the G of the last epoch. BackdoorBench
      updates G at f itself. Here one gradient of one loss updates both.
    - They add ε · G(x) to normalised images. In pixels this is ε times the channel's standard
      deviation, about ε / 4 on CIFAR-10. Their command for CIFAR-10 has ε 0.1, and
      BackdoorBench's 0.01.
    - They also rotate images by up to 10 degrees. Here images are cropped and flipped as the data
      set allows.

    Where the noise of the images is much larger than ε, the victim may not learn the trigger from
    the poisoned set, though f did. The ASR then stays near 0.
    """
    init_generator, generate = unet(info, config.width)

    def init(key: jax.Array) -> dict[str, Any]:
        return {"generator": init_generator(key)}

    def hide(params: Any, images: Array) -> jax.Array:
        return jnp.clip(images + config.eps * jnp.tanh(generate(params, images)), 0, 1)

    def stamp(trigger: dict[str, Any], images: Array) -> jax.Array:
        return as_float(as_levels(hide(trigger["generator"], images)))

    def prepare(key, model, clean, dataset, poisoned, hooks):
        start = init(stream(key, "trigger"))["generator"]
        state, lines = fit(joint_loop(key, model, start, hide, dataset, config), hooks)
        trigger = {"generator": state.variables.params["generator"]}
        return stamped_once(stamp, trigger, dataset, poisoned), lines

    return dirty_label(
        config,
        info,
        init=init,
        stamp=stamp,
        preparation=Preparation(prepare, replaces=True, uses_model=True),
    )


def joint_loop(
    key: jax.Array, model: Model, generator: Any, hide: Callable, dataset: Dataset,
    config: LIRAConfig,
) -> TrainLoop:  # fmt: skip
    """Return LIRA's train loop, which trains the generator and a new classifier jointly.

    The loss is α · CE(f(x), y) + (1 − α) · CE(f(hide(x)), relabel(y)), with the cross-entropy CE,
    the classifier f in train mode, and all images x of a batch. `hide(params, images)` adds the
    residual without rounding. f is trained by SGD with momentum 0.9 and without weight decay, and
    the generator by Adam, as in the authors' code. `generator` are its initial parameters.
    """
    relabel = labeller(config, dataset.info)

    def loss(params, batch_stats, batch, key, data):
        def classified(stats, images, labels):
            outputs = model.apply(Variables(params["model"], stats), images, train=True)
            return outputs, cross_entropy(outputs.logits, labels).mean()

        wanted = relabel(batch.labels)
        plain, clean = classified(batch_stats, batch.images, batch.labels)
        hidden = hide(params["generator"], batch.images)
        outputs, attack = classified(plain.batch_stats, hidden, wanted)
        fooled = (outputs.logits.argmax(-1) == wanted).mean(dtype=jnp.float32)
        reported = {"clean_loss": clean, "attack_loss": attack, "fooled": fooled}
        return config.alpha * clean + (1 - config.alpha) * attack, (outputs.batch_stats, reported)

    start = model.init(stream(key, "model"))
    steps_per_epoch, batch_size = epoch_plan(
        len(dataset.train.labels), config.batch_size, drop_last=False
    )
    optimisers: dict[Hashable, optax.GradientTransformation] = {
        "model": optax.sgd(config.lr, 0.9),
        "generator": optax.adam(config.generator_lr),
    }
    return split_loop(
        stream(key, "joint"),
        Variables({"model": start.params, "generator": generator}, start.batch_stats),
        dataset.train,
        loss=loss,
        tx=optax.multi_transform(optimisers, {name: name for name in optimisers}),
        steps=config.steps or config.epochs * steps_per_epoch,
        steps_per_epoch=steps_per_epoch,
        batch_size=batch_size,
        augment=make_augment(dataset.info),
    )
