"""The environment of a computation: library versions, git commit and devices."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import jax

from ..core.errors import ConfigError
from .compilation import uses_onednn

_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def backend() -> str:
    """Return the name of the platform that JAX computes on, such as "cpu" or "gpu".

    Raises `ConfigError` if the platform in JAX_PLATFORMS is not available.
    """
    try:
        return jax.default_backend()
    except (RuntimeError, AssertionError) as error:  # AssertionError: the plug-in is missing
        asked = os.environ.get("JAX_PLATFORMS", "")
        raise ConfigError(
            f"JAX_PLATFORMS: {asked!r} is no platform that can compute here; unset it to use the "
            "best device available, or set it to cpu"
        ) from error


def environment() -> dict[str, str | int]:
    """Return the versions of d3jax and its libraries, the git commit and the devices, as a dict.

    The commit is "unknown" if the package is not in a git checkout.
    """
    versions = {name: _version(name) for name in ("d3jax", *_LIBRARIES)}
    devices = jax.devices()
    return {
        **versions,
        "python": platform.python_version(),
        "commit": _commit(),
        "backend": devices[0].platform,
        "device": devices[0].device_kind,
        "devices": len(devices),
        "machine": platform.machine(),
        "onednn": uses_onednn(),
    }


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    """Return the git commit of d3jax's checkout, with "+changes" if tracked files were changed."""

    def git(*words: str) -> str:
        return subprocess.run(
            ("git", *words), cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + (
            "+changes" if git("status", "--porcelain", "--untracked-files=no") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
