"""Training and test images that are both training images, so that a choice by the latter looks at no test image.

Command: python benchmarks/held_back.py fashion_mnist.npz held_back_fashion_mnist.npz --train 12000 [--test 10000] [--seed 7]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np


def split(data: dict[str, np.ndarray], train: int, test: int, seed: int) -> dict[str, np.ndarray]:
    """Of `data`'s training images `train` drawn ones and, held back from them, `test` others, under the names of an .npz data set."""
    size = len(data["train_labels"])
    if train + test > size:
        raise SystemExit(
            f"--train {train} and --test {test} are more than the {size} training images"
        )
    order = np.random.default_rng(seed).permutation(size)
    rows = {"train": np.sort(order[:train]), "test": np.sort(order[train : train + test])}
    return {
        f"{part}_{what}": data[f"train_{what}"][rows[part]]
        for part in rows
        for what in ("images", "labels")
    }


def main() -> None:
    """Writes the .npz."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--train", type=int, required=True)
    parser.add_argument("--test", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    with np.load(options.data, allow_pickle=False) as data:
        np.savez(options.out, **split(dict(data), options.train, options.test, options.seed))


if __name__ == "__main__":
    main()
