"""Semi-supervised training from labelled and unlabelled images: MixMatch and FixMatch.

MixMatch: Berthelot et al., NeurIPS 2019 (arXiv 1905.02249). FixMatch: Sohn et al., NeurIPS 2020
(arXiv 2001.07685). Both are losses of a batch of labelled images and as many unlabelled ones, in
the same train loop. The weights are not averaged over steps (no EMA).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from ..config.fields import check_fields, check_foreign, option, presets
from ..config.recipes import OptimConfig
from ..core.images import as_float
from ..core.losses import cross_entropy
from ..core.random import stream
from ..core.types import Array, DataInfo, Model, Outputs, Params, Split, Variables
from ..data.augment import make_augment
from ..data.batching import batch_rows, epoch_plan
from ..data.randaugment import strong_augment
from ..runtime.sharding import shard_batch
from .loop import TrainLoop
from .optim import make_optimizer
from .step import Batches, Loss, init_state, make_train_step

OWNERS = {"threshold": ("fixmatch",), "temperature": ("mixmatch",), "alpha": ("mixmatch",)}
"""Which method a setting belongs to, for each setting of only one method."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SemiConfig:
    """Settings of MixMatch or FixMatch, which train on labelled and unlabelled images.

    A setting that is left out has the value of the method in `PRESETS`.
    """

    method: Literal["mixmatch", "fixmatch"] = option("mixmatch", "the semi-supervised method")
    epochs: int = option(
        20, "passes over the larger of the labelled and the unlabelled set (d3jax's choice)", low=1
    )
    steps: int = option(
        0, "length of the training in steps, instead of epochs (0: use epochs)", low=0
    )
    batch_size: int = option(
        64, "labelled images per step, and as many unlabelled ones (MixMatch's value)", low=1
    )
    temperature: float = option(
        0.5, "temperature T with which MixMatch sharpens the labels it guesses", above=0
    )
    alpha: float = option(
        0.75, "α of the Beta distribution from which MixMatch draws its mixing weights", above=0
    )
    threshold: float = option(
        0.95,
        "least probability at which FixMatch uses a pseudo-label (its authors' value)",
        low=0,
        high=1,
    )
    statistics: Literal["trained", "plain"] = option(
        "trained",
        "images of which BatchNorm keeps running statistics: trained: the mixed or distorted ones "
        "of the loss (both methods' authors); plain: weakly augmented ones, half of them labelled, "
        "like those that the model is used on",
    )
    weight: float = option(
        15.0, "weight λ_u of the loss of the unlabelled images (FixMatch: 1)", low=0
    )
    ramp: float = option(
        1.0,
        "share of the training during which λ_u rises from 0 to its value (FixMatch: 0)",
        low=0,
        high=1,
    )
    optimizer: OptimConfig = option(
        OptimConfig(name="adam", lr=2e-3, weight_decay=0.0, schedule="cosine"),
        "optimiser and learning-rate schedule (FixMatch: SGD 0.03, Nesterov momentum)",
    )

    def __post_init__(self) -> None:
        check_fields(self)
        check_foreign(self, "method", OWNERS)


PRESETS = presets(
    "method",
    SemiConfig(method="mixmatch"),
    SemiConfig(
        method="fixmatch",
        weight=1.0,
        ramp=0.0,
        optimizer=OptimConfig(lr=0.03, nesterov=True, schedule="cosine"),
    ),
)
"""The settings of each method, by its name.

MixMatch has the settings of DBD's fine-tuning (Huang et al., arXiv 2202.03423), except that the
learning rate falls to 0. DBD's rate is constant. MixMatch's authors compensate a constant rate by
averaging the weights. DBD trains for 194,560 steps, so λ_u rises far more slowly there.

FixMatch has its authors' settings, except for the length, the batch and the cosine, which ends at 0
here. Its authors also take seven times as many unlabelled images as labelled ones.
"""


class Semi(NamedTuple):
    """The data of semi-supervised training: images, and row numbers `labelled` and `unlabelled`.

    `labelled` [n] and `unlabelled` [m] are row numbers of `split`. The labels of unlabelled rows
    are never read.
    """

    split: Split
    labelled: jax.Array
    unlabelled: jax.Array


class Drawn(NamedTuple):
    """A batch of MixMatch or FixMatch: labelled images, and unlabelled ones in two augmentations.

    `first` and `second` are the same unlabelled images, each with its own augmentation. `share`
    float32 [] in [0, 1] is the fraction of λ_u that applies at this step.
    """

    images: Array
    labels: Array
    first: Array
    second: Array
    share: jax.Array


