"""The search for the weights (state dict) in the contents of a PyTorch file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import CheckpointError, did_you_mean, names

DEPTH = 4
"""Most levels of mappings around a state dict."""


def tensors_in(found: Any, path: Path, key: str = "") -> dict[str, np.ndarray]:
    """Return the tensors of the state dict in a PyTorch file's contents, as arrays by name.

    With `key`, it is the state dict at that dotted key. A state dict is a mapping that has tensors
    and no other such mapping inside. Raises `CheckpointError` where there is none, or where there
    are several and no `key` chooses one.
    """
    candidates = dict(_candidates(found))
    there = names(map(repr, candidates)) or "none"
    if key and key not in candidates:
        raise CheckpointError(
            f"{path}: has no state dict at model.checkpoint_key: {key}; it has {there}"
            f"{did_you_mean(key, candidates)}"
        )
    if len(candidates) > 1 and not key:
        raise CheckpointError(
            f"{path}: holds several state dicts; say which by model.checkpoint_key: {there}"
        )
    if candidates:
        return _plain(candidates[key or next(iter(candidates))], path)
    if not isinstance(found, Mapping):
        raise CheckpointError(f"{path}: no state dict in it, but a {type(found).__name__}")
    shown = names(list(found)[:8]) or "nothing"
    raise CheckpointError(f"{path}: no state dict in it; it has {shown}")


def _candidates(found: Any, key: str = "", depth: int = 0) -> Iterator[tuple[str, Mapping]]:
    """Yield (dotted key, state dict) for each state dict in the contents of a PyTorch file.

    "" is the key of the whole. Values under keys that are numbers are skipped, because they belong
    to an optimiser. Mappings with only scalars are skipped, because they belong to a metric.
    """
    if not isinstance(found, Mapping) or depth > DEPTH:
        return
    inner = [(name, value) for name, value in found.items() if isinstance(name, str)]
    below = [
        pair
        for name, value in inner
        for pair in _candidates(value, f"{key}.{name}".lstrip("."), depth + 1)
    ]
    tensors = {name: value for name, value in inner if _is_tensor(value)}
    if not below and any(value.ndim for value in tensors.values()):
        below = [(key, tensors)]
    yield from below


def _is_tensor(value: Any) -> bool:
    import torch  # pyright: ignore[reportMissingImports]  # optional

    return isinstance(value, torch.Tensor)


def _plain(found: Mapping, path: Path) -> dict[str, np.ndarray]:
    """Convert the PyTorch tensors of a state dict to float32 NumPy arrays by name.

    Raises `CheckpointError` for a tensor that is not plain: sparse, without data, complex,
    quantised, or larger than its storage.
    """
    import torch  # pyright: ignore[reportMissingImports]  # optional

    for name, value in found.items():
        special = value.layout != torch.strided or value.is_meta
        if special or value.is_complex() or value.is_quantized:
            raise CheckpointError(
                f"{path}: {name} is no plain tensor of real numbers ({value.dtype}, "
                f"{value.layout}, {value.device})"
            )
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise CheckpointError(
                f"{path}: {name} is {list(value.shape)} and has only "
                f"{value.untyped_storage().nbytes()} bytes: it would expand"
            )
    return {str(name): value.detach().to(torch.float32).numpy() for name, value in found.items()}
