"""AGPD, a detector of poisoned samples by the gradients of activations (Yuan et al., ICLR 2025).

Source: arXiv 2312.06230. g(x) is the gradient of the logit of x's label by the output of a
convolution, averaged over its places. In a clean class all g(x) have similar directions, and in the
target class there are two groups. For each class and layer, c is the mean of g over clean images,
and the seed s is the sample with the lowest cos(g, c). Their gap measures the spread of the class:

    gap = ‖(cos(g_i, c) − cos(g_i, g_s))_{i ≠ s}‖₂ / √n

The gaps tell which classes are suspected. In these, the group of poisoned samples grows from s.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Integer

from ...config.fields import check_fields, option
from ...core.checks import check_labelled
from ...core.errors import ConfigError, names
from ...core.images import as_float
from ...core.random import stream
from ...core.types import Array, DataInfo, Model, SampleDetector, Scored, Split, Variables
from ...data.batched import batched_map
from ...metrics.attack_success import predict
from ...runtime.compilation import fast
from ...training.loop import Hooks
from ..activations import check_map, convolutions_of
from .gradient_groups import grow, rates_of, spread_of, suspected


@dataclasses.dataclass(frozen=True, kw_only=True)
class AGPDConfig:
    """Settings of AGPD, which flags samples whose gradients differ from those of clean images.

    The defaults are BackdoorBench's. Its τ is not published, and 0.05 is d3jax's choice.
    """

    clean: int = option(100, "number of clean images, divided evenly among the classes", low=1)
    tau: float = option(
        0.05, "τ, scaled rate up to which samples join the poisoned ones in a round", low=0, high=1
    )
    gap: float = option(
        0.3, "gap above which a class is suspected if no gap is an outlier", low=0, high=2
    )
    layers: tuple[str, ...] = option(
        (),
        "names of the activations, first to last (empty: the outputs of the convolutions of all "
        "blocks, without stem and shortcuts)",
    )
    batch_size: int = option(250, "images in a batch of gradients", low=1)

    __post_init__ = check_fields

    def build(self, info: DataInfo) -> SampleDetector:
        """Build the AGPD detector for the data set that `info` describes."""
        return make_agpd(self, info)


def layers_of(config: AGPDConfig, model: Model, info: DataInfo) -> tuple[str, ...]:
    """Return the names of the activations whose gradients are compared, in the network's order.

    By default they are the outputs of convolutions. Raises `ConfigError` if one of
    `config.layers` is no activation of more than one place, or if the model has none.
    """
    for name in config.layers:
        check_map(name, model, info, "layers")
    return config.layers or convolutions_of(model, info)


@functools.partial(fast, static=2)
def _gradients(
    model: Model,
    layers: tuple[str, ...],
    variables: Variables,
    images: Array,
    labels: Array,
) -> dict[str, jax.Array]:
    """Return g [B, C] of uint8 images at each layer, by one backward pass for all layers."""
    assert model.activations is not None  # `layers_of` has checked it
    shapes = model.activations()
    zeros = {name: jnp.zeros((len(images), *shapes[name].shape)) for name in layers}

    def total(moved: Mapping[str, jax.Array]) -> jax.Array:
        edit = {name: functools.partial(_added, one) for name, one in moved.items()}
        logits = model.apply(variables, as_float(images), train=False, edit=edit).logits
        return jnp.take_along_axis(logits, labels[:, None], 1).sum().astype(jnp.float32)

    slopes = jax.grad(total)(zeros)
    return {name: one.mean(tuple(range(1, one.ndim - 1))) for name, one in slopes.items()}


def _added(moved: jax.Array, x: jax.Array) -> jax.Array:
    return x + moved.astype(x.dtype)


class Gradients:
    """The gradients g of images of one class at a time, computed in batches of one shape."""

    def __init__(
        self, model: Model, variables: Variables, layers: tuple[str, ...], batch_size: int
    ):
        self.layers = layers
        self.compute = functools.partial(_gradients, model, layers, variables)
        self.batch_size = batch_size

    def __call__(self, split: Split, rows: Integer[np.ndarray, " n"]) -> dict[str, np.ndarray]:
        """Return g [n, C] float64 of the images `rows` of a split, by layer."""
        filled = np.resize(rows, -(-len(rows) // self.batch_size) * self.batch_size)
        given = (np.asarray(part)[filled] for part in split)
        found = batched_map(self.compute, *given, batch_size=self.batch_size)
        return {name: one[: len(rows)].astype(np.float64) for name, one in found.items()}


def clean_means(
    key: jax.Array,
    model: Model,
    variables: Variables,
    reserved: Split,
    gradients: Gradients,
    most: int,
) -> dict[int, dict[str, np.ndarray]]:
    """Return the mean gradients [C] of clean images, by class and layer.

    At most `most` correctly classified images of a class are drawn. A class without any is left
    out.
    """
    compute = functools.partial(predict, model, variables)
    predicted = batched_map(compute, np.asarray(reserved.images), batch_size=gradients.batch_size)
    labels, means = np.asarray(reserved.labels), {}
    for label in np.unique(labels):
        right = np.flatnonzero((labels == label) & (predicted == label))
        order = jax.random.permutation(jax.random.fold_in(key, label), len(right))
        chosen = right[np.asarray(order)][: max(1, most)]
        if len(chosen):
            found = gradients(reserved, chosen)
            means[int(label)] = {name: one.mean(0) for name, one in found.items()}
    return means


class Spreads(NamedTuple):
    """The spreads of K classes at L layers: `seeds` and `gaps` [L, K], and `rates` [L, N].

    A seed is the row of a sample within its class.
    """

    seeds: Integer[np.ndarray, "L K"]
    gaps: Float[np.ndarray, "L K"]
    rates: Float[np.ndarray, "L N"]


def spreads_of(
    samples: Split,
    clean: Mapping[int, Mapping[str, np.ndarray]],
    gradients: Gradients,
    num_classes: int,
) -> Spreads:
    """Return the `Spreads` of samples at all layers; only one class's gradients are kept at once.

    A class that is not in `clean` has gap 0.
    """
    labels, shape = np.asarray(samples.labels), (len(gradients.layers), num_classes)
    found = Spreads(np.zeros(shape, int), np.zeros(shape), np.ones((shape[0], len(labels))))
    for label in np.intersect1d(labels, list(clean)):
        rows = np.flatnonzero(labels == label)
        given = gradients(samples, rows)
        for i, name in enumerate(gradients.layers):
            one = spread_of(given[name], clean[label][name])
            found.seeds[i, label], found.gaps[i, label], found.rates[i, rows] = one
    return found


def make_agpd(config: AGPDConfig, info: DataInfo) -> SampleDetector:
    """Return AGPD, a `SampleDetector` of samples with unusual gradients of their label's logit.

    The published method gives flags but no scores. The score gap · (1 − rate) is d3jax's, at the
    layer that the gaps tell. In suspected classes the rate is relative to the grown group, and in
    other classes to the seed. Only samples of suspected classes are flagged.

    Deviations: the clean images are reserved ones, where BackdoorBench takes test images. A class
    without a correctly classified clean image is not judged. If a group grows in fewer than ten
    rounds, only its seed is flagged.
    """

    def score(
        key: jax.Array,
        model: Model,
        variables: Variables,
        samples: Split,
        reserved: Split,
        hooks: Hooks = Hooks(),
    ) -> Scored:
        check_labelled("samples", samples)
        check_labelled("reserved", reserved)
        layers, labels = layers_of(config, model, info), np.asarray(samples.labels)
        batch_size = min(config.batch_size, int(np.bincount(labels).max()))
        gradients = Gradients(model, variables, layers, batch_size)
        drawn, most = stream(key, "clean"), config.clean // info.num_classes
        clean = clean_means(drawn, model, variables, reserved, gradients, most)
        seeds, gaps, all_rates = spreads_of(samples, clean, gradients, info.num_classes)
        layer, suspects = suspected(gaps, config.gap)
        rates, flagged = all_rates[layer], np.zeros(len(labels), bool)
        for label in map(int, np.flatnonzero(suspects)):
            rows, centre = np.flatnonzero(labels == label), clean[label][layers[layer]]
            own = gradients(samples, rows)[layers[layer]]
            flagged[rows] = group = grow(own, centre, int(seeds[layer, label]), config.tau)
            rates[rows] = rates_of(own, own[group].mean(0), centre)
        hooks.say(f"{layers[layer]}: suspects {names(np.flatnonzero(suspects)) or 'no class'}")
        return Scored((gaps[layer][labels] * (1 - rates)).astype(np.float32), flagged)

    def check(model: Model, shapes: Variables, samples: int, reserved: int) -> None:
        layers_of(config, model, info)
        if reserved < info.num_classes:
            raise ConfigError(
                f"reserved: {reserved} clean images are fewer than the {info.num_classes} classes"
            )

    return SampleDetector(score, check)
