"""The prediction, by a linear model, of how fast an evolution run forgets a backdoor."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..analysis.features import penultimate
from ..analysis.forgetting import moment, retained, spectrum
from ..core.images import as_float, as_levels
from ..core.types import Split
from ..data.batched import batched_map
from ..data.drift import compose
from ..metrics.attack_success import triggered_images
from ..results.survival import Predicted
from .fresh_sets import steps_of, update_rates
from .measure import Measure, strengths

PREDICTED_FROM = 1000
"""Number of images of each update for its moment, and of test images for the direction."""

WIDEST = 1024
"""Largest number of features whose second moments are decomposed: 4096 would take hours."""

Moments = dict[str, list[np.ndarray]]
"""The second moments of every update, by the name of the curvature."""


def _no_memo(key: Hashable, make: Callable[[], Any]) -> Any:
    return make()


def predict_forgetting(
    measure: Measure,
    victim: Any,
    target: int,
    fresh: Split,
    learned: np.ndarray,
    scores: Sequence[float],
    *,
    memo: Callable[[Hashable, Callable[[], Any]], Any] = _no_memo,
) -> Predicted | None:
    """Predict by a linear model how fast an evolution run forgets a backdoor, as a `Predicted`.

    Returns None above `WIDEST` features. The prediction is made under two curvatures, of squared
    loss and of softmax. `learned` [T, n] are the rows of `fresh` that each update learns. `scores`
    [T + 1] are the measured scores of the trigger, from before the first update on. `memo(key,
    make)` may cache what several runs of a victim have in common.
    """
    config, attack, model = measure.config, measure.attack, measure.model

    def find_direction() -> np.ndarray:
        images, labels = measure.test
        rows = np.flatnonzero(np.asarray(attack.relabel(labels) != labels))[:PREDICTED_FROM]
        stamped = triggered_images(attack, victim.trigger, images[rows])
        both = (penultimate(model, victim.variables, x) for x in (images[rows], stamped))
        clean, triggered = both
        return (triggered - clean).mean(0, dtype=np.float64)

    direction = memo(("direction", attack), find_direction)
    if len(direction) > WIDEST:
        return None
    alike = (config.drift, config.updates, config.validation, config.label_shift)
    moments: Moments = memo(
        ("moments", attack, repr(alike)), lambda: _moments(measure, victim, target, fresh, learned)
    )
    rates = update_rates(config, steps_of(config, len(fresh.labels)))
    decays = (rates, config.momentum, config.weight_decay)
    left = {name: retained(direction, seconds, *decays) for name, seconds in moments.items()}
    values, shares = spectrum(direction, moments["squared"][0])
    return Predicted(values, shares, np.array(scores), left)


def _moments(
    measure: Measure, victim: Any, target: int, fresh: Split, learned: np.ndarray
) -> Moments:
    """Return second moments of the features of each update's drifted images, for two curvatures."""
    config, model = measure.config, measure.model
    drift, found = (
        compose(tuple(config.drift), measure.info.shape[2]),
        {"squared": [], "softmax": []},
    )
    for update, rows in enumerate(learned, 1):
        images = as_float(jnp.asarray(fresh.images[rows[:PREDICTED_FROM]]))
        keys = jax.random.split(jax.random.key(update), len(images))
        drifted = as_levels(drift(keys, images, strengths(config, update))).astype(jnp.uint8)
        features = penultimate(model, victim.variables, drifted)
        odds = _odds(model, victim.variables, drifted, target)
        found["squared"].append(moment(features))
        found["softmax"].append(moment(features, odds * (1 - odds)))
    return found


def _odds(model: Any, variables: Any, images: jax.Array, target: int) -> np.ndarray:
    """Return the probability [N] that a model gives to the target class for each of N images."""

    def odds(levels: jax.Array) -> jax.Array:
        logits = model.apply(variables, as_float(levels), train=False).logits
        return jax.nn.softmax(logits)[:, target]

    return batched_map(odds, images, batch_size=500)
