"""Normalisation and augmentation settings that the field uses for well-known data sets."""

from __future__ import annotations

from typing import Any

USUAL: dict[str, dict[str, Any]] = {
    "cifar10": {
        "mean": (0.4914, 0.4822, 0.4465),
        "std": (0.247, 0.243, 0.261),
        "crop": 4,
        "flip": True,
    },
    "cifar100": {
        "mean": (0.5071, 0.4867, 0.4408),
        "std": (0.2675, 0.2565, 0.2761),
        "crop": 4,
        "flip": True,
    },
    "svhn_cropped": {
        "mean": (0.4377, 0.4438, 0.4728),
        "std": (0.198, 0.201, 0.197),
        "crop": 4,
        "flip": False,
    },
    "fashion_mnist": {"mean": (0.2860,), "std": (0.3530,), "crop": 2, "flip": False},
    "mnist": {"mean": (0.1307,), "std": (0.3081,), "crop": 2, "flip": False},
    "gtsrb": {
        "mean": (0.3403, 0.3121, 0.3214),
        "std": (0.2724, 0.2608, 0.2669),
        "crop": 4,
        "flip": False,
    },
    "tiny_imagenet": {
        "mean": (0.4802, 0.4481, 0.3975),
        "std": (0.2302, 0.2265, 0.2262),
        "crop": 4,
        "flip": True,
    },
}
"""Settings of `from_arrays` by data set. `mean` and `std` are per channel, in [0, 1] units."""
USUAL["svhn"] = USUAL["svhn_cropped"]
