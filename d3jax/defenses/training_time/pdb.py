"""PDB, proactive defensive backdoor (Wei et al., NeurIPS 2024, arXiv 2405.16112).

A model is trained from scratch on the suspect images and on clean images that carry the defender's
patch. The label of a clean image y is shifted to (y + s) mod K, and every clean image occurs
several times in an epoch. The model so learns a backdoor of the defender, which outweighs that of
the attacker. At test time the patch is put on every image, and the shift of the prediction is
undone: out_i = logit_{(i + s) mod K} (`stamped.stamped`).
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float

from ...config.fields import check_fields, option, presets
from ...config.recipes import OptimConfig, TrainConfig
from ...core.errors import ConfigError, refuse
from ...core.images import as_float
from ...core.random import stream
from ...core.types import Batch, DataInfo, Model, Split, Trained, TrainingDefense, Variables
from ...data.augment import make_augment
from ...data.batching import epoch_plan
from ...data.drift import rotation
from ...runtime.sharding import shard_batch
from ...training.loop import Hooks, TrainLoop, fit, trace_of
from ...training.optim import make_optimizer
from ...training.step import (
    Batches,
    TrainData,
    classification_loss,
    init_state,
    make_rows,
    make_train_step,
)
from .stamped import Stamp, check_side, put_on, stamped
from .suspicion import check_batch


def _recipe(epochs: int) -> TrainConfig:
    return TrainConfig(epochs=epochs, batch_size=256, optimizer=OptimConfig())


@dataclasses.dataclass(frozen=True, kw_only=True)
class PDBConfig:
    """Settings of PDB, which trains a defender's backdoor that outweighs the attacker's.

    PDB assumes reserved clean images: the authors have 10 % of the training set, in equal numbers
    of every class (`reserved: {fraction: 0.1, stratified: true}`). It flags and drops no image. On
    a clean set it does the same, and the patch hides its part of every test image.

    Judge PDB by RA and not by ASR alone. Where the attacker's trigger still decides, the model
    predicts the target t, and the shift turns it into (t − s) mod K. The ASR does not count it.

    The settings are a preset, and the values that differ from it. The preset `authors` trains
    for 100 epochs, on PreActResNet18. An epoch of 50,000 images and 5 times 5,000 clean ones has
    292 steps. The preset `short` is for two CPU cores, and has 14 of the 100 epochs.

    Deviations: rotated images are interpolated bilinearly, not by the nearest pixel. The crop and
    the flip are those that the data set allows.
    """

    preset: Literal["authors", "short"] = option(
        "authors", "source of train, where it is not given"
    )
    side: int = option(7, "side of the patch at the top left, in pixels", low=1)
    value: float = option(2.0, "value of the patch, in pixels of [0, 1]")
    shift: int = option(1, "s, number of classes by which the patch shifts the label", low=1)
    repeats: int = option(5, "occurrences of every reserved image in an epoch", low=1)
    dimmed: float = option(
        0.2, "share of the reserved images that are multiplied by U(0.5, 1)", low=0, high=1
    )
    rotated: float = option(0.5, "share of the reserved images that are rotated", low=0, high=1)
    degrees: float = option(10.0, "largest angle of a rotation, in degrees", low=0, high=180)
    train: TrainConfig = option(
        _recipe(100), "training recipe on the training images and the repeated reserved ones"
    )

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, info: DataInfo) -> TrainingDefense:
        """Build the training-time defence PDB for the data set that `info` describes."""
        return make_pdb(self, info)


PRESETS = presets(
    "preset", PDBConfig(preset="authors"), PDBConfig(preset="short", train=_recipe(14))
)


def stamp_of(config: PDBConfig, info: DataInfo) -> Stamp:
    """Return PDB's stamp for a data set; raise `ConfigError` if the shift keeps all classes."""
    if config.shift % info.num_classes == 0:
        raise ConfigError(
            f"shift: {config.shift} moves none of the {info.num_classes} classes of {info.name}"
        )
    return Stamp(config.side, (config.value,) * info.shape[2], config.shift)


def distorted(
    config: PDBConfig, key: jax.Array, images: Float[jax.Array, "B H W C"]
) -> Float[jax.Array, "B H W C"]:
    """Return images of which some are dimmed and some rotated, each with its own draws.

    A factor is drawn from U(0.5, 1), and an angle from U(−d, d). The crop and the flip come later.
    """
    keys, count = jax.random.split(key, 4), len(images)
    dims = jax.random.bernoulli(keys[0], config.dimmed, (count,))
    factors = jnp.where(dims, jax.random.uniform(keys[1], (count,), minval=0.5), 1.0)
    turns = jax.random.bernoulli(keys[2], config.rotated, (count,))
    most = config.degrees
    angles = jnp.where(turns, jax.random.uniform(keys[3], (count,), minval=-most, maxval=most), 0.0)

    def turned(image: jax.Array, angle: jax.Array) -> jax.Array:
        return rotation(key[None], image[None], angle)[0]

    return jax.vmap(turned)(images * factors[:, None, None, None], angles)


