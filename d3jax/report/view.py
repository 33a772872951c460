"""The inputs of the report page's sections: `Study`, a whole study, and `View`, one attack."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ..core.records import Row
from ..results.artifacts import AttackEntry, Finished, NodeEntry, RunFolder
from ..results.summary import group_of, summarise
from .plots.common import Palette, palette

Tables = Mapping[str, Sequence[Row]]
"""Rows by the stem of their CSV file."""


class Study(NamedTuple):
    """A run folder with its tables, as the report page's sections on a whole study need it.

    `rows` are the rows of results.csv without those of evolution runs. `groups` holds the summaries
    of `rows` over seeds, by data set, net and attack.
    """

    run: RunFolder
    tables: Tables
    rows: list[Row]
    groups: dict[tuple[str, str, str], list[Row]]
    palette: Palette


class View(NamedTuple):
    """One attack of a study for the report page: its entry, rows of all tables, and figure stem."""

    study: Study
    attack: AttackEntry
    tables: Tables
    stem: Path

    @property
    def unknown(self) -> bool:
        """Return whether an attack stands for the unknown trigger of an external model."""
        return not self.attack.attacked and "external_model" in self.kinds

    @property
    def kinds(self) -> set[str]:
        """Return the kinds of nodes (such as "repair") that an attack has, finished or not."""
        nodes = self.study.run.manifest.nodes
        return {one.kind for one in nodes if one.attack == self.attack.label}

    def path(self, what: str) -> Path:
        """Return the path of an attack's PNG figure with the name `what`."""
        return Path(f"{self.stem}-{what}.png")

    def finished(self, kind: str) -> list[Finished]:
        """Return the finished nodes of one kind that an attack has, in the study's order."""
        return list(self.study.run.finished(kind, self.attack.label))

    def nodes(self, *kinds: str) -> list[NodeEntry]:
        """Return study.json's entries of an attack's nodes of the given kinds, finished or not."""
        nodes = self.study.run.manifest.nodes
        return [one for one in nodes if one.attack == self.attack.label and one.kind in kinds]


def study_of(run: RunFolder, tables: Tables) -> Study:
    """Return the `Study` that the report page shows, made from a run folder and its tables."""
    nodes, every = run.manifest.nodes, tables.get("results", ())
    evolved = run.manifest.labels("evolution")
    rows = [row for row in every if row["defense"] not in evolved]
    found = summarise(rows)
    keys = dict.fromkeys(map(group_of, found))
    groups = {key: [row for row in found if group_of(row) == key] for key in keys}
    shown = [node.label for node in nodes if node.kind == "report_samples"]
    return Study(run, tables, rows, groups, palette([*(row["defense"] for row in every), *shown]))


def views_of(study: Study) -> Iterator[View]:
    """Yield a `View`, the input of the page's sections on one attack, for each attack of a study.

    Attacks whose labels give the same file name get a number, except the first of them.
    """
    stems: list[str] = []
    for attack in study.run.manifest.attacks:
        stem = re.sub(r"[^a-z0-9_]+", "-", attack.label.lower()).strip("-") or "attack"
        stems.append(stem if stem not in stems else f"{stem}-{len(stems)}")
        tables = {
            name: [row for row in rows if row.get("attack") == attack.label]
            for name, rows in study.tables.items()
        }
        yield View(study, attack, tables, study.run.path / "figures" / stems[-1])
