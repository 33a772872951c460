"""The registries of attacks, defences, detectors, models and data sets, with installed plug-ins.

A plug-in is a Python distribution with an entry point in one of the groups `d3jax.attacks`,
`d3jax.defenses`, `d3jax.detections`, `d3jax.models` and `d3jax.datasets`. The entry point's name is
the name of the entry in YAML. Its object is a pair `(config class, constructor)`, as in the
registries of d3jax:

    [project.entry-points."d3jax.attacks"]
    stripes = "my_package.stripes:ENTRY"
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping
from typing import Any

from .. import attacks, data, defenses, models
from ..analysis.relearning import RelearnConfig
from ..analysis.robustness import RobustnessConfig
from ..core.errors import ConfigError
from ..evolution import EVOLUTIONS

Entry = tuple[type, Callable[..., Any]]
"""A config class, and a function that makes an attack, defence, model or data set of a config."""


def with_plugins(group: str, own: Mapping[str, Entry]) -> dict[str, Entry]:
    """Return a registry (a dict from name to entry) with the entries of installed plug-ins added.

    Raises `ConfigError` if a plug-in cannot be loaded, is not an entry, or has a name that is
    already taken.
    """
    found = dict(own)
    for point in importlib.metadata.entry_points(group=f"d3jax.{group}"):
        where = f"plug-in {point.value} (d3jax.{group})"
        if point.name in found:
            raise ConfigError(f"{where}: the name {point.name!r} is taken")
        try:
            entry = point.load()
        except Exception as error:
            raise ConfigError(f"{where}: {type(error).__name__}: {error}") from error
        pair = isinstance(entry, tuple) and len(entry) == 2
        if not pair or not isinstance(entry[0], type) or not callable(entry[1]):
            raise ConfigError(f"{where}: want a pair (config class, constructor)")
        found[point.name] = entry
    return found


ATTACKS = with_plugins("attacks", attacks.ATTACKS)
DATASETS = with_plugins("datasets", data.DATASETS)
DEFENSES = with_plugins("defenses", defenses.DEFENSES)
DETECTIONS = with_plugins("detections", defenses.DETECTIONS)
MODELS = with_plugins("models", models.MODELS)

EVALUATIONS = {"relearn": RelearnConfig, "robustness": RobustnessConfig}
"""The config classes of evaluations, by name; `graph.EVALUATED` has their nodes."""

REGISTRIES = {
    name: {key: cls for key, (cls, _) in registry.items()}
    for name, registry in (
        ("datasets", DATASETS),
        ("models", MODELS),
        ("attacks", ATTACKS),
        ("defenses", DEFENSES),
        ("detections", DETECTIONS),
    )
} | {"evaluations": EVALUATIONS, "evolutions": EVOLUTIONS}
"""The config classes by registry and name, for reading configs."""
