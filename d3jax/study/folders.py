"""The folders that a study writes to: seen to be usable, and large enough, before any work."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax

from ..core.errors import ConfigError
from ..core.paths import user_path
from ..runtime.files import check_writable
from ..runtime.main_memory import in_words
from .context import StudyContext
from .nodes.base import Node

STATES = 6
"""Models' sizes that a loop's rolling checkpoints take: two states of weights, momenta, averages."""


def make_folders(context: StudyContext, nodes: Sequence[Node]) -> None:
    """Make the folders that settings name. Raises `ConfigError` where one is no use or too full."""
    for setting, path in _folders(context):
        work = "made"
        try:
            path.mkdir(parents=True, exist_ok=True)
            work = "written"
            check_writable(path)
        except OSError as error:
            raise ConfigError(f"{setting}: {path} cannot be {work} ({error.strerror})") from error
    _check_space(context, nodes)


def check_folders(context: StudyContext) -> None:
    """Raise `ConfigError` where a folder could not be made or written; make none."""
    for setting, path in _folders(context):
        path = path.absolute()
        there = next(one for one in (path, *path.parents) if os.path.lexists(one))
        if not there.is_dir():
            raise ConfigError(f"{setting}: {path} cannot be made ({there} is no folder)")
        if not os.access(there, os.W_OK | os.X_OK):
            raise ConfigError(f"{setting}: {path} cannot be written (no permission in {there})")


def _folders(context: StudyContext) -> Iterator[tuple[str, Path]]:
    """Yield (setting, folder) of those that are given."""
    yield "--workdir", context.workdir
    for setting, folder in (("--cache", context.config.cache), ("--profile", context.profile)):
        if folder:
            yield setting, user_path(folder, setting)


def _check_space(context: StudyContext, nodes: Sequence[Node]) -> None:
    """Raise `ConfigError` where the models that are still to be made do not fit the disk."""
    shapes = jax.eval_shape(context.model.init, jax.random.key(0))
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    models = [node for node in nodes if not node.analysis]
    # Not `checkpoint.exists`, in which all processes take part: this one is alone here.
    missing = [node for node in models if not (node.folder / "model").exists()]
    loops = len(missing) if context.together else min(1, len(missing))
    needed, free = (len(missing) + STATES * loops) * size, shutil.disk_usage(context.workdir).free
    if needed > free:
        raise ConfigError(
            f"--workdir: {len(missing)} models and their checkpoints take {in_words(needed)}, "
            f"{context.workdir} has {in_words(free)} free"
        )
