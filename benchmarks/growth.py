"""Measure the time and memory of run folders with many nodes: first run, resumption and page.

A study of many seeds runs once. Then one model is deleted and the study runs again. It runs once
more with nothing to do, and at last its page is made alone. Nothing is compared with published
numbers.

Command, whose output is benchmarks/results/growth.txt:
    python benchmarks/growth.py [--seeds 15 100]
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from observed import SMALL, Observed, observe
from small_study import tables_of

STUDY = """
dataset: {{name: synthetic, size: 8, classes: 3, train: 96, test: 30}}
model: small
train: {{steps: 4, batch_size: 16}}
reserved: {{count: 32}}
defenses:
  - {{name: finetune, schedule: {{steps: 2, batch_size: 16}}}}
  - {{name: d3, schedule: {{steps: 2, batch_size: 16}}}}
seeds: {seeds}
loop: {{log_every: 2, save_seconds: 1000}}
"""
LIMIT = 1800


def measure(seeds: int) -> None:
    """Run a study of `seeds` seeds, resume it and make its page; print seconds and memory."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config, run = folder / "study.yaml", folder / "run"
        config.write_text(STUDY.format(seeds=list(range(seeds))))
        words = [*SMALL, "--config", str(config), "--workdir", str(run)]
        environment = {"D3JAX_CACHE": str(folder / "cache")}

        def show(what: str, seen: Observed) -> None:
            assert seen.code == 0, seen.output
            print(f"{what}: {seen.seconds:.1f} s, {seen.peak:.0f} MiB", flush=True)

        show(f"{seeds} seeds, first run", observe(words, LIMIT, environment))
        rows = len(tables_of(run)["results.csv"])
        records = sorted((run / "nodes").rglob("record.json"))
        models = list((run / "checkpoints").iterdir())
        print(f"  {rows} rows, {len(models)} models, {len(records)} records of nodes")
        last = next(
            one for one in models if one.name.startswith(f"badnets-d3-code-seed{seeds - 1}")
        )
        shutil.rmtree(last)
        show("  resumed, a model missing", observe(words, LIMIT, environment))
        show("  resumed, nothing missing", observe(words, LIMIT, environment))
        report = [sys.executable, "-m", "d3jax.report", str(run)]
        show("  report alone", observe(report, LIMIT, environment))


def main() -> None:
    """Measure run folders of several numbers of seeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[15, 100])
    options = parser.parse_args()
    print("No published number stands beside these.\n")
    for seeds in options.seeds:
        measure(seeds)


if __name__ == "__main__":
    main()
