"""PyTorch's side of benchmarks/train_step.py: the same net and step, written for speed.

Only this file and layers.py import torch. Images rest on the device as uint8. A step draws rows,
stamps the trigger, crops, flips and normalises on the device. Cross-entropy, the backward pass and
a fused SGD with momentum and coupled weight decay follow. The nets are written from their
descriptions.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from worker import serve

VARIANTS = {
    "eager": {},
    "channels_last": {"channels_last": True},
    "bfloat16": {"channels_last": True, "bfloat16": True},
    "compile": {"channels_last": True, "compile": "default"},
    "compile_bfloat16": {"channels_last": True, "bfloat16": True, "compile": "default"},
    "compile_graphs_bfloat16": {
        "channels_last": True,
        "bfloat16": True,
        "compile": "reduce-overhead",
    },
}
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)


class Block(nn.Module):
    """A pre-activation block, whose 1×1 shortcut acts on the activated input."""

    def __init__(self, inside: int, out: int, stride: int):
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(inside), nn.BatchNorm2d(out)
        self.conv1 = nn.Conv2d(inside, out, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.shortcut = (
            nn.Conv2d(inside, out, 1, stride, bias=False) if stride != 1 or inside != out else None
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map features [B, C, H, W] to [B, out, H / stride, W / stride]."""
        activated = F.relu(self.bn1(x))
        kept = x if self.shortcut is None else self.shortcut(activated)
        return self.conv2(F.relu(self.bn2(self.conv1(activated)))) + kept


class PreActResNet18(nn.Module):
    """PreActResNet18 as in `d3jax.preact_resnet18`.

    It has no norm after the last block, then a global average pool and a linear layer.
    """

    def __init__(self, width: int, classes: int = 10):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        channels = [width << stage for stage in range(4) for _ in range(2)]
        before = [width, *channels[:-1]]
        strides = [2 if i in (2, 4, 6) else 1 for i in range(8)]
        self.blocks = nn.Sequential(
            *(Block(*sizes) for sizes in zip(before, channels, strides, strict=True))
        )
        self.head = nn.Linear(channels[-1], classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images [B, 3, 32, 32] to logits [B, classes]."""
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class WideResNet16(nn.Module):
    """WideResNet-16-1 as in `d3jax.wide_resnet`: three stages of two blocks, 16 to 64 channels."""

    def __init__(self, classes: int = 10):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        sizes = [(16, 16, 1), (16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1)]
        self.blocks = nn.Sequential(*(Block(*size) for size in sizes))
        self.norm, self.head = nn.BatchNorm2d(64), nn.Linear(64, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images [B, 3, 32, 32] to logits [B, classes]."""
        return self.head(F.relu(self.norm(self.blocks(self.stem(x)))).mean((2, 3)))


def _net(settings: dict[str, Any]) -> nn.Module:
    return WideResNet16() if settings["net"] == "wide_resnet" else PreActResNet18(settings["width"])


def prepare(settings: dict[str, Any]) -> tuple[Callable[[], float], dict[str, Any]]:
    """Return a function that times a round of the variant `name`, and facts about it.

    A round is `steps` steps of `batch` images each.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    steps = settings["steps"]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    step, parameters = _training(VARIANTS[settings["name"]], settings, device)
    for _ in range(5 if device.type == "cuda" else 1):
        step()
    _wait(device)
    about = {"compile_s": time.perf_counter() - began, "steps": steps, "parameters": parameters}
    about["bytes"] = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
    about["environment"] = _environment(device)

    def run() -> float:
        _wait(device)
        began = time.perf_counter()
        for _ in range(steps):
            step()
        _wait(device)
        return time.perf_counter() - began

    return run, about


def profile(settings: dict[str, Any], kinds: dict[str, str], rest: str) -> dict[str, float]:
    """Return milliseconds of a step on CPU by kind of operation.

    `kinds` has the kind of PyTorch's operations, and the others are `rest`.
    """
    steps = settings["steps"]
    variant = VARIANTS["bfloat16" if settings["precision"] == "bfloat16" else "eager"]
    step, _ = _training(variant, settings, torch.device("cpu"))

    def run() -> None:
        for _ in range(steps):
            step()

    run()
    began = time.perf_counter()
    run()
    seconds = time.perf_counter() - began
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        run()
    spent: dict[str, float] = {}
    for event in found.key_averages():
        kind = kinds.get(event.key, rest)
        spent[kind] = spent.get(kind, 0) + event.self_cpu_time_total / 1e3 / steps
    return {**spent, "sum": sum(spent.values()), "step without the profiler": 1e3 * seconds / steps}


def _training(
    variant: dict[str, Any], settings: dict[str, Any], device: torch.device
) -> tuple[Callable[[], None], int]:
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    count = settings["images"]
    images = torch.randint(0, 256, (count, 32, 32, 3), dtype=torch.uint8, device=device)
    labels = torch.randint(0, 10, (count,), device=device)
    poisoned = torch.rand(count, device=device) < 0.1
    return _step(variant, settings, images, labels, poisoned, device)


def _step(
    variant: dict[str, Any], settings: dict[str, Any], images, labels, poisoned, device
) -> tuple[Callable[[], None], int]:
    net = _net(settings).to(device)
    if variant.get("channels_last"):
        net = net.to(memory_format=torch.channels_last)
    fused = device.type == "cuda"
    optimizer = torch.optim.SGD(
        net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, fused=fused
    )
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (MEAN, STD))
    batch, arange = settings["batch"], torch.arange(32, device=device)

    def loss_of(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x = (x.float() / 255 - mean) / std
        if variant.get("channels_last"):
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=bool(variant.get("bfloat16"))):
            logits = net(x)
        return F.cross_entropy(logits.float(), y)

    if variant.get("compile"):
        loss_of = torch.compile(loss_of, mode=variant["compile"])

    def step() -> None:
        rows = torch.randint(0, len(images), (batch,), device=device)
        x, y, own = images[rows], labels[rows], poisoned[rows]
        x[:, 29:, 29:] = torch.where(own[:, None, None, None], 255, x[:, 29:, 29:])
        y = torch.where(own, 0, y)
        padded = F.pad(x, (0, 0, 4, 4, 4, 4))
        down, right = torch.randint(0, 9, (2, batch, 1), device=device)
        columns = torch.where(torch.rand(batch, 1, device=device) < 0.5, arange, 31 - arange)
        x = padded[
            torch.arange(batch, device=device)[:, None, None],
            (down + arange)[:, :, None],
            (right + columns)[:, None],
        ]
        loss = loss_of(x.permute(0, 3, 1, 2), y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step, sum(parameter.numel() for parameter in net.parameters())


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _environment(device: torch.device) -> dict[str, Any]:
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    return {
        "torch": torch.__version__,
        "device": name,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    serve(prepare)
