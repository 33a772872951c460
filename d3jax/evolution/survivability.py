"""Survivability: how many updates of an evolving model a backdoor survives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..core.records import LogRecord
from ..results.survival import TAUS


def survivability(asr: Any, tau: float = 0.5) -> tuple[int, bool]:
    """Return S_τ, the number of updates that a backdoor survives, and whether S_τ is censored.

    `asr` [T] is measured after each update. S_τ is the number of updates before the ASR first falls
    below `tau`. Where it never does, S_τ is T and censored ("at least T"). A later rise does not
    count.
    """
    below = np.flatnonzero(np.asarray(asr, np.float64) < tau)
    return (int(below[0]), False) if len(below) else (len(asr), True)


def updates_of(records: Sequence[LogRecord]) -> list[LogRecord]:
    """Return those log records of an evolution run that were written at the end of an update."""
    return [record for record in records if "update" in record]


def survival_columns(records: Sequence[LogRecord], before: float) -> dict[str, Any]:
    """Return columns of results.csv: how many updates a backdoor survives, by ASR threshold τ.

    They are S_τ for each of `TAUS`, and whether it is censored; {} without a trigger. Both are None
    where the ASR `before` the first update is below τ, as there is no backdoor to survive.
    """
    asr = [record["watch_asr"] for record in updates_of(records) if "watch_asr" in record]
    columns: dict[str, Any] = {}
    for tau in TAUS if asr else ():
        count, censored = survivability(asr, tau)
        there = not math.isnan(before) and before >= tau
        columns[f"survived_{tau:g}"] = count if there else None
        columns[f"survived_{tau:g}_censored"] = censored if there else None
    return columns
