"""Reading of named tensors from model files, and writing of safetensors; no code of a file is run.

A `.safetensors` holds only tensors. PyTorch's own files are pickles. They are read only by
`torch.load(weights_only=True)`, which builds tensors and plain containers and refuses everything
else.
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
"""The first version of torch whose weights-only loading runs no code of a file."""


def read_tensors(path: str | Path, key: str = "") -> dict[str, np.ndarray]:
    """Read the tensors of a `.safetensors` or PyTorch file, as NumPy arrays by name.

    A PyTorch file may hold a state dict at any depth; `key` is the dotted key of the one to read.
    The kind of the file follows from its content, not from its name.

    Raises `CheckpointError` where the file does not exist, is damaged or is of another kind. The
    same holds where it has no state dict or several, or objects other than tensors and plain
    containers, whose code is not run. It also holds where the package that reads the file is not
    installed.
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
    return tensors_in(read_pickle(path), path, key)


def write_tensors(
    path: str | Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] = {}
) -> None:
    """Write arrays by name to a `.safetensors` file, and create the folder of the file.

    `metadata` are texts by name, which are stored in the header of the file.
    """
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import save_file
    except ImportError as error:
        raise CheckpointError(NEEDS.format(path=path, what="safetensors")) from error
    path = user_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays = {name: np.asarray(value, order="C") for name, value in tensors.items()}
        save_file(arrays, str(path), dict(metadata) or None)
        path.chmod(0o644)  # safetensors writes 0600, which hides it from others
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be written ({_line(error)})") from error


NEEDS = f"{{path}}: needs {{what}}; {install('interop')}"
"""The error message for a package that is not installed."""


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


def read_pickle(path: Path) -> Any:
    """Read a file of PyTorch: plain containers, tensors and NumPy arrays, and nothing else.

    Raises `CheckpointError` for any other class in the file, a damaged file, or without PyTorch.
    """
    try:
        import torch  # pyright: ignore[reportMissingImports]  # optional
    except ImportError as error:
        raise CheckpointError(NEEDS.format(path=path, what="torch")) from error
    if tuple(map(int, torch.__version__.split(".")[:2])) < SAFE:
        raise CheckpointError(
            f"{path}: torch {torch.__version__} can be made to run a file's code "
            "even where it loads only weights (CVE-2025-32434); "
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
                f"{path}: holds more than tensors and plain containers ({asked[1]}), "
                "which only running its code could read; it was not run. "
                "Save the state dict alone, best as .safetensors"
            ) from error
        if isinstance(error, pickle.UnpicklingError):
            raise CheckpointError(
                f"{path}: is a pickle, but not of tensors that PyTorch saved; it was not run"
            ) from error
        raise CheckpointError(
            f"{path}: cannot be read as a PyTorch file ({_line(error)})"
        ) from error


def _numpys() -> list[Any]:
    """Return the parts of NumPy that a weights-only load may use to rebuild arrays and numbers.

    BackdoorBench stores such arrays with the weights. None of these parts runs code of a file.
    """
    import numpy._core.multiarray as core

    found: list[Any] = [np.ndarray, np.dtype, *{type(np.dtype(kind)) for kind in "?bBhHiIlLqQefdU"}]
    for home in ("numpy.core.multiarray", "numpy._core.multiarray"):
        found += [(core._reconstruct, f"{home}._reconstruct"), (core.scalar, f"{home}.scalar")]
    return found


def _line(error: Exception) -> str:
    """Return the first line of an error's message, or the name of the error."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
