"""Measure a part of the GPU benchmark piece by piece, and keep its result in one JSON file.

The file is written after every piece. A process that is cut off loses one piece at most, and a
later process measures the pieces that are left. Does not import jax.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

Result = dict[str, Any]


class Part(NamedTuple):
    """A part of the benchmark: functions that name its pieces and that measure some of them.

    `pieces(options)` returns the names of all pieces, the most valuable first.
    `measure(options, pieces, kept)` yields (piece, result) after each of the given pieces. A result
    is that of the whole part: `kept`, which earlier processes left, and all pieces since.
    """

    pieces: Callable[[argparse.Namespace], list[str]]
    measure: Callable[[argparse.Namespace, Iterable[str], Result], Iterator[tuple[str, Result]]]


def whole(measure: Callable[[argparse.Namespace], Result]) -> Part:
    """Return a part of one piece, from a function `measure(options) -> result`."""

    def pieces(options: argparse.Namespace) -> list[str]:
        return ["all"]

    def measured(options: argparse.Namespace, pieces: Iterable[str], kept: Result):
        for piece in pieces:
            yield piece, measure(options)

    return Part(pieces, measured)


def file_name(part: str, name: str, device: str) -> str:
    """Return the name of a part's file; `name` is added for a run with other settings."""
    return f"{part}{name and '-' + name}_{device}.json"


def read(name: str, *folders: Path) -> Result:
    """Return the result file `name`, from the folder where most of it is done; {} without one."""
    paths = [folder / name for folder in folders]
    found = [json.loads(path.read_text(encoding="utf8")) for path in paths if path.exists()]
    return max(found, key=lambda one: (is_complete(one), len(one.get("pieces", {}))), default={})


def is_complete(result: Result) -> bool:
    """Return whether a result is there and has all its pieces.

    Older files have no field `complete`. They were written at the end of a part.
    """
    return bool(result) and result.get("complete", True)


def left(pieces: Iterable[str], kept: Result) -> list[str]:
    """Return the pieces of a part that are not in its kept result."""
    done = kept.get("pieces", {})
    return [] if is_complete(kept) else [piece for piece in pieces if piece not in done]


def write(path: Path, result: Result) -> None:
    """Write a result to its file; at any moment the file holds a whole result, old or new."""
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(result, indent=1) + "\n", encoding="utf8")
    os.replace(beside, path)


def run(
    part: Part,
    options: argparse.Namespace,
    path: Path,
    kept: Result,
    head: Result,
    fits: Callable[[str, list[str]], bool],
) -> bool:
    """Measure the pieces that are left and fit, write each to `path`; return whether all are done.

    `head` are facts for the start of the file, among them the `commit`. `fits(piece, before)` says
    whether there is time for a piece after those that this process measured `before`.
    """
    names, done, before = part.pieces(options), dict(kept.get("pieces", {})), []
    began = time.perf_counter()
    measured = part.measure(options, _fitting(left(names, kept), before, fits), kept)
    with contextlib.closing(measured):
        for piece, result in measured:
            now = time.perf_counter()
            done[piece] = {"seconds": now - began, "commit": head["commit"]}
            began = now
            before.append(piece)
            facts = head | {"complete": set(names) <= set(done), "pieces": done}
            write(path, facts | result | facts)
    return set(names) <= set(done)


def _fitting(
    todo: list[str], before: list[str], fits: Callable[[str, list[str]], bool]
) -> Iterator[str]:
    """Yield the first piece that there is time for, again and again until none is left."""
    todo = list(todo)
    while piece := next((one for one in todo if fits(one, before)), None):
        todo.remove(piece)
        yield piece