def defensive_batches(
    config: PDBConfig, info: DataInfo, size: int, reserved: int, steps_per_epoch: int, batch: int
) -> Batches:
    """Build the function that draws PDB's batches from training and repeated reserved images.

    `data.split` has the `size` training images, then the `reserved` clean ones. In an epoch every
    training image occurs at most once, and every clean one at most `repeats` times. Clean images
    get the patch and the shifted label. They are dimmed and rotated, and then augmented as all
    others, so that the patch moves with the image.
    """
    total, stamp = size + config.repeats * reserved, stamp_of(config, info)
    rows = make_rows(size=total, steps_per_epoch=steps_per_epoch, batch_size=batch)
    augment = make_augment(info, config.train.augment)

    def batches(key: jax.Array, step: jax.Array, data: TrainData) -> Batch:
        images, labels, _ = data.resident()
        drawn = shard_batch(rows(key, step))
        own = drawn >= size
        found = jnp.where(own, size + (drawn - size) % reserved, drawn)
        plain = as_float(jnp.asarray(images)[found])
        keys = (jax.random.fold_in(stream(key, name), step) for name in ("distort", "augment"))
        key_distort, key_augment = keys
        patched = distorted(config, key_distort, put_on(stamp, plain))
        mixed = augment(key_augment, jnp.where(own[:, None, None, None], patched, plain))
        given = jnp.asarray(labels)[found]
        shifted = jnp.where(own, (given + stamp.shift) % info.num_classes, given)
        return Batch(mixed, shifted, jnp.zeros_like(own), rows=found)

    return batches


def pdb_loop(
    key: jax.Array,
    model: Model,
    variables: Variables,
    data: Split,
    reserved: Split,
    config: PDBConfig,
    info: DataInfo,
) -> TrainLoop:
    """Build the `TrainLoop` of PDB, which drops the short last batch of every epoch."""
    size, clean = len(data.labels), len(reserved.labels)
    per_epoch, batch = plan_of(config, size, clean)
    steps = config.train.steps or config.train.epochs * per_epoch
    tx = make_optimizer(config.train.optimizer, steps=steps, steps_per_epoch=per_epoch)
    step = make_train_step(
        tx, loss=classification_loss(model), sam=config.train.sam,
        batches=defensive_batches(config, info, size, clean, per_epoch, batch),
    )  # fmt: skip
    both = Split(
        *(
            jnp.asarray(np.concatenate([np.asarray(part) for part in pair]))
            for pair in zip(data, reserved, strict=True)
        )
    )
    whole = TrainData(both, jnp.zeros(size + clean, bool), {})
    return TrainLoop(step, init_state(variables, tx, key), whole, steps)


def plan_of(config: PDBConfig, size: int, reserved: int) -> tuple[int, int]:
    """Return (steps per epoch, images per step) for numbers of training and reserved images."""
    total = size + config.repeats * reserved
    return epoch_plan(total, config.train.batch_size, drop_last=True)


def make_pdb(config: PDBConfig, info: DataInfo) -> TrainingDefense:
    """Return PDB, a training-time defence by a backdoor of the defender.

    PDB has no first stage: its train loop has no steps, and gives the initial variables. `network`
    is the model that patches every image and undoes the shift. In `found` no image is a suspect,
    and all keep their labels.
    """
    check_side(config.side, info)
    stamp = stamp_of(config, info)

    def begin(key: jax.Array, model: Model, data: Split) -> TrainLoop:
        variables = model.init(stream(key, "init"))
        return TrainLoop(_no_step, init_state(variables, optax.identity(), key), (), 0)

    def train(
        key: jax.Array,
        model: Model,
        data: Split,
        begun: Variables,
        hooks: Hooks = Hooks(),
        *,
        reserved: Split,
    ) -> Trained:
        size = len(data.labels)
        loop = pdb_loop(stream(key, "train"), model, begun, data, reserved, config, info)
        period, _ = plan_of(config, size, len(reserved.labels))
        state, lines = fit(loop, hooks.within("train", period))
        found = {"suspects": np.zeros(size, bool), "labelled": np.ones(size, bool)}
        return Trained(state.variables, found, trace_of(lines))

    def check(model: Model, shapes: Variables, size: int, reserved: int) -> None:
        refuse(reserved < 1, "reserved: PDB needs at least one reserved image")
        total = size + config.repeats * reserved
        check_batch("train", config.train.batch_size, total, "images and repeated reserved images")

    return TrainingDefense(
        begin, {"pdb": "initial variables"}, train, found_by_none, check, needs=("reserved",),
        network=lambda model: stamped(model, stamp),
    )  # fmt: skip


def _no_step(state: Any, data: Any) -> tuple[Any, dict[str, jax.Array]]:
    return state, {"loss": jnp.float32(0)}


def found_by_none(size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes of what PDB reports on `size` training images: two masks."""
    return {name: jax.ShapeDtypeStruct((size,), jnp.bool_) for name in ("suspects", "labelled")}
