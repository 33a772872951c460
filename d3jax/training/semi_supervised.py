"""Semi-supervised training from labelled and unlabelled images: MixMatch and FixMatch.

MixMatch: Berthelot et al., NeurIPS 2019 (arXiv 1905.02249). FixMatch: Sohn et al., NeurIPS 2020 (arXiv 2001.07685). Both are losses of a batch
of labelled images and as many unlabelled ones; the loop is the same. Nothing is averaged over steps (no EMA of the weights).
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
"""Which method has a setting, of those that not both have."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SemiConfig:
    """MixMatch or FixMatch; what is left out is the method's own (`PRESETS`)."""

    method: Literal["mixmatch", "fixmatch"] = option("mixmatch", "the loss")
    epochs: int = option(20, "passes over the larger of the two sets (ours)", low=1)
    steps: int = option(0, "length in steps instead of epochs (0: use epochs)", low=0)
    batch_size: int = option(
        64, "labelled images a step, and as many unlabelled (MixMatch's)", low=1
    )
    temperature: float = option(0.5, "T of MixMatch's sharpening", above=0)
    alpha: float = option(
        0.75, "α of the Beta distribution by which MixMatch mixes images", above=0
    )
    threshold: float = option(
        0.95,
        "of FixMatch (its authors'): pseudo-labels that are at least so probable count",
        low=0,
        high=1,
    )
    statistics: Literal["trained", "plain"] = option(
        "trained",
        "whose BatchNorm's running statistics are: those of the images that are learned from (both methods' authors), which are mixed or "
        "distorted; plain: of labelled and unlabelled ones in equal numbers, as the model is to be used on",
    )
    weight: float = option(15.0, "λ_u, weight of the unlabelled images (FixMatch: 1)", low=0)
    ramp: float = option(
        1.0,
        "share of the training over which λ_u rises from 0 (FixMatch: 0)",
        low=0,
        high=1,
    )
    optimizer: OptimConfig = option(
        OptimConfig(name="adam", lr=2e-3, weight_decay=0.0, schedule="cosine"),
        "optimiser and schedule (FixMatch: SGD 0.03 with Nesterov momentum)",
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
"""MixMatch with the settings DBD fine-tunes with (Huang et al., arXiv 2202.03423; its training has 194,560 steps, so that λ_u rises far
more slowly there), but that the rate falls to 0: theirs is constant, which MixMatch's authors make up for by averaging the weights.
FixMatch with its authors' but for the length, the batch, seven times as many unlabelled images, and a cosine that ends at 0."""


class Semi(NamedTuple):
    """All images, and which rows of them are `labelled` [n] and `unlabelled` [m]; the labels of the latter are never read."""

    split: Split
    labelled: jax.Array
    unlabelled: jax.Array


class Drawn(NamedTuple):
    """A batch: labelled images with labels, and the same unlabelled images twice, each with its own augmentation.

    `share` float32 [] in [0, 1] is how much of λ_u counts at this step.
    """

    images: Array
    labels: Array
    first: Array
    second: Array
    share: jax.Array


def semi_supervised_loop(
    key: jax.Array, model: Model, variables: Variables, split: Split, labelled: Any, unlabelled: Any, config: SemiConfig, info: DataInfo
) -> TrainLoop:  # fmt: skip
    """The loop of `config` from `variables` on the rows `labelled` [n] and `unlabelled` [m] of `split`.

    Raises `ConfigError` where either set is smaller than a batch.
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
    """Build `draw(key, step, data) -> Drawn` from `Semi`.

    `sizes` and `plans` (steps an epoch, images a step) are those of the `labelled` and `unlabelled` rows; λ_u rises over `ramp`
    steps, 0: it does not.
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
    """Return the images: MixMatch's second augmentation is a weak one too."""
    return images


def mixmatch(config: SemiConfig, model: Model) -> Loss:
    """MixMatch's loss of a batch: guessed labels, mixed images, cross-entropy and squared error.

    As in the authors' release the guesses come from the net in train mode; the mixed images are dealt out over three forward passes,
    each with labelled and unlabelled ones among its batch statistics. Only the first of these moves the running ones, as long as
    `statistics` are those of the `trained` images.
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
    """Running statistics behind one more pass, over half of the labelled and half of the unlabelled images."""
    half = -(-len(batch.labels) // 2)
    return run(jnp.concatenate([batch.images[:half], batch.first[:half]])).batch_stats


def sharpen(probabilities: jax.Array, temperature: float) -> jax.Array:
    """p^(1/T), normalised: [B, K] with T → 0 the most probable class alone."""
    logs = jnp.log(jnp.maximum(probabilities, 1e-12)) / temperature
    return jax.nn.softmax(logs)


def mix(
    key: jax.Array, images: jax.Array, targets: jax.Array, others: jax.Array, alpha: float
) -> tuple[jax.Array, jax.Array]:
    """Every image and target [B, K] with those of the rows `others` [B]: λ' times itself, λ' = max(λ, 1 − λ), λ ~ Beta(α, α) for each row."""
    share = jax.random.beta(key, alpha, alpha, (len(images),))
    share = jnp.maximum(share, 1 - share)

    def blend(x: jax.Array, share: jax.Array) -> jax.Array:
        return share * x + (1 - share) * x[others]

    return blend(images, share[:, None, None, None]), blend(targets, share[:, None])


def deal(rows: jax.Array, hands: int) -> jax.Array:
    """[B, …] dealt out like cards, [hands, B / hands, …]: every hand has as many of each third as the others."""
    return jnp.moveaxis(rows.reshape(len(rows) // hands, hands, *rows.shape[1:]), 1, 0)


def gather_dealt(hands: jax.Array) -> jax.Array:
    """The inverse of `deal`."""
    return jnp.moveaxis(hands, 0, 1).reshape(-1, *hands.shape[2:])


def mixmatch_terms(
    logits: jax.Array, targets: jax.Array, unlabelled: jax.Array, guessed: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy of logits [B, K] with soft targets, and the squared error of probabilities [U, K] against guesses, both means (the
    squared error over classes too)."""
    labelled = -(targets * jax.nn.log_softmax(logits)).sum(-1).mean()
    return labelled, ((jax.nn.softmax(unlabelled) - guessed) ** 2).mean()


def fixmatch(config: SemiConfig, model: Model) -> Loss:
    """FixMatch's loss of a batch: cross-entropy, and that of the strongly augmented images with the labels of the weakly augmented."""

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
    """Mean over all rows of the cross-entropy of `strong` [B, K] with the classes of `weak`, 0 where those are less probable than the
    threshold; and the share of the rows that count."""
    probabilities = jax.lax.stop_gradient(jax.nn.softmax(weak))
    counts = (probabilities.max(-1) >= threshold).astype(jnp.float32)
    return (counts * cross_entropy(strong, probabilities.argmax(-1))).mean(), counts.mean()


LOSSES: dict[str, Callable[[SemiConfig, Model], Loss]] = {
    "mixmatch": mixmatch,
    "fixmatch": fixmatch,
}
"""`LOSSES[method](config, model) -> loss` of a `Drawn`."""