def semi_supervised_loop(
    key: jax.Array,
    model: Model,
    variables: Variables,
    split: Split,
    labelled: Any,
    unlabelled: Any,
    config: SemiConfig,
    info: DataInfo,
) -> TrainLoop:
    """Build the `TrainLoop` that trains a model by MixMatch or FixMatch, starting from `variables`.

    `labelled` [n] and `unlabelled` [m] are row numbers of `split`. Raises `ConfigError` where
    either set is smaller than a batch.
    """
    labelled, unlabelled = jnp.asarray(labelled), jnp.asarray(unlabelled)
    sizes = {"labelled": len(labelled), "unlabelled": len(unlabelled)}
    plans = {
        name: epoch_plan(size, config.batch_size, drop_last=True) for name, size in sizes.items()
    }
    per_epoch = max(steps for steps, _ in plans.values())
    steps = config.steps or config.epochs * per_epoch
    tx = make_optimizer(config.optimizer, steps=steps, steps_per_epoch=per_epoch)
    draw = make_draw(config, sizes, plans, config.ramp * steps, info)
    step = make_train_step(tx, loss=LOSSES[config.method](config, model), batches=draw)
    data = Semi(Split(*map(jnp.asarray, split)), labelled, unlabelled)
    return TrainLoop(step, init_state(variables, tx, key), data, steps)


def make_draw(
    config: SemiConfig,
    sizes: Mapping[str, int],
    plans: Mapping[str, tuple[int, int]],
    ramp: float,
    info: DataInfo,
) -> Batches:
    """Build the function that draws and augments a train step's labelled and unlabelled images.

    It is `draw(key, step, data) -> Drawn`, with a `Semi` as data. `sizes` and `plans` (steps per
    epoch, images per step) are given for `labelled` and `unlabelled` rows. λ_u rises linearly over
    the first `ramp` steps (0: it is constant).
    """
    weak = make_augment(info)
    strong = strong_augment if config.method == "fixmatch" else _as_they_are

    def rows(name: str, key: jax.Array, step: jax.Array, data: Semi) -> jax.Array:
        per_epoch, _ = plans[name]
        mine = batch_rows(
            stream(key, name),
            step,
            size=sizes[name],
            steps_per_epoch=per_epoch,
            batch_size=config.batch_size,
        )
        return getattr(data, name)[shard_batch(mine)]

    def draw(key: jax.Array, step: jax.Array, data: Semi) -> Drawn:
        mine, others = (rows(name, key, step, data) for name in ("labelled", "unlabelled"))
        images, unseen = as_float(data.split.images[mine]), as_float(data.split.images[others])
        keys = jax.random.split(jax.random.fold_in(stream(key, "augment"), step), 4)
        second = strong(keys[3], weak(keys[2], unseen))
        share = jnp.minimum(1.0, step / ramp) if ramp else jnp.float32(1.0)
        labels = data.split.labels[mine]
        return Drawn(weak(keys[0], images), labels, weak(keys[1], unseen), second, share)

    return draw


def _as_they_are(key: jax.Array, images: Array) -> Array:
    """Return images unchanged, in place of FixMatch's strong augmentation, which MixMatch lacks."""
    return images


def mixmatch(config: SemiConfig, model: Model) -> Loss:
    """Build MixMatch's loss function, which guesses labels of unlabelled images and mixes images.

    It is the cross-entropy of the labelled images plus λ_u times the squared error of the
    unlabelled ones. As in the authors' release, the guesses come from the model in train mode. The
    mixed images are dealt out over three forward passes, so that each pass has labelled and
    unlabelled images in its batch statistics. Only the first pass updates the running statistics,
    if `statistics` is `trained`.
    """

    def loss(params: Params, batch_stats: Params, batch: Drawn, key: jax.Array, data: Semi):
        def run(images: Array) -> Outputs:
            return model.apply(Variables(params, batch_stats), images, train=True)

        count = len(batch.labels)
        seen = [run(images) for images in (batch.first, batch.second)]
        guesses = [jax.nn.softmax(output.logits) for output in seen]
        guessed = jax.lax.stop_gradient(sharpen((guesses[0] + guesses[1]) / 2, config.temperature))
        classes = guessed.shape[-1]
        images = jnp.concatenate([batch.images, batch.first, batch.second])
        targets = jnp.concatenate([jax.nn.one_hot(batch.labels, classes), guessed, guessed])
        key_mix, key_shuffle = jax.random.split(key)
        images, targets = mix(
            key_mix, images, targets, jax.random.permutation(key_shuffle, len(images)), config.alpha
        )
        dealt = deal(images, 3)
        outputs = [run(part) for part in dealt]
        logits = gather_dealt(jnp.stack([output.logits for output in outputs]))
        labelled, unlabelled = mixmatch_terms(
            logits[:count], targets[:count], logits[count:], targets[count:]
        )
        found = {
            "clean_loss": labelled,
            "unlabelled_loss": unlabelled,
            "confidence": guessed.max(-1).mean(),
        }
        stats = outputs[0].batch_stats if config.statistics == "trained" else _plain(run, batch)
        return labelled + config.weight * batch.share * unlabelled, (stats, found)

    return loss


