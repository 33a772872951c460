"""The choice of the normalisation that a model was trained with, by its accuracy."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..core.errors import ConfigError, DataError
from ..core.images import as_float
from ..core.types import Array, Model, Split, Variables
from ..data.arrays import measure
from ..data.batched import batched_map
from ..data.usual import USUAL

OTHERS = {
    "none": ((0.0,), (1.0,)),
    "0.5 for mean and standard deviation": ((0.5,), (0.5,)),
    "CIFAR-10 of many programs": (
        (0.4914, 0.4822, 0.4465),
        (0.2023, 0.1994, 0.2010),
    ),
    "ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""Normalisations besides those of `USUAL`: mean and standard deviation per channel, by name."""
MOST = 1000
"""The largest number of images on which normalisations are compared."""
CHANCES = 2.0
"""The least accuracy, in multiples of that of guessing, with which an examination goes on."""


class Normalisation(NamedTuple):
    """The mean and standard deviation of each channel, in [0, 1] units, and how they were found."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    text: str


def given_normalisation(
    mean: tuple[float, ...], std: tuple[float, ...], channels: int
) -> Normalisation:
    """Return the normalisation that the user gave; raise `ConfigError` if it does not fit."""
    for name, values in (("--mean", mean), ("--std", std)):
        if len(values) != channels:
            raise ConfigError(
                f"{name}: has {len(values)} values, want {channels}, one for each channel"
            )
    if min(std) <= 0:
        raise ConfigError(f"--std: {min(std)} is not above 0")
    return Normalisation(mean, std, f"{_numbers(mean, std)}, as given")


def candidates(
    channels: int, images: Array | None
) -> dict[str, tuple[tuple[float, ...], tuple[float, ...]]]:
    """Return the usual normalisations for a number of channels, and that of the images if given."""
    usual = {name: (each["mean"], each["std"]) for name, each in USUAL.items()}
    found = {
        name: pair
        for name, pair in (usual | OTHERS).items()
        if name != "svhn" and len(pair[0]) in (1, channels)
    }
    if images is not None:
        found["that of the given images"] = measure(images)
    return {
        name: (mean * (channels // len(mean)), std * (channels // len(std)))
        for name, (mean, std) in found.items()
    }


def choose_normalisation(
    plain: Model, variables: Variables, labelled: Split | None, channels: int
) -> Normalisation:
    """Return the normalisation with which a model is most accurate on labelled images.

    `plain` is the model without a normalisation. Without images, it is the usual one of CIFAR-10
    for three channels, and that of MNIST for one. Raises `DataError` if no normalisation gives an
    accuracy well above that of guessing.
    """
    if labelled is None:
        name = "cifar10" if channels == 3 else "mnist"
        mean, std = candidates(channels, None)[name]
        text = (
            f"{_numbers(mean, std)}, that of {name}. This is a guess, as no labelled image is given"
        )
        return Normalisation(mean, std, text)
    rows = np.random.default_rng(0).permutation(len(labelled.labels))[:MOST]
    images, labels = np.asarray(labelled.images)[rows], np.asarray(labelled.labels)[rows]
    tried = candidates(channels, np.asarray(labelled.images))
    rates = {
        name: float((_labels(plain, variables, images, *pair) == labels).mean())
        for name, pair in tried.items()
    }
    best = max(rates, key=lambda name: rates[name])
    chance = CHANCES * np.bincount(labels).max() / len(labels)
    if rates[best] < min(chance, 0.9):
        raise DataError(
            f"the model gives the label of only {rates[best]:.0%} of the images with the best of "
            f"{len(tried)} normalisations; are the labels in the order of the model's classes? If "
            "so, give the normalisation by --mean and --std"
        )
    text = (
        f"{_numbers(*tried[best])} ({best}). With it the model gives the label of "
        f"{rates[best]:.1%} of {len(labels)} labelled images, the most of {len(tried)} usual ones"
    )
    return Normalisation(*tried[best], text)


def _labels(
    plain: Model,
    variables: Variables,
    images: Array,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> np.ndarray:
    """Return the classes [B] that a model predicts for images with this normalisation."""
    compute = functools.partial(_predicted, plain, variables, jnp.asarray(mean), jnp.asarray(std))
    return batched_map(compute, images, batch_size=250)


@functools.partial(jax.jit, static_argnums=0)
def _predicted(
    plain: Model, variables: Variables, mean: Array, std: Array, images: Array
) -> jax.Array:
    normalised = (as_float(images) - mean) / std
    return plain.apply(variables, normalised, train=False).logits.argmax(-1)


def _numbers(mean: tuple[float, ...], std: tuple[float, ...]) -> str:
    parts = (" ".join(f"{value:.4g}" for value in values) for values in (mean, std))
    return "mean {}, standard deviation {}".format(*parts)
