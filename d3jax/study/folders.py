"""Functions that create and check the folders a study writes to, before any work starts."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax

from ..core.errors import ConfigError, names
from ..core.paths import user_path
from ..results.tables import ALWAYS, OTHERS
from ..runtime.files import check_writable
from ..runtime.main_memory import in_words
from .context import StudyContext
from .nodes.base import Node

STATES = 6
"""Size of a loop's rolling checkpoints, in models.

They hold two states, each with weights, momenta and averages.
"""


WRITTEN = (
    *("config.yaml", "environment.json", "report.html", "figures"),
    *(f"{table}.csv" for table in (*ALWAYS, *OTHERS)),
)
"""What a study replaces in its run folder. study.json and nodes/ mark a folder as one."""


def make_folders(context: StudyContext, nodes: Sequence[Node]) -> None:
    """Create the run folder, cache and profile folder of a study, and check the free disk space.

    Raises `ConfigError` if a folder cannot be made or written, or if the disk has too little space.
    """
    check_own(context.workdir)
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
    """Check that a study's folders can be made and written, without creating any of them.

    Raises `ConfigError` if one cannot.
    """
    check_own(context.workdir)
    for setting, path in _folders(context):
        path = path.absolute()
        there = next(one for one in (path, *path.parents) if os.path.lexists(one))
        if not there.is_dir():
            raise ConfigError(f"{setting}: {path} cannot be made ({there} is no folder)")
        if not os.access(there, os.W_OK | os.X_OK):
            raise ConfigError(f"{setting}: {path} cannot be written (no permission in {there})")


def check_own(workdir: Path) -> None:
    """Raise `ConfigError` if a folder holds files that a study would replace but did not write."""
    marks = [workdir / name for name in ("study.json", "nodes")]
    found = [name for name in WRITTEN if os.path.lexists(workdir / name)]
    if found and not any(map(os.path.lexists, marks)):
        raise ConfigError(
            f"--workdir: {workdir} is not a run folder of d3jax, but holds {names(found)}, which a "
            "study would replace; name an empty folder, or one that does not exist"
        )


def _folders(context: StudyContext) -> Iterator[tuple[str, Path]]:
    """Yield (setting, path) for the run folder, cache and profile folder of a study."""
    yield "--workdir", context.workdir
    for setting, folder in (("--cache", context.config.cache), ("--profile", context.profile)):
        if folder:
            yield setting, user_path(folder, setting)


def _check_space(context: StudyContext, nodes: Sequence[Node]) -> None:
    """Raise `ConfigError` if the models that a study has yet to compute do not fit on the disk."""
    shapes = jax.eval_shape(context.model.init, jax.random.key(0))
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    models = [node for node in nodes if not node.analysis]
    # `checkpoint.exists` would wait for all processes, but only the primary one runs this.
    missing = [node for node in models if not (node.folder / "model").exists()]
    loops = len(missing) if context.together else min(1, len(missing))
    needed, free = (len(missing) + STATES * loops) * size, shutil.disk_usage(context.workdir).free
    if needed > free:
        raise ConfigError(
            f"--workdir: {len(missing)} models and their checkpoints take {in_words(needed)}, "
            f"{context.workdir} has {in_words(free)} free"
        )
