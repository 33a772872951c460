"""D-ST, secure training by semi-supervised contrastive learning, then of the classifier alone.

Source: Chen, Wu & Wang, "Effective Backdoor Defense by Exploiting Sensitivity of Poisoned Samples",
NeurIPS 2022, and the authors' program. The contrastive loss is that of SupCon (Khosla et al.,
NeurIPS 2020, arXiv 2004.11362).

1. Feature consistency (`consistency`) separates trusted images D_c, suspects D_p and the rest.
2. A new network learns features from two views of every image. Views of images of D_c attract each
   other if the labels are equal. All other images have no label: only their own two views attract
   each other.
3. The classifier alone is trained on D_c, and a little against D_p.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float, Float32, Int8, Int32

from ...config.fields import check_fields, option, presets
from ...config.recipes import OptimConfig
from ...core.images import as_float
from ...core.losses import cross_entropy
from ...core.random import stream
from ...core.types import Array, DataInfo, Model, Params, Split, Trained, TrainingDefense, Variables
from ...data.batching import epoch_plan
from ...data.contrastive_views import make_views
from ...runtime.sharding import shard_batch
from ...training.loop import Hooks, TrainLoop, fit, trace_of
from ...training.optim import make_optimizer
from ...training.simclr import (
    PROJECTION,
    SimCLRConfig,
    check_simclr,
    make_draw,
    with_projector,
    without_projector,
)
from ...training.step import Loss, init_state, make_rows, make_train_step
from ..repair.d3 import select
from .consistency import (
    SeparationConfig,
    check_separation,
    counts_of,
    first_stage_of,
    found_of,
    separate,
    short_separation,
)
from .suspicion import appended, check_batch, epoch_steps

REST, TRUSTED, SUSPECT = range(3)
"""The kinds of training images: neither, in D_c, in D_p."""
BASE = 0.07
"""SupCon's base temperature: its loss is multiplied by the temperature over this number."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """Settings of the training of the classifier on fixed features, on views of D_c and D_p.

    The defaults are the authors'.
    """

    epochs: int = option(10, "passes over D_c and D_p together", low=1)
    steps: int = option(0, "length in steps instead of epochs (0: use epochs)", low=0)
    batch_size: int = option(512, "images per step; the last short batch is dropped", low=1)
    away: float = option(0.001, "weight of the cross-entropy of D_p, which is maximised", low=0)
    optimizer: OptimConfig = option(
        OptimConfig(lr=5.0, weight_decay=0.0, schedule="constant"), "optimiser and schedule"
    )

    __post_init__ = check_fields


def _contrast(epochs: int) -> SimCLRConfig:
    optimizer = OptimConfig(lr=0.5, weight_decay=1e-4, schedule="cosine_epoch")
    return SimCLRConfig(epochs=epochs, temperature=0.1, blur=0.0, optimizer=optimizer)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DSTConfig:
    """Settings of D-ST, which learns features from all images and a classifier from trusted ones.

    D-ST assumes that rotation and shift change the features of poisoned images most. It needs no
    clean images. On a clean set, too, only 20 % of the images keep their labels.

    The presets are:

    - `authors`: 2 and 10 epochs of the separation, 200 of the features, 10 of the classifier.
    - `short`, for two CPU cores: 3 epochs of the separation's second training (authors: 10) and 15
      of the features (200), with a warm-up of 1 (10). With 50,000 images, these are about 1.8
      million training images, as every image of the second stage counts twice.
    """

    preset: Literal["authors", "short"] = option(
        "authors", "source of the values that are not given"
    )
    separation: SeparationConfig = option(SeparationConfig(), "separation into D_c and D_p")
    simclr: SimCLRConfig = option(_contrast(200), "contrastive training of the features")
    warm_up: int = option(
        10, "epochs in which the learning rate of the features rises linearly from 0", low=0
    )
    suspects: Literal["views", "negatives"] = option(
        "views",
        "role of D_p in the contrastive loss: own views attract each other, as for images without "
        "a label (views, the authors' program), or only repel other images (negatives)",
    )
    classifier: ClassifierConfig = option(ClassifierConfig(), "training of the classifier")

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, info: DataInfo) -> TrainingDefense:
        """Build the training-time defence D-ST for the data set that `info` describes."""
        return make_d_st(self, info)


PRESETS = presets(
    "preset",
    DSTConfig(preset="authors"),
    DSTConfig(preset="short", separation=short_separation(), simclr=_contrast(15), warm_up=1),
)


class Sorted(NamedTuple):
    """The data of both trainings: images with labels, and the kind [N] of each image."""

    split: Split
    kinds: Int8[Array, " N"]


class Drawn(NamedTuple):
    """A batch: images [B, H, W, C] or their two views [2B, H, W, C], labels [B] and kinds [B].

    The views i and B + i are of the same image.
    """

    images: Array
    labels: Array
    kinds: Array


def contrastive(
    vectors: Float[jax.Array, " views D"],
    labels: Int32[Array, " B"],
    kinds: Int8[Array, " B"],
    temperature: float,
    suspects: Literal["views", "negatives"] = "views",
) -> Float32[jax.Array, ""]:
    """Return the semi-supervised contrastive loss of the vectors of two views of each image.

    With z the vectors divided by their lengths, it is τ/0.07 times the mean over the views i of

        −mean over p in P(i) of log( exp(zᵢ·z_p/τ) / Σ_{k≠i} exp(zᵢ·z_k/τ) )

    P(i) has the image's other view. For an image of D_c it also has the views of all images of D_c
    with the same label. Labels of other images are not read. With `suspects` "negatives", the views
    of D_p are among the k only, and the mean over i leaves them out.
    """
    z = vectors.astype(jnp.float32)
    z = z * jax.lax.rsqrt(jnp.maximum((z * z).sum(-1, keepdims=True), 1e-24))
    count = len(labels)
    labels, kinds = jnp.tile(labels, 2), jnp.tile(kinds, 2)
    trusted, itself = kinds == TRUSTED, jnp.eye(2 * count, dtype=bool)
    same = (labels[:, None] == labels[None, :]) & trusted[:, None] & trusted[None, :]
    attracted = (same | jnp.tile(jnp.eye(count, dtype=bool), (2, 2))) & ~itself
    logits = jnp.matmul(z, z.T, precision="highest") / temperature
    logs = jax.nn.log_softmax(jnp.where(itself, -jnp.inf, logits), axis=-1)
    each = -jnp.where(attracted, logs, 0.0).sum(1) / attracted.sum(1)
    counted = (kinds != SUSPECT) | (suspects == "views")
    mean = jnp.where(counted, each, 0.0).sum() / jnp.maximum(counted.sum(), 1)
    return temperature / BASE * mean


def features_loop(
    key: jax.Array, model: Model, data: Sorted, config: DSTConfig, info: DataInfo
) -> TrainLoop:
    """Build the `TrainLoop` that trains the features of a new network by `contrastive`.

    Its variables are those of `with_projector(model, config.simclr.dimension)`. The classifier gets
    no gradient.
    """
    recipe, size = config.simclr, len(data.kinds)
    network = with_projector(model, recipe.dimension)
    per_epoch, batch_size = epoch_plan(size, recipe.batch_size, drop_last=True)
    steps, rise = recipe.steps or recipe.epochs * per_epoch, config.warm_up * per_epoch
    tx = make_optimizer(recipe.optimizer, steps=steps, steps_per_epoch=per_epoch)
    if rise:
        tx = optax.chain(tx, optax.scale_by_schedule(optax.linear_schedule(1 / rise, 1, rise - 1)))
    rows = make_rows(size=size, steps_per_epoch=per_epoch, batch_size=batch_size)
    views = make_draw(rows, info, recipe.blur)

    def draw(key: jax.Array, step: jax.Array, data: Sorted) -> Drawn:
        drawn = rows(key, step)
        images = views(key, step, data.split.images)
        return Drawn(images, data.split.labels[drawn], data.kinds[drawn])

    def loss(params: Params, batch_stats: Params, batch: Drawn, key: jax.Array, data: Sorted):
        outputs = network.apply(Variables(params, batch_stats), batch.images, train=True)
        known = batch.labels, batch.kinds, recipe.temperature, config.suspects
        value = contrastive(outputs.features[PROJECTION], *known)
        return value, (outputs.batch_stats, {})

    state = init_state(network.init(stream(key, "init")), tx, stream(key, "train"))
    step = make_train_step(tx, loss=loss, batches=draw)
    return TrainLoop(step, state, jax.tree.map(jnp.asarray, data), steps)


def classifier_loss(model: Model, away: float) -> Loss:
    """Build the loss of the classifier: the mean cross-entropy of D_c minus `away` · that of D_p.

    The features come from the model in eval mode, and get no gradient. A kind that the batch does
    not have counts as 0. The loss reports both means.
    """

    def loss(params: Params, batch_stats: Params, batch: Drawn, key: jax.Array, data: Sorted):
        fixed = {"penultimate": jax.lax.stop_gradient}
        variables = Variables(params, batch_stats)
        logits = model.apply(variables, batch.images, train=False, edit=fixed).logits
        each = cross_entropy(logits, batch.labels)
        clean, suspect = (
            jnp.where(mask, each, 0.0).sum() / jnp.maximum(mask.sum(), 1)
            for mask in (batch.kinds == TRUSTED, batch.kinds == SUSPECT)
        )
        reported = {"clean_loss": clean, "suspect_loss": suspect}
        return clean - away * suspect, (batch_stats, reported)

    return loss


def classifier_loop(
    key: jax.Array,
    model: Model,
    variables: Variables,
    data: Sorted,
    config: DSTConfig,
    info: DataInfo,
) -> TrainLoop:
    """Build the `TrainLoop` that trains a new classifier on the images of `data`.

    All other parameters, and the running statistics, stay unchanged.
    """
    recipe, size = config.classifier, len(data.kinds)
    per_epoch, batch_size = epoch_plan(size, recipe.batch_size, drop_last=True)
    steps = recipe.steps or recipe.epochs * per_epoch
    head = select(variables.params, "head/*")
    new = model.init(stream(key, "init")).params
    params = jax.tree.map(
        lambda chosen, first, second: first if chosen else second, head, new, variables.params
    )
    tx = optax.chain(
        make_optimizer(recipe.optimizer, steps=steps, steps_per_epoch=per_epoch),
        optax.masked(optax.set_to_zero(), jax.tree.map(lambda chosen: not chosen, head)),
    )
    rows = make_rows(size=size, steps_per_epoch=per_epoch, batch_size=batch_size)
    view = make_views(info, config.simclr.blur)

    def draw(key: jax.Array, step: jax.Array, data: Sorted) -> Drawn:
        drawn = shard_batch(rows(key, step))
        own = jax.random.fold_in(stream(key, "views"), step)
        images = view(own, as_float(data.split.images[drawn]))
        return Drawn(images, data.split.labels[drawn], data.kinds[drawn])

    step = make_train_step(tx, loss=classifier_loss(model, recipe.away), batches=draw)
    state = init_state(variables._replace(params=params), tx, stream(key, "train"))
    return TrainLoop(step, state, jax.tree.map(jnp.asarray, data), steps)


def make_d_st(config: DSTConfig, info: DataInfo) -> TrainingDefense:
    """Return D-ST, a training-time defence by contrastive learning and a classifier of its own.

    `found` is that of `consistency.found_shapes`. The first training serves the separation only.

    Deviations: an image of D_c attracts images of D_c only. In the authors' program it attracts all
    images of the batch with its label. The projector has BatchNorm. The cosine of the learning
    rate ends at 0 (authors: 0.0005), and its warm-up begins at 0 (0.01). The classifier of the last
    epoch is kept (authors: of the best test ACC).
    """

    def train(
        key: jax.Array, model: Model, data: Split, begun: Variables, hooks: Hooks = Hooks()
    ) -> Trained:
        found = separate(key, model, data, begun, config.separation, info, hooks)
        kinds = np.full(len(data.labels), REST, np.int8)
        kinds[found.clean], kinds[found.poisoned] = TRUSTED, SUSPECT
        images, labels = (np.asarray(part) for part in data)
        every = Sorted(Split(images, labels), kinds)
        loop = features_loop(stream(key, "features"), model, every, config, info)
        state, more = fit(loop, hooks.within("features"))
        lines, rows = appended(found.lines, more), np.flatnonzero(kinds != REST)
        chosen = Sorted(Split(images[rows], labels[rows]), kinds[rows])
        variables = without_projector(state.variables)
        loop = classifier_loop(stream(key, "classifier"), model, variables, chosen, config, info)
        period = epoch_steps(len(rows), config.classifier.batch_size)
        state, more = fit(loop, hooks.within("classifier", period))
        return Trained(state.variables, found_of(found), trace_of(appended(lines, more)))

    def check(model: Model, shapes: Variables, size: int, reserved: int) -> None:
        check_separation(config.separation, model, size)
        check_simclr(config.simclr, model, shapes, size)
        select(shapes.params, "head/*", "classifier")
        count = sum(counts_of(size, config.separation))
        check_batch("classifier", config.classifier.batch_size, count, "images of D_c and D_p")

    shared = first_stage_of(config.separation, info)
    return TrainingDefense(**shared, train=train, check=check)
