"""Run the command on odd inputs, each in a process of its own, and print a table of the outcomes.

A run fails with a traceback, with more than 10 s or 2 GiB before an input is refused, or if the
code inside a file is executed. An input that `--check` accepts is run as well. Nothing is compared
with published numbers.

Command, whose output is benchmarks/results/faults.md:
    python benchmarks/faults.py [--count 320] [--seed 0] [--workers 1]
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
"""The most time and memory that refusing an input may take."""
LIMIT = 60
"""Seconds after which a command is killed, because a valid study may run longer."""
MARK = Path("/tmp/d3jax-was-here")
"""A file that exists only if code inside an input was executed."""


class Fault(NamedTuple):
    """An odd input and how the command ended with it.

    `outcome` is in capitals if it must not happen. `said` is the last message of d3jax, `checked`
    the run with `--check`, and `seen` the last run.
    """

    odd: Odd
    outcome: str
    said: str
    seen: Observed
    checked: Observed


def try_input(number: int, seed: int) -> Fault:
    """Make the input of a number, run the command on it and return the outcome.

    The same `number` and `seed` make the same input.
    """
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
        checked = observe([*words, "--check"], LIMIT, environment)
        seen, outcome = checked, judged(checked, refusing=True)
        if outcome == "accepted":
            seen = observe(words, LIMIT, environment)
            outcome = judged(seen, refusing=False)
        said = (seen.messages or [""])[-1].removeprefix("d3jax: ").replace(str(folder), "")
        return Fault(odd, outcome, said, seen, checked)


def judged(seen: Observed, refusing: bool) -> str:
    """Return the outcome of a command in words, in capitals if it must not happen.

    `refusing` says that the command ran with `--check`, which must end before any work.
    """
    if MARK.exists():
        return "RAN CODE"
    if seen.traceback:
        return "TRACEBACK"
    if seen.code < 0 and seen.seconds > LIMIT:
        return "HUNG" if refusing else "still ran"
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
    """Run all inputs and print a table of the outcomes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=320)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--only", type=int, help="run only this input and print its whole output")
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
    print("# Odd inputs\n")
    print(
        f"Printed by `python benchmarks/faults.py --count {options.count} --seed {options.seed}`."
    )
    print("No published number stands beside these.\n")
    print("\n".join(f"- {outcome}: {count}" for outcome, count in sorted(counts.items())))
    most = max(one.seconds for one in refused), max(one.peak for one in refused)
    print(f"- refused before work: after at most {most[0]:.1f} s, with at most {most[1]:.0f} MiB\n")
    print("| kind | input | outcome | what was said |\n| --- | --- | --- | --- |")
    for fault in sorted(faults, key=lambda fault: (fault.odd.kind, fault.odd.what)):
        cells = (fault.odd.kind, fault.odd.what, fault.outcome, fault.said[:140])
        print(f"| {' | '.join(map(_cell, cells))} |")


def _cell(text: str) -> str:
    """Return a text escaped for a cell of a Markdown table."""
    plain = text.encode("ascii", "backslashreplace").decode().replace("\n", " ")
    return plain.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    main()
