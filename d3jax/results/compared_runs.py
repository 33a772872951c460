"""Functions that read several runs' rows of results.csv, with the settings of each. No jax."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ..core.paths import user_path
from ..core.records import Row
from .artifacts import RunFolder
from .tables import make_tables

UNRELATED = {
    "seeds", "loop", "published", "cache", "features", "paths", "detections", "evaluations",
}  # fmt: skip
"""Settings on which no row of a board depends, or that its rows contain as columns."""
OF_DEFENSES = {"reserved", "measured"}
"""Settings on which only the rows of defences and evolutions depend."""
LISTS = {"attacks", "defenses", "evolutions"}


class Run(NamedTuple):
    """A run to compare in a leaderboard: name, rows of results.csv, and config.yaml as `settings`.

    `kinds` maps the labels of evolutions and detections to "evolution" or "detection"; other labels
    are defences. `settings` is None if config.yaml cannot be read. Such a run shares no row with
    another run.
    """

    name: str
    rows: list[Row]
    kinds: Mapping[str, str]
    settings: Mapping[str, Any] | None


def read_runs(paths: Iterable[str | Path]) -> list[Run]:
    """Read the runs to compare from several run folders; a folder given twice is read once.

    Raises `DataError` if a folder is not a run folder.
    """
    given = [user_path(path) for path in paths]
    folders = {path.resolve(): path for path in given}
    names = _names(list(folders))
    return [_read_run(path, name) for path, name in zip(folders.values(), names, strict=True)]


def known_rows(run: Run) -> list[Row]:
    """Return a run's rows of results.csv with added columns for the run and each row's settings.

    `_run` is the name of the run, and `_kind` is victim, defense, evolution or detection. The other
    columns are texts that are equal if the settings are equal:

    - `_data`: the data set and the net.
    - `_train`: all settings on which every model depends.
    - `_victim`: those of `_train`, and the attack's entry.
    - `_defense`: `reserved`, `measured` and the defence's entry.
    """
    return [_known(run, row) for row in run.rows]


def _names(folders: Sequence[Path]) -> list[str]:
    """Return short, distinct names of folders: as few last parts of the paths as possible."""
    for count in range(1, 1 + max((len(folder.parts) for folder in folders), default=0)):
        names = ["/".join(folder.parts[-count:]) for folder in folders]
        if len(set(names)) == len(names):
            break
    return names if folders else []


def _read_run(path: Path, name: str) -> Run:
    folder = RunFolder(path)
    rows = make_tables(folder)["results"]
    kinds = {
        label: role for role in ("evolution", "detection") for label in folder.manifest.labels(role)
    }
    try:
        settings = yaml.safe_load(folder.text("config.yaml"))
    except yaml.YAMLError:
        settings = None
    return Run(name, rows, kinds, settings if isinstance(settings, dict) else None)


def _known(run: Run, row: Row) -> Row:
    defaults = {"net": "", "classes": None, "attack_seed": row["seed"], "status": "ok"}
    return defaults | row | {
        "_run": run.name,
        "_kind": _kind(run, row),
        "_data": _text(run, _picked(run, ("dataset", "model"))),
        "_train": _text(run, _train_settings(run)),
        "_victim": _text(run, _train_settings(run) | _attack(run, row)),
        "_defense": _text(run, _defense_settings(run, row)),
    }  # fmt: skip


def _kind(run: Run, row: Row) -> str:
    return "victim" if row["defense"] == "none" else run.kinds.get(row["defense"], "defense")


def _text(run: Run, settings: Mapping[str, Any]) -> str:
    if run.settings is None:
        return f"of run {run.name}"
    return json.dumps(settings, sort_keys=True, default=str)


def _picked(run: Run, names: Iterable[str]) -> dict[str, Any]:
    return {name: (run.settings or {}).get(name) for name in names}


def _train_settings(run: Run) -> dict[str, Any]:
    return _picked(run, set(run.settings or {}) - UNRELATED - OF_DEFENSES - LISTS)


def _attack(run: Run, row: Row) -> dict[str, Any]:
    return {"attack": _entry(run, ["attacks"], row["attack"])}


def _defense_settings(run: Run, row: Row) -> dict[str, Any]:
    if row["defense"] == "none":
        return {}
    entry = _entry(run, ["defenses", "evolutions"], row["defense"])
    return _picked(run, OF_DEFENSES) | {"defense": entry}


def _entry(run: Run, lists: Iterable[str], label: str) -> Any:
    """Return the entry with a label from `lists` (such as `defenses`) of a run's config, or None.

    An entry without a label has its name as label.
    """
    for name in lists:
        for entry in (run.settings or {}).get(name) or ():
            named = entry if isinstance(entry, dict) else {"name": entry}
            if named.get("label", named.get("name")) == label:
                return entry
    return None
