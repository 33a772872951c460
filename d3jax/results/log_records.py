"""Functions that parse metrics.jsonl, which has one log record a line. No jax."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import NamedTuple

from ..core.records import LogRecord


class LogText(NamedTuple):
    """The contents of a metrics.jsonl: the log `records`, and the number of `damaged` lines."""

    records: list[LogRecord]
    damaged: int


def parse_log(text: str) -> LogText:
    """Return the log records in the text of a metrics.jsonl, and the number of damaged lines.

    An incomplete last line is not counted as damaged.
    """
    lines = [line for line in text.splitlines() if line]
    records = [record for line in lines if (record := _log_record(line)) is not None]
    half = bool(lines) and not text.endswith("\n") and _log_record(lines[-1]) is None
    return LogText(records, len(lines) - len(records) - half)


def _log_record(line: str) -> LogRecord | None:
    """Return the log record in a line of metrics.jsonl, or None if the line is not one.

    A log record is a JSON object whose values are numbers, text or null. It has a finite `step`.
    Its `seconds`, if given, are finite, and its `loop`, if given, is text.
    """
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not all(
        isinstance(value, int | float | str | None) for value in record.values()
    ):
        return None
    numbers, loop = (record.get("step"), record.get("seconds", 0)), record.get("loop", "")
    known = all(isinstance(one, int | float) and math.isfinite(one) for one in numbers)
    return record if known and isinstance(loop, str) else None


def by_loop(records: Sequence[LogRecord]) -> dict[str, list[LogRecord]]:
    """Group a node's log records by train loop, sorted by step; of each step keep the last one."""
    loops: dict[str, dict[float, LogRecord]] = {}
    for record in records:
        loops.setdefault(str(record.get("loop", "")), {})[record["step"]] = record
    return {loop: [steps[step] for step in sorted(steps)] for loop, steps in loops.items()}
