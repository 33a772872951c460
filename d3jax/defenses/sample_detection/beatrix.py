"""Beatrix, a detector of poisoned samples by Gram matrices (Ma et al., NDSS 2023).

Source: arXiv 2209.11715. The Gram matrices of an activation and of its powers describe how channels
go together. Those of poisoned samples lie outside the range that clean images of the predicted
class have.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Float32, Integer

from ...config.fields import check_fields, option
from ...core.errors import ConfigError
from ...core.images import as_float
from ...core.random import stream
from ...core.types import Array, DataInfo, Model, SampleDetector, Scored, Split, Variables
from ...data.batched import batched_map
from ...runtime.compilation import fast
from ...training.loop import Hooks
from ..activations import check_map, maps_of
from .common import by_label, deviation_index

INFECTED = float(np.exp(2))
"""The index e² above which a class is infected, by the paper."""
FOLDS = 5
"""Parts of the clean images for the threshold, by the released program."""
COMPARED = 500
"""The most samples of a group in the test of a class, by the released program."""
EMPTY = 1e-6
"""The least size of a bound by which a deviation is divided."""


@dataclasses.dataclass(frozen=True)
class BeatrixConfig:
    """Settings of Beatrix, which flags samples with unusual Gram matrices.

    The defaults are the paper's, with the powers of the authors' program.
    """

    layer: str = option("", "activation of more than one place (empty: the last one)")
    orders: tuple[int, ...] = option(
        (1, 2, 3, 4, 5, 6, 7, 8), "powers p of the activation", low=1, filled=True
    )
    powers: Literal["activation", "none"] = option(
        "activation",
        "what is raised to the power p before the Gram matrix, of which the p-th root is taken: "
        "the activation (as the authors' program), or nothing (as BackdoorBench)",
    )
    spread: float = option(10.0, "MADs between the median and a bound", above=0)
    percentile: float = option(
        95.0, "percentile of clean deviations above which a sample is flagged", above=0, high=100
    )
    classes: Literal["all", "infected"] = option(
        "all",
        "classes whose samples are flagged: all, or those that the paper's test finds infected",
    )
    index: float = option(INFECTED, "index of a class above which it is infected", above=0)

    __post_init__ = check_fields

    def build(self, info: DataInfo) -> SampleDetector:
        """Build Beatrix, a detector of poisoned samples, for the data set that `info` describes."""
        return make_beatrix(self, info)


def grams(
    activation: Float[jax.Array, "B *places c"], order: int, powers: str = "activation"
) -> Float32[jax.Array, "B T"]:
    """Return the Gram features [B, T] of an activation [B, …, c]: sign(G) · |G|^(1/p), p = `order`.

    G [c, c] is the product of the activation, raised to the power p, with itself over places. The T
    features are the entries above the diagonal. With `powers` "none" nothing is raised.
    """
    flat = activation.astype(jnp.float32).reshape(len(activation), -1, activation.shape[-1])
    raised = flat**order if powers == "activation" else flat
    products = jnp.einsum("bsi,bsj->bij", raised, raised)
    entries = products[:, *np.triu_indices(products.shape[-1], 1)]
    return jnp.sign(entries) * jnp.abs(entries) ** (1 / order)


class Bounds(NamedTuple):
    """The range of Gram features of clean images: `low` and `high`, [P, T] or [K, P, T]."""

    low: np.ndarray
    high: np.ndarray


def bounds(features: Float[np.ndarray, "n P T"], spread: float) -> Bounds:
    """Return the `Bounds` median ± `spread` · MAD of Gram features of clean images."""
    middle = np.median(features, axis=0)
    apart = spread * np.median(np.abs(features - middle), axis=0)
    return Bounds(middle - apart, middle + apart)


def deviation(
    features: Float[Array, "B T"], low: Float[Array, "#B T"], high: Float[Array, "#B T"]
) -> Float32[jax.Array, " B"]:
    """Return the sum [B] over entries of how far Gram features lie outside their bounds.

    An excess counts as a share of the size of the bound.
    """

    def share(excess: Array, bound: Array) -> jax.Array:
        return jax.nn.relu(excess) / jnp.maximum(jnp.abs(bound), EMPTY)

    return (share(low - features, low) + share(features - high, high)).sum(-1)


def kernel_distance(first: Float[np.ndarray, "n D"], second: Float[np.ndarray, "m D"]) -> float:
    """Return the squared maximum mean discrepancy of two groups of features, at least 0.

    The kernel is the sum of two Gaussians exp(−d² / b). The bandwidths b are the median of the
    squared distances of different samples, and twice that.
    """
    from sklearn.metrics.pairwise import euclidean_distances

    square = euclidean_distances(np.concatenate([first, second]), squared=True)
    off = square[~np.eye(len(square), dtype=bool)]
    width = max(float(np.median(off)), 1e-12)
    kernel = np.exp(-square / width) + np.exp(-square / (2 * width))
    n = len(first)
    within = kernel[:n, :n].mean() + kernel[n:, n:].mean()
    return float(max(0.0, within - 2 * kernel[:n, n:].mean()))


class Gram:
    """The Gram features of one activation of a model, by predicted class."""

    def __init__(
        self, config: BeatrixConfig, info: DataInfo, model: Model, variables: Variables
    ) -> None:
        self.config, self.layer = config, config.layer or maps_of(model, info)[-1]
        self.given = (model, self.layer, tuple(config.orders), config.powers)
        self.variables = variables
        assert model.activations is not None  # maps_of has asked for it
        shape = model.activations()[self.layer].shape
        self.entries = shape[-1] * (shape[-1] - 1) // 2
        self.scale = len(config.orders) * shape[-1] ** 2 / 2
        # Gram features of a batch take at most 64 MB for each order.
        self.batch_size = int(np.clip(2**24 // max(self.entries, 1), 1, 250))

    def predictions(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the predicted classes [N] and the mean activations over places [N, c]."""
        compute = functools.partial(_predictions, *self.given[:2], self.variables)
        return batched_map(compute, images, batch_size=self.batch_size)

    def features(self, images: np.ndarray) -> np.ndarray:
        """Return the Gram features [N, P, T] of images."""
        compute = functools.partial(_features, *self.given, self.variables)
        return batched_map(compute, images, batch_size=self.batch_size)

    def deviations(self, images: np.ndarray, classes: np.ndarray, found: Bounds) -> np.ndarray:
        """Return the deviation [N] of images from the bounds [K, P, T] of their classes.

        It is the mean over orders and entries of the Gram matrix, where entries on and below the
        diagonal count as 0 and the mean is over half of all.
        """
        low, high = (jnp.asarray(part) for part in found)
        compute = functools.partial(_deviations, *self.given, self.variables, low, high)
        total = batched_map(compute, images, classes, batch_size=self.batch_size)
        return total / self.scale


