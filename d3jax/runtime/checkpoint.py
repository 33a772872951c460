"""Checkpoints: functions that save and load pytrees of arrays with Orbax.

A tree is stored flat, as {"params.stem.kernel": array}, with a checksum. A damaged file and a
checkpoint of another model are therefore told apart, and errors name the tensors. Orbax writes to a
temporary name and then renames, so that a killed process leaves no partial checkpoint. If several
processes run a study, all of them call these functions together, and the first one's view of the
disk counts. No other module imports Orbax.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
import shutil
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from ..core.errors import CheckpointError, DamagedError
from .distributed import broadcast_from_host0, is_primary
from .files import check_writable, make_folder, set_aside, storage_error
from .sharding import copies

Tree = TypeVar("Tree")

Binding = dict[str, str | int]
"""Entries of a checkpoint's metadata that name what it belongs to, such as its node.

They tell checkpoints of the same shapes apart.
"""


def save(path: Path, tree: Any, metadata: dict | None = None) -> None:
    """Save the arrays of a pytree and a dict of metadata as a checkpoint in the folder `path`.

    The tree may contain random keys. The metadata must be JSON data. A checkpoint at `path` is
    replaced. Raises `StorageError` if the disk is full or read-only, and then leaves it as it was.
    """
    flat = copies(flatten(tree))
    note = {"checksum": _checksum(flat, metadata or {}), "metadata": metadata or {}}
    path = Path(path).absolute()
    if is_primary():
        make_folder(path.parent)
        if path.is_file():
            set_aside(path)
        check_writable(path.parent)  # else Orbax waits for its threads and prints their errors
    try:
        with _one_voice():
            ocp.save(str(path), flat, overwrite=True, custom_metadata=note)
    except Exception as error:
        if full := storage_error(error, path):
            raise full from error
        raise


def load(path: Path, like: Tree, of: Binding | None = None) -> tuple[Tree, dict]:
    """Load a checkpoint: return the pytree saved at `path`, shaped as `like`, and the metadata.

    `like` has the expected shapes and dtypes. Its leaves are arrays, or shapes except for random
    keys. Raises `CheckpointError` if there is no checkpoint at `path`, or if its tensors are not
    those of `like`; the message names the tensors. Raises `DamagedError` if the checkpoint cannot
    be read, its checksum is wrong, or its metadata contradict `of`.
    """
    path = Path(path).absolute()
    note = _note(path)
    metadata = note.custom_metadata["metadata"]
    for key, own in (of or {}).items():
        if metadata.get(key, own) != own:
            raise DamagedError(f"{path}: it belongs to the {key} {metadata[key]}, not {own}")
    check_same(path, like, note.metadata)
    return unflatten(_contents(path, note), like), metadata


def shapes(path: Path) -> dict[str, Any]:
    """Return the shapes and dtypes of a checkpoint's tensors by dotted name, without loading them.

    The names are those of `flatten`. Raises the errors of `load`.
    """
    return _note(Path(path).absolute()).metadata


def read(path: Path) -> tuple[dict[str, jax.Array], dict]:
    """Return all tensors of a checkpoint by dotted name, and the checkpoint's metadata.

    The names are those of `flatten`. Raises the errors of `load`.
    """
    path = Path(path).absolute()
    note = _note(path)
    return _contents(path, note), note.custom_metadata["metadata"]


def _note(path: Path) -> Any:
    """Return Orbax's description of the checkpoint at `path`.

    Its `metadata` are the shapes and dtypes, and its `custom_metadata` what `save` stored.
    """
    if not path.is_dir():
        raise CheckpointError(f"{path}: no checkpoint here")
    note = _read(path, ocp.metadata)
    if (
        not note.metadata or not note.custom_metadata
    ):  # Orbax returns this for a broken metadata file
        raise DamagedError(f"{path}: cannot be read (its metadata are broken)")
    if "checksum" not in note.custom_metadata or not all(
        hasattr(leaf, "shape") for leaf in note.metadata.values()
    ):
        raise CheckpointError(f"{path}: a checkpoint that d3jax did not write")
    if not isinstance(note.custom_metadata.get("metadata"), dict):
        raise DamagedError(f"{path}: cannot be read (its metadata are broken)")
    return note


def _contents(path: Path, note: Any) -> dict[str, jax.Array]:
    """Return the tensors of a checkpoint by name, after comparing them with their checksum."""
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    want = {
        name: jax.ShapeDtypeStruct(tuple(leaf.shape), jnp.dtype(leaf.dtype), sharding=here)
        for name, leaf in note.metadata.items()
    }
    flat = _read(path, lambda path: ocp.load(path, want))
    if _checksum(flat, note.custom_metadata["metadata"]) != note.custom_metadata.get("checksum"):
        raise DamagedError(f"{path}: the contents do not match their checksum")
    return flat


def flatten(tree: Any) -> dict[str, jax.Array]:
    """Return the leaves of a pytree as {"dotted.name": array}, with random keys as integers."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        _name(path): jax.random.key_data(leaf) if _is_key(leaf) else jnp.asarray(leaf)
        for path, leaf in leaves
    }


def unflatten(flat: dict[str, jax.Array], like: Tree) -> Tree:
    """Rebuild a pytree with the structure of `like` from a flat dict {"dotted.name": array}."""

    def leaf(path, example):
        value = flat[_name(path)]
        return (
            jax.random.wrap_key_data(value, impl=jax.random.key_impl(example))
            if _is_key(example)
            else value
        )

    return jax.tree_util.tree_map_with_path(leaf, like)


def exists(path: Path) -> bool:
    """Return whether there is a checkpoint at `path`, readable or not."""
    return bool(broadcast_from_host0([path.is_dir()])[0])


