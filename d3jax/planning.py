"""Which cells of a study run, in which order, and which together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from . import checkpoint
from .cells import Cell, Lab
from .config import program
from .tasks import task_of


def part_of(cells: Sequence[Cell], part: int, parts: int) -> list[Cell]:
    """Part 1 … `parts` of the cells: runs of neighbours, so that few parts need the same backdoored model."""
    return list(cells[(part - 1) * len(cells) // parts : part * len(cells) // parts])


def plan(lab: Lab, cells: Sequence[Cell], compute: bool) -> list[list[Cell]]:
    """The cells to compute, in groups that run as one program, each after those that it needs; without `compute`, those to read.

    Apart, each cell is a group, in order. Together, the victims of an attack are one group, and so are repairs whose configs
    differ at most in numbers that programs take as arrays.
    """
    wanted: dict[str, Cell] = {}
    for cell in cells:
        chain = [cell]
        while (earlier := chain[-1].needs) and (chain[-1].choice or (compute and not _is_finished(lab, chain[-1]))):
            chain.append(earlier)
        for link in reversed(chain):
            wanted.setdefault(link.name, link)
    if not lab.together:
        return [[cell] for cell in wanted.values()]
    groups: dict[Any, list[Cell]] = {}
    for cell in sorted(wanted.values(), key=lambda cell: cell.depth + 9 * bool(cell.choice)):  # a stable sort: repairs last
        key = cell.case.label if cell.choice is None else (cell.choice.name, program(cell.choice.config))
        if cell.prepares or ((cell.defense.job is None) if cell.choice else lab.streamed):
            key = cell.name  # more than one loop, or one that is fed: alone
        groups.setdefault((cell.choice is None, key), []).append(cell)
    return list(groups.values())


def _is_finished(lab: Lab, cell: Cell) -> bool:
    return checkpoint.exists(task_of(lab, cell, {}).folder / "model")
