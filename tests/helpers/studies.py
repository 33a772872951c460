"""Helpers that read studies from YAML text, run them without output and read their run folders."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from d3jax.config.loading import loads
from d3jax.config.study import StudyConfig
from d3jax.runtime.progress import Progress
from d3jax.study import REGISTRIES, run_study
from d3jax.study.context import StudyContext, open_context

TINY = """
dataset: {name: synthetic, size: 12, classes: 4, train: 400, test: 130, noise: 0.15}
model: small
attacks: [{name: badnets, rate: 0.1}]
train: {steps: 120, batch_size: 64, augment: none, optimizer: {lr: 0.05}}
reserved: {count: 80}
defenses:
  - {name: finetune, schedule: {steps: 20}}
  - {name: d3, schedule: {steps: 60, optimizer: {lr: 0.02}}}
loop: {log_every: 10, save_every: 20, save_seconds: 0}
published: {badnets/d3-code: "90.77/0.74 on CIFAR-10"}
"""
"""A study of one backdoored model and two repairs, which runs in seconds."""


def read(text: str, *overrides: tuple[str, str]) -> StudyConfig:
    """Return the study config of a YAML text with overrides `(key, value)`."""
    return loads(text, overrides, registries=REGISTRIES)


def run(config: StudyConfig, folder: Path, **options):
    """Run a study without progress output and return the rows of results.csv."""
    return run_study(config, folder, Progress(quiet=True), **options)


@contextlib.contextmanager
def unchanged(folder: Path) -> Iterator[None]:
    """Raise `AssertionError` if the block creates, changes or deletes a file of a shared folder."""
    before = _files(folder)
    yield
    after = _files(folder)
    changed = [path for path in before | after if before.get(path) != after.get(path)]
    assert not changed, f"tests changed {folder}: {sorted(changed)[:5]}"


def _files(folder: Path) -> dict[str, tuple[int, int]]:
    """Return the size and the modification time in ns of every file of a folder."""
    found = {path: path.stat() for path in folder.rglob("*") if path.is_file()}
    return {str(path): (stat.st_size, stat.st_mtime_ns) for path, stat in found.items()}


def opened(config: StudyConfig, folder: Path) -> StudyContext:
    """Return the context of a study without writing anything."""
    return open_context(config, folder, Progress(quiet=True))


class Breaking(Progress):
    """A progress display that raises `KeyboardInterrupt` at the n-th log record of the study."""

    def __init__(self, records: int):
        super().__init__(quiet=True)
        self.records = records

    def update(self, record: dict, steps: int) -> None:
        self.records -= 1
        if not self.records:
            raise KeyboardInterrupt


def logged_loops(folder: Path) -> dict[str, list[dict]]:
    """Return the log records of a run folder, keyed by `<node>` or `<node>/<loop>`."""
    found: dict[str, list[dict]] = {}
    for path in sorted(folder.glob("nodes/**/metrics.jsonl")):
        node = str(path.parent.relative_to(folder / "nodes"))
        for line in path.read_text().splitlines():
            record = json.loads(line)
            loop = record.pop("loop")
            found.setdefault(f"{node}/{loop}" if loop else node, []).append(record)
    return found