def _plain(run: Callable[[Array], Any], batch: Drawn) -> Params:
    """Return BatchNorm's running statistics after a forward pass over weakly augmented images.

    They are half of the labelled and half of the unlabelled images of the batch.
    """
    half = -(-len(batch.labels) // 2)
    return run(jnp.concatenate([batch.images[:half], batch.first[:half]])).batch_stats


def sharpen(probabilities: jax.Array, temperature: float) -> jax.Array:
    """Return class probabilities [B, K] sharpened by a temperature T: p^(1/T), normalised.

    With T → 0 the most probable class has all the probability.
    """
    logs = jnp.log(jnp.maximum(probabilities, 1e-12)) / temperature
    return jax.nn.softmax(logs)


def mix(
    key: jax.Array, images: jax.Array, targets: jax.Array, others: jax.Array, alpha: float
) -> tuple[jax.Array, jax.Array]:
    """Mix every image and class distribution of a batch with those of another image (mixup).

    `targets` are [B, K] probabilities and `others` [B] the rows to mix with. A row's own weight is
    λ' = max(λ, 1 − λ) with λ ~ Beta(α, α), drawn for each row.
    """
    share = jax.random.beta(key, alpha, alpha, (len(images),))
    share = jnp.maximum(share, 1 - share)

    def blend(x: jax.Array, share: jax.Array) -> jax.Array:
        return share * x + (1 - share) * x[others]

    return blend(images, share[:, None, None, None]), blend(targets, share[:, None])


def deal(rows: jax.Array, hands: int) -> jax.Array:
    """Split a batch [B, …] into groups [hands, B / hands, …] by dealing its rows in turn.

    Row i is in group i mod `hands`, so all groups have nearly the same number of labelled images.
    """
    return jnp.moveaxis(rows.reshape(len(rows) // hands, hands, *rows.shape[1:]), 1, 0)


def gather_dealt(hands: jax.Array) -> jax.Array:
    """Return a batch [B, …] joined again from the groups made by `deal`, in original order."""
    return jnp.moveaxis(hands, 0, 1).reshape(-1, *hands.shape[2:])


def mixmatch_terms(
    logits: jax.Array, targets: jax.Array, unlabelled: jax.Array, guessed: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return MixMatch's cross-entropy of labelled images and squared error of unlabelled ones.

    The first is the mean cross-entropy of `logits` [B, K] with soft `targets`. The second is the
    squared error between the softmax of `unlabelled` [U, K] and `guessed`, the mean over rows and
    classes.
    """
    labelled = -(targets * jax.nn.log_softmax(logits)).sum(-1).mean()
    return labelled, ((jax.nn.softmax(unlabelled) - guessed) ** 2).mean()


def fixmatch(config: SemiConfig, model: Model) -> Loss:
    """Build FixMatch's loss function, which trains unlabelled images under their pseudo-labels.

    It is the cross-entropy of the labelled images plus λ_u times that of the strongly augmented
    unlabelled images. The latter have the labels predicted for their weakly augmented copies.
    """

    def loss(params: Params, batch_stats: Params, batch: Drawn, key: jax.Array, data: Semi):
        def run(images: Array) -> Outputs:
            return model.apply(Variables(params, batch_stats), images, train=True)

        count = len(batch.labels)
        outputs = run(jnp.concatenate([batch.images, batch.first, batch.second]))
        labelled = cross_entropy(outputs.logits[:count], batch.labels).mean()
        weak, strong = outputs.logits[count : 2 * count], outputs.logits[2 * count :]
        unlabelled, kept = fixmatch_term(weak, strong, config.threshold)
        found = {"clean_loss": labelled, "unlabelled_loss": unlabelled, "pseudo_labelled": kept}
        stats = outputs.batch_stats if config.statistics == "trained" else _plain(run, batch)
        return labelled + config.weight * batch.share * unlabelled, (stats, found)

    return loss


def fixmatch_term(
    weak: jax.Array, strong: jax.Array, threshold: float
) -> tuple[jax.Array, jax.Array]:
    """Return FixMatch's loss of unlabelled images, and the share that has a confident pseudo-label.

    The loss is the cross-entropy of `strong` [B, K] logits with the classes predicted by `weak`
    [B, K]. It is 0 for rows whose class is less probable than `threshold`. The mean is over all
    rows.
    """
    probabilities = jax.lax.stop_gradient(jax.nn.softmax(weak))
    counts = (probabilities.max(-1) >= threshold).astype(jnp.float32)
    return (counts * cross_entropy(strong, probabilities.argmax(-1))).mean(), counts.mean()


LOSSES: dict[str, Callable[[SemiConfig, Model], Loss]] = {
    "mixmatch": mixmatch,
    "fixmatch": fixmatch,
}
"""Builders of the loss of a `Drawn` by method: `LOSSES[method](config, model) -> loss`."""
