"""The metric writer: it writes a node's log records to metrics.jsonl and to optional sinks.

Sinks are TensorBoard and Weights & Biases. metrics.jsonl is authoritative: sinks are filled from
it. No jax in here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from ..core.records import LogRecord
from ..runtime.files import make_folder, make_way, read_text, write_text
from .log_records import parse_log
from .metric_sinks import SINKS, Sink, check_sinks, plain_value


class MetricWriter:
    """A writer of one node's log records: to metrics.jsonl, and to sinks such as TensorBoard.

    The folder is `artifacts.node_folder(run, run_name)`. `sinks` are names in SINKS, and `run_name`
    is the node's name, which sinks need. A writer that is not `active` does nothing; processes that
    are not the primary one have such a writer. The caller holds the node's lock, and closes the
    writer.

    Raises `ConfigError` if a sink is unknown or not installed.
    """

    def __init__(
        self,
        folder: Path,
        sinks: Sequence[str] = (),
        run_name: str = "",
        active: bool = True,
    ):
        if sinks and not run_name:
            raise ValueError(f"sinks {tuple(sinks)} need run_name, the node's name")
        self.path = folder / "metrics.jsonl"
        self.active, self._ready = active, False
        run = folder.parents[len(Path(run_name).parts)] if run_name else folder
        opened = check_sinks(sinks) if active else {}
        self.sinks = [SINKS[name][2](package, run, run_name) for name, package in opened.items()]

    def write(self, loop: str, record: LogRecord) -> None:
        """Append one log record of a train loop to metrics.jsonl and to all sinks.

        The loop "" is the node's first loop.
        """
        if not self.active:
            return
        if not self._ready:
            self._prepare()
        line = {"loop": loop, **record}
        with self.path.open("a", encoding="utf8") as file:
            file.write(_json(line) + "\n")
        for sink in self.sinks:
            sink.write(line)

    def reset(self, loop: str, records: Sequence[LogRecord]) -> None:
        """Replace the log records of a train loop, and of loops within it, by `records`.

        Loops within it have names that begin with "loop/". A resumed loop removes in this way what
        it wrote after its checkpoint. The loop "" contains all others, so that only `records`
        remain; a record may name its own `loop`. Damaged lines are dropped.
        """
        if not self.active:
            return
        before = self._text()
        kept = [
            line
            for line in parse_log(before).records
            if not _within(str(line.get("loop", "")), loop)
        ]
        lines = [*kept, *({"loop": loop, **record} for record in records)]
        after = "".join(_json(line) + "\n" for line in lines)
        if changed := after != before:
            write_text(self.path, after)
        self._start([sink for sink in self.sinks if not sink.holds(lines, changed)], after)

    def close(self) -> None:
        """Close all sinks of log records; a later `write` opens them again."""
        for sink in self.sinks:
            sink.close()
        self._ready = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _text(self) -> str:
        return read_text(self.path)

    def _prepare(self) -> None:
        """Prepare for the first log record: drop an incomplete last line and start idle sinks."""
        make_folder(self.path.parent)
        make_way(self.path)
        text = self._text()
        if text and not text.endswith("\n"):
            text = "".join(_json(one) + "\n" for one in parse_log(text).records)
            write_text(self.path, text)
        self._start([sink for sink in self.sinks if not sink.started], text)
        self._ready = True

    def _start(self, sinks: Sequence[Sink], text: str) -> None:
        for sink in sinks:
            sink.start(parse_log(text).records)


def _json(record: LogRecord) -> str:
    return json.dumps(record, default=plain_value)


def _within(other: str, loop: str) -> bool:
    return loop == "" or other == loop or other.startswith(f"{loop}/")
