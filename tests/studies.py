"""Studies in tests: read from YAML, run quietly, read back."""

import json
from pathlib import Path

from d3jax.config.loading import loads
from d3jax.config.study import StudyConfig
from d3jax.runtime.progress import Progress
from d3jax.study import REGISTRIES, run_study
from d3jax.study.context import StudyContext, open_context


def read(text: str, *overrides: tuple[str, str]) -> StudyConfig:
    """Return the config of YAML text with overrides."""
    return loads(text, overrides, registries=REGISTRIES)


def run(config: StudyConfig, folder: Path, **options):
    """Run a study without a word on its progress; return the rows of results.csv."""
    return run_study(config, folder, Progress(quiet=True), **options)


def opened(config: StudyConfig, folder: Path) -> StudyContext:
    """Return the context of a study, nothing written."""
    return open_context(config, folder, Progress(quiet=True))


def logged_loops(folder: Path) -> dict[str, list[dict]]:
    """Return the log records of a run folder by `<node>` or `<node>/<loop>`."""
    found: dict[str, list[dict]] = {}
    for path in sorted(folder.glob("nodes/**/metrics.jsonl")):
        node = str(path.parent.relative_to(folder / "nodes"))
        for line in path.read_text().splitlines():
            record = json.loads(line)
            loop = record.pop("loop")
            found.setdefault(f"{node}/{loop}" if loop else node, []).append(record)
    return found