def load_or_set_aside(
    path: Path, like: Tree, otherwise: str, of: Binding | None = None
) -> tuple[Tree, dict] | None:
    """Load a checkpoint as (tree, metadata), or rename it and return None if it is damaged.

    The damaged checkpoint is renamed to `<name>.damaged`, and replaces an earlier one of that name.
    A warning describes the damage and ends in `otherwise`, the text of what happens instead. Raises
    `CheckpointError` if the checkpoint holds another model.
    """
    found, damage = None, None
    try:
        found = load(path, like, of)
    except Exception as error:  # noqa: BLE001 (the other processes wait for any outcome)
        damage = error
    damaged = bool(broadcast_from_host0([isinstance(damage, DamagedError)])[0])
    if damage is not None and not (damaged and isinstance(damage, DamagedError)):
        raise damage
    if not damaged:
        return found
    if is_primary():
        warnings.warn(f"{damage}; {otherwise}", stacklevel=3)
        shutil.rmtree(path.with_name(f"{path.name}.damaged"), ignore_errors=True)
        set_aside(path)
    return None


def digest(tree: Any) -> str:
    """Return a hash of the arrays of a pytree, as 16 hexadecimal digits."""
    return _checksum(flatten(tree), None)[:16]


class Rolling:
    """A folder with the newest `keep` checkpoints of a running train loop, named by their step."""

    def __init__(self, folder: Path, keep: int = 2, of: Binding | None = None):
        self.folder, self.keep, self.of = Path(folder), keep, of or {}

    def steps(self) -> list[int]:
        """Return the steps of the train loop that have a checkpoint, oldest first."""
        return broadcast_from_host0(
            sorted(
                int(path.name) for path in self.folder.glob("*") if re.fullmatch(r"\d+", path.name)
            )
        )

    def save(self, step: int, tree: Any, metadata: dict) -> None:
        """Save a checkpoint of the train loop at `step`, then delete outdated checkpoints.

        These are all but the newest `keep`, and those of later steps that an earlier run left.
        """
        save(self.folder / str(step), tree, {**metadata, **self.of, "step": step})
        there = self.steps()
        for other in [other for other in there if other > step] + [
            other for other in there if other <= step
        ][: -self.keep]:
            if is_primary():
                shutil.rmtree(self.folder / str(other))

    def load(self, step: int, like: Tree) -> tuple[Tree, dict] | None:
        """Return the train loop's tree and metadata saved at `step`, or None if they are damaged.

        A damaged checkpoint is set aside with a warning. Raises `CheckpointError` if the checkpoint
        holds another model.
        """
        of = {**self.of, "step": step}
        return load_or_set_aside(
            self.folder / str(step), like, "going back to an earlier one", of=of
        )

    def clear(self) -> None:
        """Delete all checkpoints of the train loop, once its result is saved elsewhere."""
        if is_primary() and self.folder.is_dir():
            shutil.rmtree(self.folder, ignore_errors=True)
        elif is_primary():
            self.folder.unlink(missing_ok=True)


_MISPLACED = FileNotFoundError, NotADirectoryError, IsADirectoryError


def _read(path: Path, reader: Any) -> Any:
    """Call `reader(path)` on a checkpoint; raise `DamagedError` if the files are damaged."""
    try:
        with _one_voice():
            return reader(path)
    # Orbax and TensorStore raise many types of errors for damaged files.
    except Exception as error:
        if isinstance(error, OSError) and not isinstance(error, _MISPLACED):
            raise  # the disk's or the network's fault, not the file's
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            raise
        raise DamagedError(
            f"{path}: cannot be read ({type(error).__name__}: "
            f"{str(error).partition(chr(10))[0][:200]})"
        ) from error


@contextlib.contextmanager
def _one_voice() -> Iterator[None]:
    """Return a context manager that silences what Orbax prints in addition to raising an error."""
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    levels, hook = [logger.level for logger in loggers], threading.excepthook
    threading.excepthook = lambda given: None
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        threading.excepthook = hook
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def describe(tree: Any) -> dict[str, Any]:
    """Return the shapes and dtypes of the leaves of a pytree, as {"dotted.name": shape}."""
    return jax.eval_shape(flatten, tree)


def check_same(path: Path, like: Any, found: dict[str, Any]) -> None:
    """Raise `CheckpointError` if a checkpoint's tensors differ from `like` in name, shape or dtype.

    `found` are the tensors of the checkpoint at `path`, or their shapes and dtypes.
    """
    want = describe(like)
    missing = [name for name in want if name not in found]
    extra = [name for name in found if name not in want]
    other = [
        f"{name} is {jnp.dtype(found[name].dtype)}{list(found[name].shape)}, "
        f"not {want[name].dtype}{list(want[name].shape)}"
        for name in want
        if name in found
        and (tuple(found[name].shape), jnp.dtype(found[name].dtype))
        != (want[name].shape, want[name].dtype)
    ]
    kinds = (("it lacks ", missing), ("it also has ", extra), ("", other))
    problems = [
        kind + ", ".join(which[:3]) + " …" * (len(which) > 3) for kind, which in kinds if which
    ]
    if problems:
        raise CheckpointError(f"{path}: a checkpoint of another model: {'; '.join(problems)}")


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _checksum(flat: dict[str, jax.Array], metadata: Any) -> str:
    """Return the SHA-256 of a checkpoint's metadata and arrays (name, dtype, shape, bytes)."""
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(flat):
        array = np.asarray(flat[name])
        digest.update(
            f"{name} {array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes()
        )
    return digest.hexdigest()
