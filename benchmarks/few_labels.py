"""Compare MixMatch and FixMatch with supervised learning from the same few labels.

MixMatch and FixMatch also see the unlabelled images. All methods start from the same weights. They
make the same number of steps with the same number of labelled images, with crop and flip as the
data set allows. Supervised learning has two recipes: MixMatch's own optimiser, and SGD with a
one-cycle rate. Every rate falls to 0. Seeds draw labels and weights.

No published numbers are comparable: the papers' nets are WRN-28-2 and larger, trained for a million
steps.

Data: python -m d3jax.data fashion_mnist --out fashion_mnist.npz
Command:
    python benchmarks/few_labels.py fashion_mnist.npz [--crop 2] [--labels 250] [--steps 1200]
        [--seeds 3] [--out benchmarks/results]
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import jax
import numpy as np

from d3jax.config.recipes import OptimConfig, TrainConfig
from d3jax.core.types import Split
from d3jax.data import NpzConfig, make_npz
from d3jax.defenses.training_time.suspicion import first_stage_loop
from d3jax.metrics.attack_success import predict
from d3jax.models import PreActResNet18Config, make_preact_resnet18
from d3jax.runtime import huge_pages
from d3jax.runtime.environment import environment
from d3jax.training import fit
from d3jax.training.semi_supervised import PRESETS, SemiConfig, semi_supervised_loop
from d3jax.training.step import classification_loss

SETTINGS = ("crop", "width", "labels", "steps", "seeds")
SUPERVISED = {
    "labels alone, Adam 0.002": PRESETS["mixmatch"].optimizer,
    "labels alone, SGD one-cycle 0.1": OptimConfig(lr=0.1, schedule="onecycle"),
}


def main() -> None:
    """Train, print the accuracies and write them to one JSON file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--crop", type=int, default=2)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument(
        "--labels", type=int, default=250, help="number of labelled images, equal for every class"
    )
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    accuracies: dict[str, list[float]] = {}
    for seed in range(options.seeds):
        for name, accuracy in compare(seed, options).items():
            print(f"seed {seed}, {name}: {100 * accuracy:.2f} %", flush=True)
            accuracies.setdefault(name, []).append(accuracy)
    result = {
        "command": f"benchmarks/few_labels.py {options.data.name} "
        + " ".join(f"--{name} {getattr(options, name)}" for name in SETTINGS),
        "test_accuracy": accuracies,
        "mean": {name: statistics.fmean(values) for name, values in accuracies.items()},
        **environment(),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"few_labels_{options.data.stem}_w{options.width}_{options.labels}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf8")


def compare(seed: int, options: Any) -> dict[str, float]:
    """Return the test accuracy by method, for one draw of labels and weights."""
    data = make_npz(NpzConfig(path=str(options.data), crop=options.crop, flip=True))
    model = make_preact_resnet18(PreActResNet18Config(width=options.width), data.info)
    key, labels = jax.random.key(seed), np.asarray(data.train.labels)
    each = options.labels // data.info.num_classes
    order = np.random.default_rng(seed).permutation(len(labels))
    labelled = np.sort(
        np.concatenate([order[labels[order] == k][:each] for k in range(data.info.num_classes)])
    )
    unlabelled = np.setdiff1d(np.arange(len(labels)), labelled)
    hidden = data.train._replace(
        labels=np.where(np.isin(np.arange(len(labels)), labelled), labels, 0)
    )
    few = Split(np.asarray(data.train.images)[labelled], labels[labelled])
    loops = {}
    for name, optimizer in SUPERVISED.items():
        recipe = TrainConfig(steps=options.steps, batch_size=64, optimizer=optimizer)
        loops[name] = first_stage_loop(
            key, model, few, recipe, data.info, classification_loss(model)
        )
    start = next(iter(loops.values())).state.variables
    for method in ("mixmatch", "fixmatch"):
        config = SemiConfig(method=method, steps=options.steps)
        loops[method] = semi_supervised_loop(
            key, model, start, hidden, labelled, unlabelled, config, data.info
        )
    found = {name: fit(loop)[0].variables for name, loop in loops.items()}
    images, truth = np.asarray(data.test.images), np.asarray(data.test.labels)
    batches = np.array_split(np.arange(len(truth)), 20)

    def right(v):
        return np.concatenate(
            [np.asarray(predict(model, v, images[rows])) == truth[rows] for rows in batches]
        )

    return {name: float(right(variables).mean()) for name, variables in found.items()}


if __name__ == "__main__":
    huge_pages.start_again()
    main()