@functools.partial(fast, static=2)
def _predictions(
    model: Model, layer: str, variables: Variables, images: jax.Array
) -> tuple[jax.Array, jax.Array]:
    outputs = model.apply(variables, as_float(images), train=False)
    activation = outputs.features[layer].astype(jnp.float32)
    return outputs.logits.argmax(-1), activation.mean(range(1, activation.ndim - 1))


@functools.partial(fast, static=4)
def _features(
    model: Model,
    layer: str,
    orders: tuple[int, ...],
    powers: str,
    variables: Variables,
    images: jax.Array,
) -> jax.Array:
    activation = model.apply(variables, as_float(images), train=False).features[layer]
    return jnp.stack([grams(activation, order, powers) for order in orders], 1)


@functools.partial(fast, static=4)
def _deviations(
    model: Model,
    layer: str,
    orders: tuple[int, ...],
    powers: str,
    variables: Variables,
    low: jax.Array,
    high: jax.Array,
    images: jax.Array,
    classes: jax.Array,
) -> jax.Array:
    activation = model.apply(variables, as_float(images), train=False).features[layer]
    parts = [
        deviation(grams(activation, order, powers), low[classes, place], high[classes, place])
        for place, order in enumerate(orders)
    ]
    return jnp.stack(parts).sum(0)


