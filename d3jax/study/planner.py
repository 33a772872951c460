"""Which cells of a study run, in which order, and which together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..config.fields import program
from ..runtime import checkpoint
from .attack_run import Cell
from .context import Lab
from .nodes.repair import task_of


def part_of(cells: Sequence[Cell], part: int, parts: int) -> list[Cell]:
    """Part 1 … `parts` of the cells: runs of neighbours, so that few parts need the same backdoored model."""
    return list(cells[(part - 1) * len(cells) // parts : part * len(cells) // parts])


def plan(lab: Lab, cells: Sequence[Cell], compute: bool) -> list[list[Cell]]:
    """The cells to compute, in groups that run as one program, each after those that it needs; without `compute`, those to read.

    Apart, each cell is a group, in order. Together, the victims of an attack are one group, and so are repairs whose configs
    differ at most in numbers that programs take as arrays.
    """
    wanted: dict[str, Cell] = {}

    def want(cell: Cell) -> None:
        if cell.kind in ("repair", "training") or (compute and not _is_finished(lab, cell)):
            for needed in cell.needs:
                want(needed)
        wanted.setdefault(cell.name, cell)

    for cell in cells:
        want(cell)
    if not lab.together:
        return [[cell] for cell in wanted.values()]
    groups: dict[Any, list[Cell]] = {}
    for cell in sorted(
        wanted.values(), key=lambda cell: cell.depth + 9 * (cell.kind in ("repair", "training"))
    ):  # a stable sort: repairs last
        key: Any = cell.name  # more than one loop, or one that is fed: alone
        if cell.kind == "repair" and cell.defense.loop:
            key = (cell.choice.name, program(cell.choice.config))
        elif cell.kind == "lineage" and not cell.defense:
            key = (cell.case.label, cell.choice.config.program)
        elif cell.kind == "model" and not lab.streamed:
            key = cell.case.label
        groups.setdefault((cell.kind, key), []).append(cell)
    return list(groups.values())


def _is_finished(lab: Lab, cell: Cell) -> bool:
    return checkpoint.exists(task_of(lab, cell, {}).folder / "model")
