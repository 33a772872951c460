"""Metrics of how clean and poisoned training images are learned during a training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..core.records import LogRecord
from ..core.types import Model, Split, TrainState, Variables
from .sample_scores import scores_of

WATCHED = 1000
"""The largest number of test, clean and poisoned images that are measured, for each kind."""

SHORT = {"cross_entropy": "ce", "entropy": "entropy", "right": "right"}
"""The scores measured on training images, with their names in a log record."""


def learning_watch(
    model: Model,
    rates: Callable[[Variables, Split], LogRecord],
    test: Split,
    data: Callable[[], tuple[Split, np.ndarray]],
) -> Callable[[TrainState], LogRecord]:
    """Build a train loop's `watch(state)`, which measures test, clean and poisoned images.

    `rates(variables, test)` returns the metrics of some test images. `data()` returns the training
    set and the mask [N] of its poisoned rows. Some clean and some poisoned training images are
    measured under their given labels. Their metrics are the mean cross-entropy, the mean entropy,
    and the share classified as the given label. For plots only.
    """
    some = _some(test, np.arange(len(test.labels)))
    parts: dict[str, Split] = {}

    def watch(state: TrainState) -> LogRecord:
        parts.update(parts or _by_flag(*data()))
        record = rates(state.variables, some)
        for name, split in parts.items():
            scores = scores_of(model, state.variables, split, tuple(SHORT))
            means = {SHORT[score]: float(values.mean()) for score, values in scores.items()}
            record |= {f"{name}_{short}": mean for short, mean in means.items()}
        return record

    return watch


def _by_flag(split: Split, flags: np.ndarray) -> dict[str, Split]:
    """Return some of a training set's images as a dict with the keys `clean` and `poisoned`.

    A kind that has no images is left out.
    """
    rows = {"clean": np.flatnonzero(~flags), "poisoned": np.flatnonzero(flags)}
    return {name: _some(split, chosen) for name, chosen in rows.items() if len(chosen)}


def _some(split: Split, rows: np.ndarray) -> Split:
    """Return a `Split` of at most 1000 (`WATCHED`) of the images `rows`, evenly spread.

    They are not the first ones, because a set may be sorted by class.
    """
    chosen: Any = rows[np.linspace(0, len(rows) - 1, min(WATCHED, len(rows))).astype(int)]
    return Split(*(np.asarray(part)[chosen] for part in split))
