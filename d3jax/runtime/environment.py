"""What a result was computed with: versions, commit, device."""

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
    """Return the platform that computes. Raises `ConfigError` where the one that is asked for is not here."""
    try:
        return jax.default_backend()
    except (RuntimeError, AssertionError) as error:  # AssertionError: of a platform without plug-in
        asked = os.environ.get("JAX_PLATFORMS", "")
        raise ConfigError(
            f"JAX_PLATFORMS: {asked!r} is no platform that can compute here; unset it for the best "
            "device that is there, or set cpu"
        ) from error


def environment() -> dict[str, str | int]:
    """Versions of what computes, the commit of this package where it is a git checkout, and the devices."""
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
