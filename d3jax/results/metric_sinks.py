"""Where log records go besides metrics.jsonl: TensorBoard and Weights & Biases. No jax.

Their packages are imported when a sink is asked for.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from ..core.errors import ConfigError
from ..core.records import LogRecord


class Sink(Protocol):
    """Where records go besides metrics.jsonl. `started`: whether it is open."""

    started: bool

    def holds(self, records: Sequence[LogRecord], changed: bool) -> bool:
        """Return whether these records are here already; `changed`: others were before them."""
        ...

    def start(self, records: Sequence[LogRecord]) -> None:
        """Open; `records` are all that metrics.jsonl has, in this process or an earlier one."""
        ...

    def write(self, record: LogRecord) -> None:
        """Take one more record."""
        ...

    def close(self) -> None:
        """Leave everything on disk and close."""
        ...


class TensorBoard:
    """Write event files in RUN/tensorboard/<node>, one curve for each metric of each loop.

    At each start and reset the events are written again from metrics.jsonl, so that they hold each
    record once: what a resumed loop took back is gone here too. A kill loses the last ten seconds
    until the node resumes.
    """

    def __init__(self, package: ModuleType, run: Path, name: str):
        self.package, self.folder = package, run / "tensorboard" / name
        self.started = False
        self._closed = self.folder / "records.txt"  # how many records a closed writer left
        self._writer: Any = None
        self._count = 0

    def holds(self, records: Sequence[LogRecord], changed: bool) -> bool:
        """Return whether a closed writer left these records."""
        left = self._closed.read_text() if self._closed.exists() else "0"
        return not changed and not self.started and left == str(len(records))

    def start(self, records: Sequence[LogRecord]) -> None:
        """Replace all events by those of `records`."""
        self.close()
        for path in (self._closed, *self.folder.glob("events.out.tfevents.*")):
            path.unlink(missing_ok=True)
        self._writer = self.package.SummaryWriter(str(self.folder), flush_secs=10)
        self.started, self._count = True, 0
        for record in records:
            self.write(record)

    def write(self, record: LogRecord) -> None:
        """Add one record's metrics."""
        for tag, value in _scalars(record).items():
            self._writer.add_scalar(tag, value, int(record["step"]))
        self._count += 1

    def close(self) -> None:
        """Close the event file."""
        if self.started:
            self._writer.close()
            self._closed.write_text(str(self._count))
        self.started = False


class WandB:
    """Log to one Weights & Biases run for each node: its group is the study, its name the node's.

    WANDB_MODE and the other settings of wandb are honoured. A run cannot take records back. So
    RUN/wandb/<node>/sent.txt notes what was sent, and a record that a resumed loop writes again is
    not sent again if it is equal but for its `seconds`; one that differs is sent beside the first.
    A kill may lose the records that wandb has not yet written. The steps of each loop are its own
    axis (`<loop>/step`). Offline, every process that logs leaves an offline run of the same id.
    """

    def __init__(self, package: ModuleType, run: Path, name: str):
        self.package, self.run, self.name = package, run, name
        self.started = False
        self._sent = run / "wandb" / name / "sent.txt"
        self._marks = set(self._sent.read_text().split()) if self._sent.exists() else set()
        self._run: Any = None
        self._loops: set[str] = set()

    def holds(self, records: Sequence[LogRecord], changed: bool) -> bool:
        """Return whether all records were sent."""
        return all(_mark(record) in self._marks for record in records)

    def start(self, records: Sequence[LogRecord]) -> None:
        """Open the run and send the records that were not sent."""
        if not self.started:
            self._run, self.started = self._open(), True
            self._loops.clear()
        for record in records:
            self.write(record)

    def write(self, record: LogRecord) -> None:
        """Send one record unless it was sent."""
        mark = _mark(record)
        if mark in self._marks:
            return
        prefix = _prefix(record)
        if prefix not in self._loops:
            self._run.define_metric(f"{prefix}*", step_metric=f"{prefix}step")
            self._loops.add(prefix)
        self._run.log(_scalars(record) | {f"{prefix}step": record["step"]})
        self._marks.add(mark)
        self._sent.parent.mkdir(parents=True, exist_ok=True)
        with self._sent.open("a") as file:
            file.write(mark + "\n")

    def close(self) -> None:
        """Finish the run."""
        if self.started:
            self._run.finish()
        self.started = False

    def _open(self) -> Any:
        identity = hashlib.sha256(f"{self.run.resolve()}/{self.name}".encode()).hexdigest()[:16]
        offline = os.environ.get("WANDB_MODE", "") in ("offline", "dryrun")
        return self.package.init(
            project=os.environ.get("WANDB_PROJECT", "d3jax"),
            group=self.run.name,
            name=self.name,
            id=identity,
            dir=str(self.run),
            resume=None if offline else "allow",
            reinit="create_new",
            settings=self.package.Settings(silent=True, console="off"),
        )


SINKS = {
    "tensorboard": ("tensorboardX", "tensorboard", TensorBoard),
    "wandb": ("wandb", "wandb", WandB),
}
"""Sinks by name: the package each needs, the extra of d3jax that has it, and its class."""


def check_sinks(names: Sequence[str]) -> dict[str, ModuleType]:
    """Import the packages of sinks. Raises `ConfigError` for one unknown or not installed."""
    found = {}
    for name in names:
        if name not in SINKS:
            raise ConfigError(f"loop.sinks: {name!r} is none of {', '.join(SINKS)}")
        package, extra, _ = SINKS[name]
        try:
            found[name] = importlib.import_module(package)
        except ImportError as error:
            raise ConfigError(
                f"loop.sinks: {name} needs {package} ({error}): install {package} (the extra {extra})"
            ) from error
    return found


def plain_value(value: Any) -> Any:
    """A scalar of numpy or jax as Python's."""
    if not hasattr(value, "item"):
        raise TypeError(f"{type(value).__name__} is no value of a log record")
    return value.item()


def _prefix(record: LogRecord) -> str:
    loop = record.get("loop", "")
    return f"{loop}/" if loop else ""


def _scalars(record: LogRecord) -> dict[str, float]:
    """Metrics of a record by tag, without its text."""
    found = {}
    for name, value in record.items():
        plain = value.item() if hasattr(value, "item") else value
        if name not in ("step", "loop") and isinstance(plain, int | float):
            found[_prefix(record) + name] = float(plain)
    return found


def _mark(record: LogRecord) -> str:
    values = {name: value for name, value in record.items() if name != "seconds"}
    text = json.dumps(values, sort_keys=True, default=plain_value)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
