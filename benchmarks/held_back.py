"""Write an .npz whose training and test images are both training images of another data set.

A choice made with its test images then uses no real test image.

Data: python -m d3jax.data fashion_mnist --out fashion_mnist.npz
Command:
    python benchmarks/held_back.py fashion_mnist.npz held_back_fashion_mnist.npz --train 12000
        [--test 10000] [--seed 7]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np


def split(data: dict[str, np.ndarray], train: int, test: int, seed: int) -> dict[str, np.ndarray]:
    """Split the training images of `data` at random into training and test images.

    `train` of them become training images, and `test` others become test images. The arrays have
    the names of an .npz data set.
    """
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
    """Write the .npz."""
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
