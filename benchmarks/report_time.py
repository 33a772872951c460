"""Measure the time to build the page of a large study: 20 attacks × 5 defences × 3 seeds.

    python benchmarks/report_time.py [--out FILE]

Writes a run folder of made-up numbers, with samples, class rates and curves of 50 records for every
model. Makes its tables and page three times, each time in a new process, and prints the seconds.
The goal is 20 s.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.helpers.report_runs import Run, curve

ATTACKS, DEFENSES, SEEDS, TRIES = 20, 5, 3, 3


def write_run(folder: Path) -> None:
    """Write the run folder of a large study with made-up numbers."""
    run = Run(folder, classes=[str(i) for i in range(10)])
    labels = [f"defence{i}" for i in range(DEFENSES)]
    for i in range(ATTACKS):
        attack = f"attack{i}"
        for seed in range(SEEDS):
            run.model("none", attack, seed, logged=curve(range(1, 51)))
            for k, label in enumerate(labels):
                run.model(label, attack, seed, acc=0.85, asr=0.1 * k, logged=curve(range(1, 51)))
        run.samples(("none", *labels), attack)
    run.write()


def main() -> int:
    """Build the page three times and print the seconds of each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="also write the seconds to this JSON file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_run(Path(folder) / "run")
        command, seconds = [sys.executable, "-m", "d3jax.report", str(Path(folder) / "run")], []
        for _ in range(TRIES):
            started = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds.append(round(time.perf_counter() - started, 2))
    found = {"attacks": ATTACKS, "defenses": DEFENSES, "seeds": SEEDS, "seconds": seconds}
    print(json.dumps(found))
    if options.out:
        options.out.write_text(json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
