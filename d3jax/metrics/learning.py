"""How clean and poisoned training images are learned while a defence trains on both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..core.records import LogRecord
from ..core.types import Model, Split, TrainState, Variables
from .sample_scores import scores_of

WATCHED = 1000
"""Images of each sort (test, clean and poisoned training) that are measured along the way."""

SHORT = {"cross_entropy": "ce", "entropy": "entropy", "right": "right"}
"""What is measured of training images, and its name in a log record."""


def learning_watch(
    model: Model,
    rates: Callable[[Variables, Split], LogRecord],
    test: Split,
    data: Callable[[], tuple[Split, np.ndarray]],
) -> Callable[[TrainState], LogRecord]:
    """Return a watch of `rates` on some test images and of training images by their flags.

    `data()` gives the training set and which rows [N] are poisoned. Of some clean and some poisoned
    images, under the labels they were given: mean cross-entropy and entropy, and the share taken
    for the given label. For plots only.
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
    """Return some clean and some poisoned images; of an empty sort none."""
    rows = {"clean": np.flatnonzero(~flags), "poisoned": np.flatnonzero(flags)}
    return {name: _some(split, chosen) for name, chosen in rows.items() if len(chosen)}


def _some(split: Split, rows: np.ndarray) -> Split:
    """Return at most `WATCHED` of the rows, spread evenly: a set may be sorted by class."""
    chosen: Any = rows[np.linspace(0, len(rows) - 1, min(WATCHED, len(rows))).astype(int)]
    return Split(*(np.asarray(part)[chosen] for part in split))
