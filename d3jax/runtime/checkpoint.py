"""Checkpoints: pytrees of arrays on disk, through Orbax (the only file that imports it).

A tree is stored flat, as {"params.stem.kernel": array}, with a checksum, so that a damaged file and a checkpoint of another
model are told apart and reported by name. Orbax writes beside the final name and renames, so a kill leaves no half one. Where several
processes run the study, all of them call these functions together; the first one's view of the disk counts.
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
"""What the metadata of a checkpoint say it is of, so that one of the same shapes is not taken for another."""


def save(path: Path, tree: Any, metadata: dict | None = None) -> None:
    """Writes `tree` (arrays, random keys included) and JSON-able `metadata` to the folder `path`, replacing what is there.

    Raises `StorageError` where the disk is full or read-only; what was at `path` then stays.
    """
    flat = copies(flatten(tree))
    note = {"checksum": _checksum(flat, metadata or {}), "metadata": metadata or {}}
    path = Path(path).absolute()
    if is_primary():
        make_folder(path.parent)
        if path.is_file():
            set_aside(path)
        check_writable(path.parent)  # Orbax would wait for its threads, and print what they say
    try:
        with _one_voice():
            ocp.save(str(path), flat, overwrite=True, custom_metadata=note)
    except Exception as error:
        if full := storage_error(error, path):
            raise full from error
        raise


def load(path: Path, like: Tree, of: Binding | None = None) -> tuple[Tree, dict]:
    """The tree saved at `path`, with the structure, shapes and dtypes of `like` (arrays, or shapes where they are no
    random keys), and its metadata.

    Raises `CheckpointError` if there is nothing at `path` or it holds other tensors (naming them), `DamagedError` if it
    cannot be read, its checksum is wrong, or its metadata say that it is `of` something else.
    """
    path = Path(path).absolute()
    note = _note(path)
    metadata = note.custom_metadata["metadata"]
    for key, own in (of or {}).items():
        if metadata.get(key, own) != own:
            raise DamagedError(f"{path}: it is of the {key} {metadata[key]}, not {own}")
    check_same(path, like, note.metadata)
    return unflatten(_contents(path, note), like), metadata


def shapes(path: Path) -> dict[str, Any]:
    """What is said of the tensors that were saved at `path`, by the names of `flatten`. Raises as `load` does."""
    return _note(Path(path).absolute()).metadata


def read(path: Path) -> tuple[dict[str, jax.Array], dict]:
    """Whatever tensors were saved at `path`, as `flatten` named them, and the metadata. Raises as `load` does."""
    path = Path(path).absolute()
    note = _note(path)
    return _contents(path, note), note.custom_metadata["metadata"]


def _note(path: Path) -> Any:
    """What a checkpoint says of itself: `metadata` with shapes and dtypes, `custom_metadata` with ours."""
    if not path.is_dir():
        raise CheckpointError(f"{path}: no checkpoint here")
    note = _read(path, ocp.metadata)
    if not note.metadata or not note.custom_metadata:  # what Orbax makes of a broken metadata file
        raise DamagedError(f"{path}: cannot be read (its metadata are broken)")
    if "checksum" not in note.custom_metadata or not all(
        hasattr(leaf, "shape") for leaf in note.metadata.values()
    ):
        raise CheckpointError(f"{path}: a checkpoint, but none of ours")
    if not isinstance(note.custom_metadata.get("metadata"), dict):
        raise DamagedError(f"{path}: cannot be read (its metadata are broken)")
    return note


def _contents(path: Path, note: Any) -> dict[str, jax.Array]:
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
    """{"dotted.name": array} of every leaf; random keys become their data."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        _name(path): jax.random.key_data(leaf) if _is_key(leaf) else jnp.asarray(leaf)
        for path, leaf in leaves
    }


def unflatten(flat: dict[str, jax.Array], like: Tree) -> Tree:
    """The inverse of `flatten`, in the structure of `like`."""

    def leaf(path, example):
        value = flat[_name(path)]
        return (
            jax.random.wrap_key_data(value, impl=jax.random.key_impl(example))
            if _is_key(example)
            else value
        )

    return jax.tree_util.tree_map_with_path(leaf, like)