def clean_ranges(
    gram: Gram,
    images: np.ndarray,
    classes: Integer[np.ndarray, " n"],
    num_classes: int,
    generator: np.random.Generator,
) -> tuple[Bounds, np.ndarray]:
    """Return the bounds [K, P, T] of clean images by class, and deviations for the threshold.

    A deviation is that of a fifth of a class from the bounds of the other four. A class with fewer
    than five images has bounds that nothing exceeds.
    """
    shape = (num_classes, len(gram.config.orders), gram.entries)
    found = Bounds(np.full(shape, -np.inf, np.float32), np.full(shape, np.inf, np.float32))
    deviations = []
    for rows in by_label(classes):
        if len(rows) < FOLDS:
            continue
        label, features = classes[rows[0]], gram.features(images[rows])
        for part, kept in zip(found, bounds(features, gram.config.spread), strict=True):
            part[label] = kept
        for fold in np.array_split(generator.permutation(len(rows)), FOLDS):
            part = bounds(np.delete(features, fold, 0), gram.config.spread)
            sums = sum(
                np.asarray(deviation(features[fold][:, place], low[None], high[None]))
                for place, (low, high) in enumerate(zip(*part, strict=True))
            )
            deviations.append(sums / gram.scale)
    return found, np.concatenate(deviations) if deviations else np.zeros(1)


def infected(
    features: Float[np.ndarray, "N D"],
    classes: Integer[np.ndarray, " N"],
    suspicious: Bool[np.ndarray, " N"],
    limit: float,
    generator: np.random.Generator,
) -> Integer[np.ndarray, " k"]:
    """Return the classes whose suspicious samples lie apart from their others.

    The distance of a class is the kernel distance of both groups, of at most 500 samples each. A
    class is infected if its distance is above the median by more than `limit` · 1.4826 · MAD.
    """
    labels, gaps = np.unique(classes), []
    for label in labels:
        groups = [np.flatnonzero((classes == label) & (suspicious == side)) for side in (0, 1)]
        drawn = [
            features[generator.permutation(rows)[:COMPARED]].astype(np.float64) for rows in groups
        ]
        gaps.append(kernel_distance(*drawn) if min(map(len, drawn)) > 1 else 0.0)
    index = deviation_index(np.array(gaps))
    return labels[(index > limit) & (gaps > np.median(gaps))]


def make_beatrix(config: BeatrixConfig, info: DataInfo) -> SampleDetector:
    """Return Beatrix, a `SampleDetector` that flags samples with unusual Gram matrices.

    The score of a sample is its deviation from the clean images of its predicted class. It is
    flagged if the score is above the `percentile` of clean deviations. With `classes: infected` its
    class must be infected too.

    Deviations: the paper does not state what the test of a class compares. Here it is the
    activation, averaged over places. By default the test decides nothing: clean samples
    beyond the bounds can be as far from their class as poisoned ones.
    """

    def score(
        key: jax.Array,
        model: Model,
        variables: Variables,
        samples: Split,
        reserved: Split,
        hooks: Hooks = Hooks(),
    ) -> Scored:
        generator = np.random.default_rng(np.asarray(jax.random.bits(stream(key, "folds"), (4,))))
        gram = Gram(config, info, model, variables)
        images = np.asarray(samples.images)
        classes, features = gram.predictions(images)
        known, _ = gram.predictions(np.asarray(reserved.images))
        found, clean = clean_ranges(
            gram, np.asarray(reserved.images), known, info.num_classes, generator
        )
        scores = gram.deviations(images, classes, found)
        suspicious = scores > np.percentile(clean, config.percentile)
        if config.classes == "infected":
            bad = infected(features, classes, suspicious, config.index, generator)
            suspicious &= np.isin(classes, bad)
        return Scored(scores.astype(np.float32), suspicious)

    def check(model: Model, shapes: Variables, samples: int, reserved: int) -> None:
        check_map(config.layer or maps_of(model, info)[-1], model, info, "layer")
        if reserved < FOLDS * info.num_classes:
            raise ConfigError(
                f"Beatrix: {reserved} reserved images, want at least {FOLDS} for each of the "
                f"{info.num_classes} classes"
            )

    return SampleDetector(score, check)
