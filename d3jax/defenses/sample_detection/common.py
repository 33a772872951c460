"""Features, scores, flags and statistics by class, for the detectors of poisoned samples."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Float, Float64, Integer

from ...analysis.features import penultimate
from ...core.errors import ConfigError, did_you_mean, names
from ...core.types import Model, Scored, Split, Variables


def features_by_class(
    model: Model, variables: Variables, samples: Split
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield for each label the row numbers [n] and penultimate features [n, D] of samples."""
    features = penultimate(model, variables, samples.images).astype(np.float64)
    for rows in by_label(np.asarray(samples.labels)):
        yield rows, features[rows]


def by_label(labels: Integer[np.ndarray, " n"]) -> list[Integer[np.ndarray, " m"]]:
    """Return the row numbers of each label, in order of the labels that there are."""
    return [np.flatnonzero(labels == label) for label in np.unique(labels)]


def deviation_index(values: Float[np.ndarray, " K"]) -> Float64[np.ndarray, " K"]:
    """Return |value − median| / (1.4826 · MAD) of each value; all 0 if the MAD is 0."""
    apart = np.abs(values - np.median(values))
    spread = 1.4826 * np.median(apart)
    return apart / spread if spread > 0 else np.zeros(len(values))


def score_by_class(
    model: Model,
    variables: Variables,
    samples: Split,
    judge: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
) -> Scored:
    """Return scores and flags of training samples (`Scored`), judged class by class by features.

    `judge(features [n, D]) -> (scores [n], flagged [n] bool)` computes them from the penultimate
    features of one class.
    """
    size = len(samples.labels)
    scores, flagged = np.zeros(size), np.zeros(size, bool)
    for rows, features in features_by_class(model, variables, samples):
        scores[rows], flagged[rows] = judge(features)
    return Scored(scores.astype(np.float32), flagged)


def map_of(model: Model, name: str, setting: str) -> str:
    """Return the name of an activation with more than one place; raise `ConfigError` if none is.

    An empty `name` stands for the one after the last BatchNorm layer, or for the last block of a
    model without BatchNorm. `setting` is the name of the setting in the message.
    """
    known = model.activations() if model.activations else {}
    maps = [key for key, one in known.items() if one.size > one.shape[-1]]
    blocks = sorted((key for key in maps if re.fullmatch(r"block\d+", key)), key=_number)
    defaults = [*blocks, *(norm.output for norm in model.channels if norm.output in maps)]
    found = name or (defaults[-1] if defaults else "")
    if found not in maps:
        hint = did_you_mean(found, maps) if found else ""
        raise ConfigError(
            f"{setting}: {found or 'this model'!r} has no map of more than one place{hint}; the "
            f"activations with one are {names(maps) or 'not known'}"
        )
    return found


def _number(name: str) -> int:
    return int(name.removeprefix("block"))
