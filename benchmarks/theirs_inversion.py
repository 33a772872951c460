"""PyTorch's side of benchmarks/inversion.py: a step of Neural Cleanse's trigger inversion.

The net is fixed and in evaluation mode. A step draws a batch, stamps it with the trigger of every
label, and updates all masks and patterns by Adam. The labels are on the batch axis.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from theirs import MEAN, STD, PreActResNet18
from worker import serve


def prepare(settings: dict[str, Any]) -> tuple[Callable[[], float], dict[str, Any]]:
    """Return a function that runs a round and returns its seconds a step; and facts about it."""
    torch.manual_seed(0)
    labels, batch, steps = settings["labels"], settings["batch"], settings["steps"]
    net = PreActResNet18(settings["width"], settings["classes"]).eval().requires_grad_(False)
    channels_last = settings["name"] == "channels_last"
    if channels_last:
        net = net.to(memory_format=torch.channels_last)
    images = torch.randint(0, 256, (1000, 3, 32, 32), dtype=torch.uint8)
    mask = torch.zeros(labels, 1, 1, 32, 32, requires_grad=True)
    pattern = torch.zeros(labels, 1, 3, 32, 32, requires_grad=True)
    optimizer = torch.optim.Adam([mask, pattern], lr=0.1, betas=(0.5, 0.9))
    wanted = torch.arange(labels).repeat_interleave(batch)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    cost = torch.full((labels,), 1e-3)

    def step() -> None:
        x = images[torch.randint(0, len(images), (batch,))].float() / 255
        m, p = torch.tanh(mask) / 2 + 0.5, torch.tanh(pattern) / 2 + 0.5
        stamped = ((1 - m) * x + m * p).flatten(0, 1)
        stamped = (stamped - mean) / std
        if channels_last:
            stamped = stamped.contiguous(memory_format=torch.channels_last)
        ce = F.cross_entropy(net(stamped), wanted, reduction="none").view(labels, batch).mean(1)
        loss = (ce + cost * m.sum((1, 2, 3, 4))).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    step()

    def run() -> float:
        began = time.perf_counter()
        for _ in range(steps):
            step()
        return (time.perf_counter() - began) / steps

    return run, {"torch": torch.__version__, "threads": torch.get_num_threads()}


if __name__ == "__main__":
    serve(prepare)
