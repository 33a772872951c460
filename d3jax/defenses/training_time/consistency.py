"""Feature consistency under transformations (FCT), by which D-BR and D-ST separate the images.

Source: Chen, Wu & Wang, "Effective Backdoor Defense by Exploiting Sensitivity of Poisoned Samples",
NeurIPS 2022, and the authors' program. The separation has three steps:

1. A short training on all images, without augmentation. It learns the backdoor sooner than the
   task.
2. Fine-tuning by the intra-class loss alone, which pushes the centres of the classes apart.
3. The score Δ(x) = mean over the features of (h(x) − h(T(x)))². h are the penultimate features, and
   T rotates and then shifts the image at random. The images with the lowest Δ are D_c, which the
   defence trusts. Those with the highest Δ are D_p, its suspects.

D_p always exists. On a clean set it holds the clean images that the transformation changes most. If
step 2 makes the features of a class 0, Δ is 0 for its images, and the ties decide. Users of the
authors' program report values near 0 for all images (issue 1 of its repository).

Deviations: the two sets have exact sizes, and random numbers break ties. The authors compare Δ with
two thresholds, under a second draw of T. Learning rates are constant, where theirs fall by 3 % over
the twelve epochs. Step 2 begins without momentum, and updates the running statistics once a step
(theirs: twice).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Int32

from ...config.fields import check_fields, option
from ...config.loading import to_mapping
from ...config.recipes import OptimConfig, TrainConfig
from ...core.errors import ConfigError, names
from ...core.images import as_float
from ...core.random import stream
from ...core.records import LogRecord
from ...core.types import Array, Batch, DataInfo, Model, Params, Split, Variables
from ...data.batched import batched_map
from ...data.drift import keys_of
from ...metrics.sample_scores import ranking
from ...runtime.compilation import fast
from ...runtime.distributed import same_arrays
from ...training.loop import Hooks, TrainLoop, fit
from ...training.step import Loss, classification_loss
from .suspicion import check_batch, epoch_steps, first_stage_loop, training_loop

EVAL_BATCH = 500
"""Images in a batch of the score."""
LARGEST = 1e30
"""The score of an image whose features are not finite."""


def _train(epochs: int) -> TrainConfig:
    return TrainConfig(epochs=epochs, augment="none", optimizer=OptimConfig(schedule="constant"))


@dataclasses.dataclass(frozen=True)
class SeparationConfig:
    """Settings of the separation of training images into D_c, D_p and the rest.

    The defaults are the authors'.
    """

    first: TrainConfig = option(_train(2), "training recipe of step 1, on all images")
    intra: TrainConfig = option(_train(10), "training recipe of step 2, by the intra-class loss")
    degrees: float = option(180.0, "largest rotation of T, in either direction", low=0, high=180)
    shift: float = option(
        0.2, "largest shift of T, as a share of height and of width", low=0, high=1
    )
    clean: float = option(0.2, "α_c, share of the images in D_c: the lowest Δ", above=0, high=1)
    poisoned: float = option(
        0.05, "α_p, share of the images in D_p: the highest Δ", above=0, high=0.5
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if self.clean + self.poisoned > 1:
            raise ConfigError(
                f"clean: {self.clean:g} and poisoned: {self.poisoned:g} of the images are more "
                "than all of them"
            )


class Separation(NamedTuple):
    """The result of the separation of N images: Δ, the sorted rows of D_c and D_p, log records.

    `distances` [N] float32 are Δ. `clean` and `poisoned` are the row numbers of D_c and D_p.
    """

    distances: Float32[np.ndarray, " N"]
    clean: np.ndarray
    poisoned: np.ndarray
    lines: list[LogRecord]


def intra_class(
    features: Float[jax.Array, "B D"], labels: Int32[Array, " B"], classes: int
) -> Float32[jax.Array, ""]:
    """Return the intra-class loss: the mean cosine between the centres of the batch's classes.

    The centre of a class is the mean of its features in the batch. The mean is over all M² pairs of
    the M classes that the batch has, and a pair of equal classes counts as 0, as in the authors'
    program. The mean over pairs of different classes is M/(M − 1) times as large. A centre of
    length 0 has the cosine 0 with all others.
    """
    members = jax.nn.one_hot(labels, classes)
    counts = members.sum(0)
    centres = members.T @ features.astype(jnp.float32) / jnp.maximum(counts, 1)[:, None]
    lengths = jnp.maximum((centres**2).sum(1, keepdims=True), 1e-12)
    units = centres * jax.lax.rsqrt(lengths)
    pairs = jnp.where(jnp.eye(classes, dtype=bool), 0.0, units @ units.T)  # 0 for absent classes
    return pairs.sum() / (counts > 0).sum() ** 2


def intra_loss(model: Model, classes: int) -> Loss:
    """Build the loss function of step 2, `intra_class` of the penultimate features in train mode.

    The gradient of the classifier is 0.
    """

    def loss(params: Params, batch_stats: Params, batch: Batch, key: jax.Array, data: Any):
        outputs = model.apply(Variables(params, batch_stats), batch.images, train=True)
        features = outputs.features["penultimate"].reshape(len(batch.labels), -1)
        return intra_class(features, jnp.asarray(batch.labels), classes), (outputs.batch_stats, {})

    return loss


def transformed(
    keys: jax.Array, images: Float32[Array, "B H W C"], degrees: Any, shift: Any
) -> Float32[jax.Array, "B H W C"]:
    """Rotate each image about its centre by a random angle, then shift it by random whole pixels.

    The angle is uniform within ±`degrees`. The shift is uniform within ±`shift` of the height and
    of the width, and rounded. Both take the nearest pixel, and those from outside the image are
    black. `keys` [B] are the images' random keys, so that a result does not depend on the batch.
    """
    height, width = images.shape[1:3]
    y = (jnp.arange(height) - (height - 1) / 2)[:, None]
    x = (jnp.arange(width) - (width - 1) / 2)[None, :]

    def one(key: jax.Array, image: jax.Array) -> jax.Array:
        key_angle, key_shift = jax.random.split(key)
        angle = jnp.deg2rad(jax.random.uniform(key_angle, minval=-degrees, maxval=degrees))
        most = shift * jnp.array([height, width])
        moves = jnp.round(jax.random.uniform(key_shift, (2,), minval=-most, maxval=most))
        rows = jnp.sin(angle) * x + jnp.cos(angle) * y + (height - 1) / 2
        columns = jnp.cos(angle) * x - jnp.sin(angle) * y + (width - 1) / 2
        turned = _pixels(image, rows, columns)
        down, right = jnp.arange(height) - moves[0], jnp.arange(width) - moves[1]
        return _pixels(turned, down[:, None], right[None, :])

    return jax.vmap(one)(keys, jnp.asarray(images))


def _pixels(image: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Return the nearest pixels of an image at places that broadcast to [H, W]; black outside."""
    height, width = image.shape[:2]
    rows, columns = (jnp.round(places).astype(jnp.int32) for places in (rows, columns))
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    found = image[jnp.clip(rows, 0, height - 1), jnp.clip(columns, 0, width - 1)]
    return jnp.where(inside[..., None], found, 0.0)


