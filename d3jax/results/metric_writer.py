"""The metrics of a node: one JSON object a log record. No jax."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ..runtime.files import write_text
from .artifacts import LogRecord


class MetricWriter:
    """metrics.jsonl of one node."""

    def __init__(
        self, folder: Path, sinks: Sequence[str] = (), run_name: str = "", active: bool = True
    ):
        self.path, self.active = folder / "metrics.jsonl", active

    def write(self, loop: str, record: LogRecord) -> None:
        """Append one record of a loop."""
        if self.active:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf8") as file:
                file.write(_text(loop, record))

    def reset(self, loop: str, records: Sequence[LogRecord]) -> None:
        """Make `records` all there is of a loop and of the loops within it."""
        if not self.active:
            return
        lines = self.path.read_text(encoding="utf8").splitlines() if self.path.exists() else []
        kept = []
        for line in lines:
            try:
                other = json.loads(line)["loop"]
            except ValueError:
                continue
            if loop and other != loop and not other.startswith(f"{loop}/"):
                kept.append(line + "\n")
        write_text(self.path, "".join(kept) + "".join(_text(loop, record) for record in records))


def _text(loop: str, record: LogRecord) -> str:
    return json.dumps({"loop": loop, **record}) + "\n"
