"""Damage files of a run folder, one at a time, and run its study again.

A finished study, and one that was killed half-way, are copied for each damage. Afterwards the
tables must be equal to the undamaged ones, or one line must say which file cannot be read. Nothing
is compared with published numbers.

Command, whose output is benchmarks/results/damage.md:
    python benchmarks/damage.py [--count 120] [--seed 0]
"""

from __future__ import annotations

import argparse
import collections
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from observed import Observed, has_ended, kill
from small_study import run_small, tables_of

TEXTS = {
    "a number": b"123",
    "null": b"null",
    "a list": b"[]",
    "an object": b"{}",
    "no step": b'{"loop": "", "loss": 1}\n',
    "wrong types": b'{"step": "1", "loop": [], "seconds": {}}\n',
    "not UTF-8": bytes(range(128, 256)),
    "5,000 digits": b'{"step": ' + b"9" * 5000 + b"}\n",
    "depth 10,000": b"[" * 10_000,
    "empty": b"",
}


class Damage(NamedTuple):
    """A change of one path in a run folder, as a name and a function of the path."""

    name: str
    apply: Callable[[Path, random.Random], object]


def _cut(path: Path, chance: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: chance.randrange(max(1, path.stat().st_size))])


def _flip(path: Path, chance: random.Random) -> None:
    content = bytearray(path.read_bytes() or b"\0")
    for _ in range(3):
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def _noise(path: Path, chance: random.Random) -> None:
    path.write_bytes(chance.randbytes(max(1, path.stat().st_size)))


def _folder(path: Path, chance: random.Random) -> None:
    path.unlink()
    (path / "inside").mkdir(parents=True)


def _immutable(path: Path, chance: random.Random) -> None:
    subprocess.run(["chattr", "+i", path], check=False, capture_output=True)


def _file_for_folder(path: Path, chance: random.Random) -> None:
    shutil.rmtree(path.parent)
    path.parent.write_text("a file")


FILE = [
    Damage("cut off", _cut),
    Damage("three bits flipped", _flip),
    Damage("noise", _noise),
    Damage("deleted", lambda path, chance: path.unlink()),
    Damage("a folder", _folder),
    Damage("its folder is a file", _file_for_folder),
    Damage("immutable", _immutable),
    *(
        Damage(name, lambda path, chance, text=text: path.write_bytes(text))
        for name, text in TEXTS.items()
    ),
]


def _swapped(run: Path, chance: random.Random) -> str:
    """Exchange two models or two checkpoints of a run folder and return their paths."""
    pairs = [sorted(run.glob("checkpoints/*/model")), sorted(run.glob("checkpoints/*/steps/*"))]
    one, two = chance.sample(chance.choice([found for found in pairs if len(found) > 1]), 2)
    aside = run / "aside"
    one.rename(aside)
    two.rename(one)
    aside.rename(two)
    return f"{one.relative_to(run)} ↔ {two.relative_to(run)}"


def _half(process: subprocess.Popen, run: Path) -> None:
    """Kill a study during its D3 repair."""
    while not list(run.glob("checkpoints/badnets-d3*/steps/*")) and not has_ended(process):
        time.sleep(0.002)
    kill(process)


def _outcome(seen: Observed, run: Path, wanted: dict[str, list[dict[str, str]]]) -> str:
    if seen.traceback:
        return "TRACEBACK"
    if seen.code == 0 and tables_of(run) == wanted and (run / "report.html").is_file():
        return "equal"
    if seen.code in (1, 2) and seen.messages and _holds(tables_of(run), wanted):
        return "one line"
    return "OTHER"


def _holds(
    tables: dict[str, list[dict[str, str]]], wanted: dict[str, list[dict[str, str]]]
) -> bool:
    """Return whether every row equals one of the undamaged study.

    Failed rows are skipped, because they hold no results.
    """
    for name, rows in tables.items():
        for row in rows:
            failed = row.get("status", "ok") != "ok"
            if not failed and row not in wanted[name]:
                return False
    return True


def main() -> None:
    """Damage copies of a run folder, run their study again and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        run_study = partial(run_small, base)
        whole, half = base / "whole", base / "half"
        first = run_study(whole)
        assert first.code == 0, first.output
        run_study(half, meanwhile=lambda process: _half(process, half))
        wanted = tables_of(whole)
        counts: collections.Counter[str] = collections.Counter()
        lines = []
        for i in range(options.count):
            source = half if i % 3 == 2 else whole
            run = base / f"run{i}"
            shutil.copytree(source, run)
            if i % 10 == 9:
                what, damage = _swapped(run, chance), "swapped"
            else:
                files = sorted(path for path in run.rglob("*") if path.is_file())
                # Draw a place first, so that other files than the many of checkpoints are drawn.
                places = sorted({_place(path, run) for path in files})
                place = chance.choice(places)
                path = chance.choice([one for one in files if _place(one, run) == place])
                chosen = chance.choice(FILE)
                what, damage = str(path.relative_to(run)), chosen.name
                if path.parent == run and damage == "its folder is a file":
                    damage = "deleted"
                    path.unlink()
                else:
                    chosen.apply(path, chance)
            seen = run_study(run)
            outcome = _outcome(seen, run, wanted)
            counts[outcome] += 1
            said = " / ".join(seen.messages)[:160].replace(str(base), "").replace("|", "¦")
            lines.append(f"| {source.name} | {_short(what)} | {damage} | {outcome} | {said} |")
            if outcome.isupper():
                print(seen.output, "\n", what, damage, file=__import__("sys").stderr)
            subprocess.run(["chattr", "-R", "-i", run], check=False, capture_output=True)
            shutil.rmtree(run)
    print("# Damaged run folders\n")
    print(
        f"Printed by `python benchmarks/damage.py --count {options.count} --seed {options.seed}`."
    )
    print("No published number stands beside these.\n")
    print("\n".join(f"- {name}: {count}" for name, count in sorted(counts.items())))
    print("\n| study | path | damage | outcome | what was said |\n| --- | --- | --- | --- | --- |")
    print("\n".join(lines))


def _place(path: Path, run: Path) -> str:
    """Return the kind of a file's place: its name, its folder, or its part of a checkpoint."""
    parts = path.relative_to(run).parts
    if parts[0] == "checkpoints":
        return "/".join(parts[2:3]) if len(parts) > 3 else path.name
    return path.name if parts[0] == "nodes" or len(parts) == 1 else parts[0]


def _short(path: str) -> str:
    return path if len(path) <= 90 else f"{path[:40]}…{path[-48:]}"


if __name__ == "__main__":
    main()
