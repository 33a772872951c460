"""Other people's files as named tensors, and ours as theirs. Nothing here executes what a file says.

A `.safetensors` holds tensors and nothing else. PyTorch's own files are pickles: they are read by `torch.load(weights_only=True)` alone, which
builds tensors and plain containers and refuses everything else.
"""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import CheckpointError
from ..core.paths import user_path

SAFE = (2, 6)
"""The first version of torch whose weights-only loading keeps its promise."""

TENSORS, PICKLES = (".safetensors",), (".pt", ".pth", ".bin")
BEGINS = (b"PK", b"\x80")
"""How a PyTorch file begins: as a zip archive, or before 1.6 as a pickle."""
INSIDE = ("model", "state_dict", "net", "model_state_dict")
"""Where a state dict may lie in a file: BackdoorBench's attack_result.pt has it under `model`."""


def read_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a `.safetensors`, or of a PyTorch `.pt` or `.pth`: a state dict, or a dictionary with one under a usual name.

    Raises `CheckpointError` where the file is not there, is truncated, is of another kind, holds objects other than tensors and plain
    containers (whose code is not run), or no state dict; and where the package that reads it is not installed.
    """
    path = user_path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    if path.suffix in TENSORS:
        return _read_safetensors(path)
    if path.suffix in PICKLES:
        return _state_dict(_read_pickle(path), path)
    raise CheckpointError(
        f"{path}: {path.suffix or 'a file without an ending'} is not one of {', '.join(TENSORS + PICKLES)}, or a checkpoint's folder"
    )


def write_tensors(path: str | Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a `.safetensors`, and the folder it is in."""
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import save_file
    except ImportError as error:
        raise CheckpointError(NEEDS.format(path=path, what="safetensors")) from error
    path = user_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, str(path))
        path.chmod(0o644)  # its 0600 would hide the file from those it is for
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be written ({_line(error)})") from error


NEEDS = "{path}: needs {what}; pip install -e '.[interop]'"


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
    except ImportError as error:
        raise CheckpointError(NEEDS.format(path=path, what="safetensors")) from error
    try:
        return dict(load_file(str(path)))
    except (SafetensorError, ValueError, OSError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path}: cannot be read as safetensors ({_line(error)})") from error


def _read_pickle(path: Path) -> Any:
    try:
        import torch  # pyright: ignore[reportMissingImports]  # optional
    except ImportError as error:
        raise CheckpointError(NEEDS.format(path=path, what="torch")) from error
    if tuple(map(int, torch.__version__.split(".")[:2])) < SAFE:
        raise CheckpointError(
            f"{path}: torch {torch.__version__} can be made to run a file's code even where it loads weights alone (CVE-2025-32434); "
            f"it needs {'.'.join(map(str, SAFE))} or newer"
        )
    with path.open("rb") as file:
        if not file.read(4).startswith(BEGINS):
            raise CheckpointError(
                f"{path}: cannot be read as a PyTorch file (it begins neither as a zip archive nor as a pickle)"
            )
    try:
        with torch.serialization.safe_globals(_numpys()), warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle makes the loader raise almost anything
        if isinstance(error, MemoryError):
            raise
        if isinstance(error, pickle.UnpicklingError) and (
            asked := re.search(r"GLOBAL ([\w.]+)", str(error))
        ):
            raise CheckpointError(
                f"{path}: holds more than tensors and plain containers ({asked[1]}), which only running its code could read; it was not "
                "run. Save the state dict alone, best as .safetensors"
            ) from error
        raise CheckpointError(
            f"{path}: cannot be read as a PyTorch file ({_line(error)})"
        ) from error


def _numpys() -> list[Any]:
    """What NumPy's arrays and numbers are rebuilt by, which BackdoorBench keeps beside the weights; none of it runs what a file says."""
    import numpy._core.multiarray as core

    found: list[Any] = [np.ndarray, np.dtype, *{type(np.dtype(kind)) for kind in "?bBhHiIlLqQefdU"}]
    for home in ("numpy.core.multiarray", "numpy._core.multiarray"):
        found += [(core._reconstruct, f"{home}._reconstruct"), (core.scalar, f"{home}.scalar")]
    return found


def _state_dict(found: Any, path: Path) -> dict[str, np.ndarray]:
    """The tensors of a state dict, wherever it lies in what a file holds."""
    import torch  # pyright: ignore[reportMissingImports]  # optional

    for _ in INSIDE:  # a dictionary may hold itself
        if isinstance(found, Mapping):
            found = next(
                (found[name] for name in INSIDE if isinstance(found.get(name), Mapping)), found
            )
    if not isinstance(found, Mapping):
        raise CheckpointError(f"{path}: no state dict in it, but a {type(found).__name__}")
    tensors = {str(name): value for name, value in found.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise CheckpointError(
            f"{path}: no state dict in it; it has {', '.join(map(str, list(found)[:8])) or 'nothing'}"
        )
    for name, value in tensors.items():
        if (
            value.layout != torch.strided
            or value.is_meta
            or value.is_complex()
            or value.is_quantized
        ):
            raise CheckpointError(
                f"{path}: {name} is no plain tensor of real numbers ({value.dtype}, {value.layout}, {value.device})"
            )
    return {name: value.detach().to(torch.float32).numpy() for name, value in tensors.items()}


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
