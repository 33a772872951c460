"""Gives odd inputs to the command, each in a process of its own, and says how each ended.

What must not happen: a traceback, more than 10 s or 2 GiB before an input is refused, a file's code
run. An input that `--check` accepts is run as well. Nothing is compared with published numbers.

Command: python benchmarks/faults.py [--count 320] [--seed 0] [--workers 1] > benchmarks/results/faults.txt
"""

from __future__ import annotations

import argparse
import collections
import random
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from observed import SMALL, Observed, observe
from odd_configs import CONFIGS, Odd
from odd_files import FILES

MAKERS = [*CONFIGS, *FILES]
SECONDS, MEBIBYTES = 10, 2048
"""What refusing an input may take."""
RUN_SECONDS = 120
"""What a study of an accepted input may take."""
MARK = Path("/tmp/d3jax-was-here")
"""What a file makes whose code is run."""


class Fault(NamedTuple):
    """An input and how the command ended with it; `outcome` is in capitals where it must not be."""

    odd: Odd
    outcome: str
    seen: Observed
    checked: Observed


def try_input(number: int, seed: int) -> Fault:
    """Make the input of a number, give it to the command, return what came of it."""
    chance = random.Random(f"{seed} {number}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        odd = MAKERS[number % len(MAKERS)](chance, folder)
        environment = {
            "D3JAX_CACHE": str(folder / "cache"),
            "JAX_PLATFORMS": "cpu",
            **odd.environment,
        }
        words = [*SMALL, "--workdir", str(folder / "run"), *odd.words]
        checked = observe([*words, "--check"], 60, environment)
        seen, outcome = checked, judged(checked, refusing=True)
        if outcome == "accepted":
            seen = observe(words, RUN_SECONDS, environment)
            outcome = judged(seen, refusing=False)
        return Fault(odd, outcome, seen, checked)


def judged(seen: Observed, refusing: bool) -> str:
    """Return the outcome of a command in words."""
    if MARK.exists():
        return "RAN CODE"
    if seen.traceback:
        return "TRACEBACK"
    if seen.code < 0 and seen.seconds > 50:
        return "HUNG"
    if refusing and seen.code == 2 and seen.seconds > SECONDS:
        return "SLOW"
    if seen.code == 2 and seen.peak > MEBIBYTES:
        return "MEMORY"
    if seen.code == 2 and seen.messages and len(seen.messages[-1]) < 2000:
        return "one line before work" if refusing else "LATE"
    if seen.code == 0:
        return "accepted" if refusing else "ran"
    if seen.code == 1 and seen.messages:
        return "one line" if refusing else "contained failure"
    return "OTHER"


def main() -> None:
    """Try the inputs and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=320)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--only", type=int, help="one input, with all that it printed")
    options = parser.parse_args()
    MARK.unlink(missing_ok=True)
    if options.only is not None:
        fault = try_input(options.only, options.seed)
        print(fault.odd, fault.outcome, fault.seen, sep="\n")
        print(fault.seen.output)
        return
    faults = []
    with ThreadPoolExecutor(options.workers) as pool:
        numbers = range(options.count)
        for fault in pool.map(lambda number: try_input(number, options.seed), numbers):
            if fault.outcome.isupper():
                print(len(faults), fault.outcome, fault.odd.kind, fault.odd.what, file=sys.stderr)
            faults.append(fault)
    refused = [fault.checked for fault in faults if fault.outcome == "one line before work"]
    counts = collections.Counter(fault.outcome for fault in faults)
    print(
        f"Printed by `python benchmarks/faults.py --count {options.count} --seed {options.seed}`."
    )
    print("No published number stands beside these.\n")
    for outcome, count in sorted(counts.items()):
        print(f"{outcome}: {count}")
    print(f"refused: at most {max(one.seconds for one in refused):.1f} s and ", end="")
    print(f"{max(one.peak for one in refused):.0f} MiB\n")
    for fault in sorted(faults, key=lambda fault: (fault.odd.kind, fault.odd.what)):
        said = (fault.seen.messages or [""])[-1].removeprefix("d3jax: ")
        line = f"{fault.odd.kind} | {fault.odd.what} | {fault.outcome} | {said[:140]}"
        print(line.encode("ascii", "backslashreplace").decode().replace("\n", " "))


if __name__ == "__main__":
    main()