@functools.partial(fast, static=1)
def _distances(
    model: Model,
    variables: Variables,
    key: jax.Array,
    images: jax.Array,
    rows: jax.Array,
    reach: tuple[jax.Array, jax.Array],
) -> jax.Array:
    plain = as_float(images)
    both = (plain, transformed(keys_of(key, rows), plain, *reach))
    before, after = (
        model.apply(variables, one, train=False).features["penultimate"].astype(jnp.float32)
        for one in both
    )
    return ((before - after) ** 2).reshape(len(images), -1).mean(1)


def distances_of(
    key: jax.Array, model: Model, variables: Variables, data: Split, config: SeparationConfig
) -> Float32[np.ndarray, " N"]:
    """Return the score Δ [N] of training images, with the model in eval mode.

    The transformation of an image depends on the key and its row alone. All processes get the same
    scores.
    """
    reach = jnp.float32(config.degrees), jnp.float32(config.shift)

    def compute(images: Array, rows: Array) -> jax.Array:
        return _distances(model, variables, key, images, rows, reach)

    rows = np.arange(len(data.labels), dtype=np.int32)
    found = batched_map(compute, data.images, rows, batch_size=EVAL_BATCH).astype(np.float32)
    found = np.where(np.isfinite(found), found, np.float32(LARGEST))
    return same_arrays({"distances": found})["distances"]


