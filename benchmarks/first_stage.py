"""Print the loss of DLP's first stage at every step, to see whether a net bears its learning rate.

A tenth of the images has BadNets' white corner.

Data: python -m d3jax.data cifar10 --out cifar10.npz
Command: python benchmarks/first_stage.py cifar10.npz [--width 64] [--lr 0.1] [--steps 40]
"""

from __future__ import annotations

import argparse
import dataclasses
import math

import jax
import numpy as np

from d3jax.attacks import BadNetsConfig, make_badnets
from d3jax.data import NpzConfig, make_npz
from d3jax.defenses import DLPConfig
from d3jax.defenses.training_time.suspicion import first_stage_loop
from d3jax.models import PreActResNet18Config, make_preact_resnet18
from d3jax.training.poisoned_set import poisoned_split
from d3jax.training.scan import ScannedStep
from d3jax.training.step import classification_loss


def main() -> None:
    """Print a line for every step and stop at the first loss that is not finite."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()
    data = make_npz(NpzConfig(path=options.data, limit_train=4000, limit_test=100))
    model = make_preact_resnet18(PreActResNet18Config(width=options.width), data.info)
    config = DLPConfig().supervised
    config = dataclasses.replace(
        config, optimizer=dataclasses.replace(config.optimizer, lr=options.lr), steps=options.steps
    )
    split = poisoned_split(jax.random.key(0), make_badnets(BadNetsConfig(), data.info), data.train)[
        0
    ]
    loop = first_stage_loop(
        jax.random.key(0),
        model,
        jax.tree.map(jax.numpy.asarray, split),
        config,
        data.info,
        classification_loss(model),
    )
    state, repeat = (
        jax.tree.map(jax.numpy.copy, loop.state),
        ScannedStep(loop.step, steps_per_call=1),
    )
    for step in range(1, options.steps + 1):
        state, metrics = repeat(state, loop.data, 1)
        loss = float(np.asarray(metrics["loss"])[0])
        print(f"width {options.width}, lr {options.lr:g}, step {step}: loss {loss:.6g}", flush=True)
        if not math.isfinite(loss):
            break


if __name__ == "__main__":
    main()
