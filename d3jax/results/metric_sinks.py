"""The sinks of log records besides metrics.jsonl: TensorBoard and Weights & Biases. No jax.

The package of a sink is imported only if the sink is used.
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
    """The interface of a sink, a destination of log records besides metrics.jsonl.

    `started` says whether the sink is open.
    """

    started: bool

    def holds(self, records: Sequence[LogRecord], changed: bool) -> bool:
        """Return whether the sink already has all of a node's log records `records`.

        `changed` says whether metrics.jsonl held other records before.
        """
        ...

    def start(self, records: Sequence[LogRecord]) -> None:
        """Open the sink and write `records` to it, all log records that metrics.jsonl holds.

        Some of them may be from an earlier process.
        """
        ...

    def write(self, record: LogRecord) -> None:
        """Write one more log record to the sink."""
        ...

    def close(self) -> None:
        """Write all log records of the sink to disk and close the sink."""
        ...


class TensorBoard:
    """A sink that writes TensorBoard event files in RUN/tensorboard/<node>.

    Each metric of each loop is a curve. At each start and reset the events are written again from
    metrics.jsonl. So they hold each record once, without the records that a resumed loop removed.
    If the process is killed, the last ten seconds are missing until the node resumes.
    """

    def __init__(self, package: ModuleType, run: Path, name: str):
        self.package, self.folder = package, run / "tensorboard" / name
        self.started = False
        self._closed = self.folder / "records.txt"  # the number of records of a closed writer
        self._writer: Any = None
        self._count = 0

    def holds(self, records: Sequence[LogRecord], changed: bool) -> bool:
        """Return whether the TensorBoard files of an earlier writer already hold `records`."""
        left = self._closed.read_text() if self._closed.exists() else "0"
        return not changed and not self.started and left == str(len(records))

    def start(self, records: Sequence[LogRecord]) -> None:
        """Replace all TensorBoard events of a node by the events of the log records `records`."""
        self.close()
        for path in (self._closed, *self.folder.glob("events.out.tfevents.*")):
            path.unlink(missing_ok=True)
        self._writer = self.package.SummaryWriter(str(self.folder), flush_secs=10)
        self.started, self._count = True, 0
        for record in records:
            self.write(record)

    def write(self, record: LogRecord) -> None:
        """Write the metrics of one log record to the TensorBoard event file."""
        for tag, value in _scalars(record).items():
            self._writer.add_scalar(tag, value, int(record["step"]))
        self._count += 1

    def close(self) -> None:
        """Close the TensorBoard event file."""
        if self.started:
            self._writer.close()
            self._closed.write_text(str(self._count))
        self.started = False


class WandB:
    """A sink that logs each node to a Weights & Biases run of its own.

    The run's group is the study, and its name is the node's name. WANDB_MODE and the other settings
    of wandb apply. Records that were sent to a run cannot be removed. So RUN/wandb/<node>/sent.txt
    notes the records that were sent. When a resumed loop writes a record again, it is sent only if
    more than its `seconds` differs; then the run has both. If the process is killed, records that
    wandb has not yet written may be lost. The steps of each loop are an axis of their own
    (`<loop>/step`). Offline, every process that logs makes an offline run with the same id.
    """

    def __init__(self, package: ModuleType, run: Path, name: str):
        self.package, self.run, self.name = package, run, name
        self.started = False
        self._sent = run / "wandb" / name / "sent.txt"
        self._marks = set(self._sent.read_text().split()) if self._sent.exists() else set()
        self._run: Any = None
        self._loops: set[str] = set()

    def holds(self, records: Sequence[LogRecord], changed: bool) -> bool:
        """Return whether all of the log records `records` were sent to Weights & Biases before."""
        return all(_mark(record) in self._marks for record in records)

    def start(self, records: Sequence[LogRecord]) -> None:
        """Open the Weights & Biases run and send the log records that it does not have yet."""
        if not self.started:
            self._run, self.started = self._open(), True
            self._loops.clear()
        for record in records:
            self.write(record)

    def write(self, record: LogRecord) -> None:
        """Send one log record to Weights & Biases, unless it was sent before."""
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
        """Finish the Weights & Biases run."""
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
"""Sinks by name: the package that each needs, the extra of d3jax that installs it, its class."""


def check_sinks(names: Sequence[str]) -> dict[str, ModuleType]:
    """Import the packages that log sinks such as "wandb" need; return the modules by sink name.

    Raises `ConfigError` if a sink is unknown or its package is not installed.
    """
    found = {}
    for name in names:
        if name not in SINKS:
            raise ConfigError(f"loop.sinks: {name!r} is none of {', '.join(SINKS)}")
        package, extra, _ = SINKS[name]
        try:
            found[name] = importlib.import_module(package)
        except ImportError as error:
            raise ConfigError(
                f"loop.sinks: {name} needs {package} ({error}): "
                f"install {package} (the extra {extra})"
            ) from error
    return found


def plain_value(value: Any) -> Any:
    """Return a NumPy or jax scalar as a Python scalar, for JSON.

    Raises `TypeError` for any other value.
    """
    if not hasattr(value, "item"):
        raise TypeError(f"{type(value).__name__} is no value of a log record")
    return value.item()


def _prefix(record: LogRecord) -> str:
    loop = record.get("loop", "")
    return f"{loop}/" if loop else ""


def _scalars(record: LogRecord) -> dict[str, float]:
    """Return the numeric metrics of a log record by tag, `<loop>/<metric>`."""
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
