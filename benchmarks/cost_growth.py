"""Measure how time and memory of d3jax grow, and fit an exponent to each.

Four quantities grow: the rows of a study (models, with a net that trains in an instant), the labels
of a trigger inversion, the training images, and the members that train together. Every case is a
process of its own. Its seconds include the start of Python and the compilation, so exponents of
small cases are low. The exponent is the slope of log time, or log memory, over the two largest
cases. Nothing is compared with published numbers.

Command, whose output is benchmarks/results/cost_growth_cpu.txt:
    python benchmarks/cost_growth.py [rows] [labels] [images] [members]
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from growth import STUDY as ROWS
from observed import SMALL, Observed, observe

IMAGES = """
dataset: {{name: synthetic, size: 32, channels: 3, classes: 10, train: {count}, test: 500}}
model: {{name: wide_resnet, depth: 10}}
attacks: [{{name: blended, rate: 0.1}}]
train: {{steps: 20, batch_size: 64}}
reserved: {{count: 100}}
defenses: []
loop: {{log_every: 20, save_seconds: 1000}}
"""
MEMBERS = """
dataset: {{name: synthetic, size: 16, channels: 3, classes: 10, train: 2000, test: 500}}
model: {{name: preact_resnet18, width: 4}}
train: {{steps: 20, batch_size: 64}}
reserved: {{count: 100}}
seeds: {seeds}
defenses: []
loop: {{log_every: 20, save_seconds: 1000, members: together}}
"""
LABELS = """
dataset: {{name: synthetic, size: 32, channels: 3, classes: {count}, train: 2000, test: 500}}
model: {{name: preact_resnet18, width: 8}}
train: {{steps: 1, batch_size: 64}}
reserved: {{count: 320}}
defenses: []
detections: [{{name: inversion, label: nc, passes: 10, batches: 1, batch_size: 32}}]
loop: {{log_every: 20, save_seconds: 1000}}
"""
CASES = {
    "rows": (ROWS, (1, 10, 30, 100)),
    "labels": (LABELS, (10, 43, 100, 200)),
    "images": (IMAGES, (5_000, 50_000, 500_000)),
    "members": (MEMBERS, (1, 4, 16)),
}
"""The study and the sizes of each quantity; a seed of the first study has three rows."""
ROWS_A_SEED = 3
LIMIT = 1500


def command_of(quantity: str, size: int, folder: Path) -> list[str]:
    """Return the command that runs the study of a case in a folder."""
    study, _ = CASES[quantity]
    config = folder / "study.yaml"
    config.write_text(study.format(seeds=list(range(size)), count=size))
    program = SMALL if quantity == "rows" else [sys.executable, "-m", "d3jax.run"]
    return [*program, "--config", str(config), "--workdir", str(folder / "run")]


def measured(quantity: str, size: int) -> Observed:
    """Run one case in a folder of its own; return its time and memory."""
    with tempfile.TemporaryDirectory() as name:
        seen = observe(command_of(quantity, size, Path(name)), LIMIT)
    assert seen.code == 0, seen.output
    return seen


def slope(sizes: Sequence[int], values: Sequence[float]) -> float:
    """Return the exponent of growth between the two largest cases."""
    return math.log(values[-1] / values[-2]) / math.log(sizes[-1] / sizes[-2])


def main(argv: Sequence[str] = sys.argv[1:]) -> None:
    """Measure the quantities that are named, or all; print a table."""
    print("No published number stands beside these.\n")
    print("| quantity | size | seconds | peak memory, MiB |")
    print("| --- | --- | --- | --- |")
    fits = []
    for quantity in argv or CASES:
        sizes, seen = CASES[quantity][1], []
        for size in sizes:
            seen.append(measured(quantity, size))
            shown = size * ROWS_A_SEED if quantity == "rows" else size
            print(
                f"| {quantity} | {shown} | {seen[-1].seconds:.1f} | {seen[-1].peak:.0f} |",
                flush=True,
            )
        times = slope(sizes, [one.seconds for one in seen])
        memory = slope(sizes, [one.peak for one in seen])
        fits.append(f"{quantity}: time grows as size^{times:.2f}, memory as size^{memory:.2f}")
    print("\nBetween the two largest cases:")
    print("\n".join(fits))


if __name__ == "__main__":
    main()
