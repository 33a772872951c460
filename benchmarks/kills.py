"""Kill a study with SIGKILL at random moments, alone and among others in its folder.

In a chain, a study is killed one to four times, anywhere between its start and its page, and then
left alone. Its tables must be those of an undisturbed study. Among several processes in one folder
one is killed. The others must finish with those tables and leave no lock held. Nothing is compared
with published numbers.

Command, whose output is benchmarks/results/kills.txt:
    python benchmarks/kills.py [--chains 40] [--seed 0]
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import shutil
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from filelock import FileLock
from observed import Observed, has_ended, kill
from small_study import Tables, run_small, tables_of

CROWDS = (2, 8)
"""Numbers of processes that share a folder."""


def _kill_after(seconds: float, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not has_ended(process):
        time.sleep(0.005)
    kill(process)


def _reached(run: Path) -> str:
    """Return in words how far a study was when it was killed."""
    if not (run / "study.json").exists():
        return "before its folder was made"
    done = len(list((run / "nodes").rglob("record.json")))
    planned = len(json.loads((run / "study.json").read_text())["nodes"])
    if (run / "report.html").exists():
        return "as it wrote the page"
    return f"with {done} of {planned} nodes finished"


def _whole(seen: Observed, run: Path, wanted: Tables) -> bool:
    """Return whether a study ended with its page, the wanted tables and no lock held."""
    page = run / "report.html"
    return seen.code == 0 and page.is_file() and tables_of(run) == wanted and not _held(run)


def _held(run: Path) -> list[Path]:
    """Return the lock files of a run folder that a process holds."""
    held = []
    for path in run.rglob("lock"):
        lock = FileLock(path, timeout=0)
        try:
            lock.acquire()
            lock.release()
        except TimeoutError:
            held.append(path)
    return held


def chain(base: Path, number: int, chance: random.Random, length: float, wanted: Tables) -> bool:
    """Kill a study one to four times, then let it end; return whether it ended whole.

    Prints the moments of the kills. `length` is the seconds of an undisturbed study.
    """
    run, moments, kills = base / f"chain{number}", [], chance.randint(1, 4)
    while len(moments) < kills and not (moments and (run / "report.html").exists()):
        moment = chance.uniform(0.1, length)
        seen = run_small(base, run, meanwhile=partial(_kill_after, moment))
        if seen.code != 0:
            moments.append(f"{moment:.1f} s, {_reached(run)}")
        elif not moments:  # it ended before it was killed: start over, and kill earlier
            shutil.rmtree(run)
            length = moment
    whole = _whole(run_small(base, run), run, wanted)
    print(f"{number}: {'equal' if whole else 'NOT EQUAL'}; killed {'; '.join(moments)}")
    return whole


def crowd(base: Path, count: int, chance: random.Random, length: float, wanted: Tables) -> bool:
    """Start processes in one folder, kill one and return whether the others ended whole."""
    run = base / f"crowd{count}"
    moment = chance.uniform(0.5, 1) * length
    with ThreadPoolExecutor(count) as pool:
        killed = pool.submit(run_small, base, run, meanwhile=partial(_kill_after, moment))
        others = list(pool.map(lambda _: run_small(base, run), range(count - 1)))
    whole = all(_whole(seen, run, wanted) for seen in others)
    end = "killed" if killed.result().code < 0 else "ended before it was killed"
    print(f"{count} processes: {'equal' if whole else 'NOT EQUAL'}; one {end} after {moment:.1f} s")
    return whole


def main() -> None:
    """Kill studies and print the outcomes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chains", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    print(
        f"Printed by `python benchmarks/kills.py --chains {options.chains} --seed {options.seed}`."
    )
    print("No published number stands beside these.\n")
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        run_small(base, base / "first")  # fills the cache of compiled programs
        first = run_small(base, base / "undisturbed")
        assert first.code == 0, first.output
        wanted = tables_of(base / "undisturbed")
        print(f"undisturbed: {first.seconds:.1f} s")
        ended = collections.Counter(
            chain(base, i, chance, first.seconds, wanted) for i in range(options.chains)
        )
        print(f"equal: {ended[True]} of {options.chains} chains")
        for count in CROWDS:
            crowd(base, count, chance, first.seconds, wanted)


if __name__ == "__main__":
    main()