def exists(path: Path) -> bool:
    """Whether there is a checkpoint at `path`, readable or not."""
    return bool(broadcast_from_host0([path.is_dir()])[0])


def load_or_set_aside(
    path: Path, like: Tree, otherwise: str, of: Binding | None = None
) -> tuple[Tree, dict] | None:
    """As `load`, but a damaged checkpoint is None: renamed to `<name>.damaged`, replacing one that was set aside before.

    A warning tells of it and of what happens `otherwise`. Raises `CheckpointError` where it holds another model.
    """
    found, damage = None, None
    try:
        found = load(path, like, of)
    except Exception as error:  # noqa: BLE001 (whatever it is: the other processes wait to hear of it)
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
    """Sixteen hex digits that name the contents of `tree`."""
    return _checksum(flatten(tree), None)[:16]


class Rolling:
    """The newest `keep` checkpoints of a running loop, as folders named by their step."""

    def __init__(self, folder: Path, keep: int = 2, of: Binding | None = None):
        self.folder, self.keep, self.of = Path(folder), keep, of or {}

    def steps(self) -> list[int]:
        """The steps there are, oldest first."""
        return broadcast_from_host0(
            sorted(
                int(path.name) for path in self.folder.glob("*") if re.fullmatch(r"\d+", path.name)
            )
        )

    def save(self, step: int, tree: Any, metadata: dict) -> None:
        """Adds a checkpoint, then deletes what is too old, and what an earlier run left beyond it."""
        save(self.folder / str(step), tree, {**metadata, **self.of, "step": step})
        there = self.steps()
        for other in [other for other in there if other > step] + [
            other for other in there if other <= step
        ][: -self.keep]:
            if is_primary():
                shutil.rmtree(self.folder / str(other))

    def load(self, step: int, like: Tree) -> tuple[Tree, dict] | None:
        """The checkpoint of `step`; None where it cannot be read, which is reported as a warning, and the checkpoint set aside.

        Raises `CheckpointError` where it holds another model.
        """
        of = {**self.of, "step": step}
        return load_or_set_aside(
            self.folder / str(step), like, "going back to an earlier one", of=of
        )

    def clear(self) -> None:
        """Deletes them all, once the loop's result is saved elsewhere."""
        if is_primary() and self.folder.is_dir():
            shutil.rmtree(self.folder, ignore_errors=True)
        elif is_primary():
            self.folder.unlink(missing_ok=True)


_MISPLACED = FileNotFoundError, NotADirectoryError, IsADirectoryError


def _read(path: Path, reader: Any) -> Any:
    try:
        with _one_voice():
            return reader(path)
    except (
        Exception
    ) as error:  # Orbax and TensorStore raise many kinds for damaged files; all mean the same here
        if isinstance(error, OSError) and not isinstance(error, _MISPLACED):
            raise  # the disk's or the network's fault, not the file's
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            raise
        raise DamagedError(
            f"{path}: cannot be read ({type(error).__name__}: {str(error).partition(chr(10))[0][:200]})"
        ) from error


@contextlib.contextmanager
def _one_voice() -> Iterator[None]:
    """Silences what Orbax prints, itself and from its threads, beside the error that it raises."""
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
    """Names to shapes and dtypes of what `flatten` would give, without computing it."""
    return jax.eval_shape(flatten, tree)


def check_same(path: Path, like: Any, found: dict[str, Any]) -> None:
    """Raises `CheckpointError` where the tensors `found` at `path`, or what is said of them, are not those of `like`."""
    want = describe(like)
    missing = [name for name in want if name not in found]
    extra = [name for name in found if name not in want]
    other = [
        f"{name} is {jnp.dtype(found[name].dtype)}{list(found[name].shape)}, not {want[name].dtype}{list(want[name].shape)}"
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
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(flat):
        array = np.asarray(flat[name])
        digest.update(
            f"{name} {array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes()
        )
    return digest.hexdigest()