def counts_of(size: int, config: SeparationConfig) -> tuple[int, int]:
    """Return the numbers of images in D_c and in D_p, of `size` images: ⌊α_c N⌋ and ⌊α_p N⌋."""
    return int(config.clean * size), int(config.poisoned * size)


def separated(
    distances: np.ndarray, ties: np.ndarray, config: SeparationConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Return the sorted row numbers of D_c, the lowest `distances` [N], and of D_p, the highest.

    Of equal distances, the one with the lower `ties` [N] counts as lower.
    """
    size = len(distances)
    trusted, suspects = counts_of(size, config)
    order = ranking(distances, ties)
    return np.sort(order[:trusted]), np.sort(order[size - suspects :])


def short_separation() -> SeparationConfig:
    """Return the separation of the presets `short`, with 3 epochs of step 2 instead of 10."""
    return SeparationConfig(intra=_train(3))


def first_stage_of(config: SeparationConfig, info: DataInfo) -> dict[str, Any]:
    """Return the fields of a `TrainingDefense` that describe step 1 and `found`, by name.

    D-BR and D-ST with equal recipes of step 1 share its result.
    """

    def begin(key: jax.Array, model: Model, data: Split) -> TrainLoop:
        loss = classification_loss(model)
        return first_stage_loop(stream(key, "consistency"), model, data, config.first, info, loss)

    def epoch(size: int) -> int:
        return epoch_steps(size, config.first.batch_size)

    settings = {"consistency": to_mapping(config.first)}
    return {"begin": begin, "settings": settings, "epoch": epoch, "found": found_shapes}


def separate(
    key: jax.Array,
    model: Model,
    data: Split,
    begun: Variables,
    config: SeparationConfig,
    info: DataInfo,
    hooks: Hooks,
) -> Separation:
    """Run steps 2 and 3 from `begun`, the variables after step 1; return the `Separation`.

    The training of step 2 is the train loop `intra`. Poison flags are not read.
    """
    loss, size = intra_loss(model, info.num_classes), len(data.labels)
    loop = training_loop(stream(key, "intra"), begun, data, config.intra, info, loss)
    period = epoch_steps(size, config.intra.batch_size)
    state, lines = fit(loop, hooks.within("intra", period))
    distances = distances_of(stream(key, "transform"), model, state.variables, data, config)
    ties = np.asarray(jax.random.uniform(stream(key, "ties"), (size,)))
    clean, poisoned = separated(distances, ties, config)
    hooks.say(
        f"consistency: {len(clean)} images with Δ up to {distances[clean].max():.3g} are trusted, "
        f"{len(poisoned)} with Δ from {distances[poisoned].min():.3g} on are suspects"
    )
    return Separation(distances, clean, poisoned, lines)


def check_separation(config: SeparationConfig, model: Model, size: int) -> None:
    """Raise `ConfigError` where `size` images cannot be separated by the features of a model."""
    known = model.activations() if model.activations else {}
    if "penultimate" not in known:
        raise ConfigError(
            "needs the input of the classifier, and the model's features have no 'penultimate'; "
            f"they are {names(known) or 'none'}"
        )
    check_batch("separation.first", config.first.batch_size, size, "images")
    check_batch("separation.intra", config.intra.batch_size, size, "images")
    for name, count in zip(("clean", "poisoned"), counts_of(size, config), strict=True):
        if count < 1:
            share = getattr(config, name)
            raise ConfigError(f"separation.{name}: {share:g} of the {size} images is less than one")


def found_shapes(size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes of what D-BR and D-ST report on `size` training images, by name.

    `consistency` (float32) is −Δ, so that a low value is suspicious. The masks `suspects` and
    `labelled` (bool) are D_p and D_c.
    """
    kinds = {"consistency": jnp.float32, "suspects": jnp.bool_, "labelled": jnp.bool_}
    return {name: jax.ShapeDtypeStruct((size,), kind) for name, kind in kinds.items()}


def found_of(separation: Separation) -> dict[str, np.ndarray]:
    """Return the arrays [N] that `found_shapes` describes, of a `Separation`."""
    rows = np.arange(len(separation.distances))
    return {
        "consistency": -separation.distances,
        "suspects": np.isin(rows, separation.poisoned),
        "labelled": np.isin(rows, separation.clean),
    }
