"""Conversion of PyTorch's tensors to d3jax's variables and back, with a report of what matched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from ..config.fields import names
from ..core.errors import CheckpointError
from ..core.types import Model, Variables
from ..runtime.checkpoint import describe, flatten, unflatten
from .architecture import looks_like, unwrapped
from .names import ALIASES, NAMES, Entry

SHOWN = 6
"""Most names that a message shows."""


class Report(NamedTuple):
    """The match of a file's tensors with an architecture: matched, missing, extra, misshapen.

    `matched` lists (PyTorch's name, d3jax's names, shape). `missing` lists what the net needs and
    the file lacks, and `extra` what the file has and the net does not. `misshapen` lists tensors of
    another shape: (PyTorch's name, shape in the file, expected shape).
    """

    matched: list[tuple[str, tuple[str, ...], tuple[int, ...]]]
    missing: list[str]
    extra: list[str]
    misshapen: list[tuple[str, tuple[int, ...], tuple[int, ...]]]

    @property
    def text(self) -> str:
        """Return one line: how many tensors of a file match, and which do not."""
        parts = [f"{len(self.matched)} tensors match"]
        for what, found in (("missing", self.missing), ("not in the net", self.extra)):
            if found:
                parts.append(f"{len(found)} {what}: {_some(found)}")
        if self.extra and not self.missing:
            parts.append("model.ignore leaves tensors out by globs")
        if self.misshapen:
            shapes = [
                f"{name} {list(theirs)} for {list(ours)}" for name, theirs, ours in self.misshapen
            ]
            parts.append(f"{len(shapes)} of another shape: {_some(shapes)}")
        return "; ".join(parts)


def _some(found: list[str]) -> str:
    return names(found[:SHOWN]) + (f" and {len(found) - SHOWN} more" if len(found) > SHOWN else "")


def entries_of(model: str, config: Any, like: Variables) -> list[Entry]:
    """Return the `Entry` of each tensor that an architecture with this config has in PyTorch.

    `like` holds the variables of the net, or their shapes. Raises `CheckpointError` for an
    architecture whose PyTorch names d3jax does not know.
    """
    if model not in NAMES:
        raise CheckpointError(
            f"{model}: d3jax knows no PyTorch names for it, only for {names(NAMES)}"
        )
    there = describe(like)
    return [entry for entry in NAMES[model](config) if all(name in there for name in entry.ours)]


def from_torch(
    tensors: Mapping[str, np.ndarray], model: str, config: Any, net: Model, origin: str
) -> tuple[Variables, Report]:
    """Convert tensors with PyTorch's names to d3jax's `Variables`; also return a `Report`.

    `net` is the architecture `model` with `config`. Raises `CheckpointError`, which begins with
    `origin`, where a tensor is missing, superfluous, of another shape or not finite, or where a
    variance is negative.
    """
    like = jax.eval_shape(net.init, jax.random.key(0))
    shapes = {name: leaf.shape for name, leaf in describe(like).items()}
    entries = entries_of(model, config, like)
    given = _renamed(tensors, model)
    found: dict[str, np.ndarray] = {}
    report = Report([], [], sorted(set(given) - {entry.theirs for entry in entries}), [])
    for entry in entries:
        if entry.theirs not in given:
            report.missing.append(entry.theirs)
            continue
        value, wanted = np.asarray(given[entry.theirs]), [shapes[name] for name in entry.ours]
        expected = entry.join(*(np.zeros(shape, np.bool_) for shape in wanted)).shape
        if value.shape != expected:
            report.misshapen.append((entry.theirs, value.shape, expected))
            continue
        found |= zip(entry.ours, entry.split(value.astype(np.float32)), strict=True)
        report.matched.append((entry.theirs, entry.ours, value.shape))
    if report.missing or report.extra or report.misshapen:
        raise CheckpointError(
            f"{origin} is not a {model} of these settings: {report.text}"
            f"{_guess(model, entries, given)}"
        )
    check_weights({name: given[name] for name, *_ in report.matched}, origin)
    return unflatten(
        {name: jax.numpy.asarray(value) for name, value in found.items()}, like
    ), report


def _guess(model: str, entries: list[Entry], given: Mapping[str, Any]) -> str:
    """Return the end of an error message: the architecture that a file's tensor names suggest.

    Where no name is a wanted one, it also shows the first names found and expected.
    """
    looks = looks_like(given)
    words = f"; by its names it is {looks}" if looks not in ("", model) else ""
    if not set(given) & {entry.theirs for entry in entries}:
        wanted = names([entry.theirs for entry in entries][:3])
        words += f"; found {names(list(given)[:3])}, expected {wanted}"
    return words


def _is_float(value: Any) -> bool:
    return jax.numpy.issubdtype(np.asarray(value).dtype, jax.numpy.floating)


def check_weights(tensors: Mapping[str, Any], origin: str) -> None:
    """Raise `CheckpointError` where a weight is no float or not finite, or a variance is negative.

    Variances are recognised by d3jax's or PyTorch's name.
    """
    if broken := [name for name, value in tensors.items() if not _is_float(value)]:
        raise CheckpointError(
            f"{origin} holds weights that are integers, as of a quantised model: {_some(broken)}"
        )
    if broken := [
        name for name, value in tensors.items() if not np.isfinite(np.asarray(value)).all()
    ]:
        raise CheckpointError(f"{origin} holds weights that are NaN or infinite: {_some(broken)}")
    variances = {
        name: value for name, value in tensors.items() if name.endswith((".var", ".running_var"))
    }
    if broken := [name for name, value in variances.items() if (np.asarray(value) < 0).any()]:
        raise CheckpointError(f"{origin} holds negative variances: {_some(broken)}")


def to_torch(variables: Variables, model: str, config: Any) -> dict[str, np.ndarray]:
    """Convert d3jax's variables of a model to arrays with PyTorch's names and layout."""
    flat = {name: np.asarray(value) for name, value in flatten(variables).items()}
    return {
        entry.theirs: np.array(entry.join(*(flat[name] for name in entry.ours)), order="C")
        for entry in entries_of(model, config, variables)
    }


def _renamed(tensors: Mapping[str, np.ndarray], model: str) -> dict[str, np.ndarray]:
    """Return a file's weight tensors under the PyTorch names that `NAMES` has for an architecture.

    Prefixes of wrappers are removed, and other known names are replaced.
    """
    found = unwrapped(tensors)
    for old, new in ALIASES.get(model, ()):
        found = {name.replace(old, new): value for name, value in found.items()}
    return found
