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

from ..core.errors import CheckpointError, install
from ..core.paths import user_path
from .content import check_archive, kind_of
from .state_dict import tensors_in

SAFE = (2, 6)
"""The first version of torch whose weights-only loading keeps its promise."""


def read_tensors(path: str | Path, key: str = "") -> dict[str, np.ndarray]:
    """The tensors of a `.safetensors`, or of a PyTorch file: a state dict, wherever in the file it lies, or the one at the dotted `key`.

    A file is what its content says, whatever its name. Raises `CheckpointError` where the file is not there, is damaged, is of
    another kind, holds objects other than tensors and plain containers (whose code is not run), no state dict or several; and
    where the package that reads it is not installed.
    """
    path = user_path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    kind = kind_of(path)
    if kind == "safetensors":
        if key:
            raise CheckpointError(f"{path}: a .safetensors has no model.checkpoint_key: {key}")
        return _read_safetensors(path)
    if kind == "zip":
        check_archive(path)
    return tensors_in(_read_pickle(path), path, key)


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


NEEDS = f"{{path}}: needs {{what}}; {install('interop')}"


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


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
