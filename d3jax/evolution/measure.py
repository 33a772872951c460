"""What is measured of an evolving model: rates on test images drifted as far as at an update."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.images import as_float
from ..core.random import stream
from ..core.types import Attack, DataInfo, Model, Split, Variables
from ..data.drift import compose, keys_of, label_shift
from ..metrics.attack_success import Counts, make_asr, make_measure
from ..runtime.compilation import fast
from .updates import EvolutionConfig


@functools.lru_cache(maxsize=64)
def _built(make: Callable[..., Any], *given: Any) -> Any:
    """Return what `make` builds, once for all runs that drift alike."""
    model, attack, classes, channels, drift, trigger_first, batch = given
    return make(model, attack, classes, batch, compose(drift, channels), trigger_first)


def _options(
    model: Model, attack: Attack, info: DataInfo, config: EvolutionConfig, batch: int
) -> tuple[Any, ...]:
    drift = tuple(config.drift)
    return model, attack, info.num_classes, info.shape[2], drift, config.trigger_first, batch


def drifted_measure(*given: Any) -> Callable[..., tuple[Counts, float]]:
    """Return `measure(variables, trigger, test, strengths) -> (Counts, score)` under a drift.

    Takes a model, an attack, `DataInfo`, an `EvolutionConfig` and images a call.
    """
    return _built(make_measure, *_options(*given))


def drifted_asr(*given: Any) -> Callable[..., float]:
    """Return `asr(variables, trigger, test, strengths)`; takes what `drifted_measure` takes."""
    return _built(make_asr, *_options(*given))


def strengths(config: EvolutionConfig, update: int) -> jax.Array:
    """Return the drift's strengths at an update, [kinds of drift] float32."""
    return jnp.asarray([update * value for value in config.drift.values()], jnp.float32)


def shifted(test: Split, config: EvolutionConfig, update: int, num_classes: int) -> Split:
    """Return test images resampled to the shifted labels of an update's fresh images."""
    if not config.label_shift:
        return test
    key = jax.random.fold_in(stream(jax.random.key(0), "test"), update)
    rows = label_shift(key, jnp.asarray(test.labels), config.label_shift * update, num_classes)
    return Split(*(part[rows] for part in test))


def drifted_accuracy(
    model: Model,
    variables: Variables,
    images: Split,
    config: EvolutionConfig,
    update: int,
    batch_size: int,
) -> float:
    """Return ACC on images as they are at an update."""
    drift, amounts = (tuple(config.drift), images.images.shape[3]), strengths(config, update)
    predicted = []
    for start in range(0, len(images.labels), batch_size):
        rows = np.arange(start, min(start + batch_size, len(images.labels)))
        keys = keys_of(jax.random.key(0), rows)
        predicted.append(_classes(model, *drift, variables, keys, images.images[rows], amounts))
    labels = np.asarray(images.labels)
    return float((np.concatenate(jax.device_get(predicted)) == labels).mean())


@functools.partial(fast, static=3)
def _classes(
    model: Model,
    drift: tuple[str, ...],
    channels: int,
    variables: Variables,
    keys: jax.Array,
    images: jax.Array,
    amounts: jax.Array,
) -> jax.Array:
    moved = compose(drift, channels)(keys, as_float(images), amounts)
    return model.apply(variables, moved, train=False).logits.argmax(-1)


@jax.jit
def distance(a: Any, b: Any) -> jax.Array:
    """Return the norm of the difference of two trees, over all leaves."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return jnp.sqrt(sum(((x - y) ** 2).sum() for x, y in pairs))
