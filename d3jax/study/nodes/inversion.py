"""Trigger inversion of a model, for a detection or for a repair that needs a trigger."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax

from ...config.loading import to_mapping
from ...core.random import stream
from ...defenses.repair.target import flagged_label
from ...inversion import Inversion, InversionConfig, invert, like, nothing
from ...runtime.distributed import broadcast_from_host0
from ...training.loop import Hooks, LogRecord
from ..context import reserved_split
from .base import Inputs, Node, cache_folder, recipe_hash, reserved_recipe


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class InversionNode(Node):
    """An inversion by `config` of one class, of the one that `detection` flags, or of all.

    `target` is a class; None with a `detection` stands for the flagged one, else for all.
    """

    kind, title = "inversion", "inversion"
    victim: Node
    config: InversionConfig
    target: int | None = None
    detection: InversionNode | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """Its settings as plain data."""
        after = to_mapping(self.detection.config) if self.detection else None
        return {"config": to_mapping(self.config), "label": self.target, "after": after}

    @property
    def what(self) -> str:
        """A name that no other settings have."""
        whom = "all" if self.target is None else f"class{self.target}"
        whom = "flagged" if self.detection else whom
        return f"inversion-{self.config.preset}-{whom}-{recipe_hash(self.settings)}"

    @property
    def recipe(self) -> dict[str, Any]:
        """The settings and what it begins with."""
        return {"inversion": self.settings, **reserved_recipe(self.context, self.run)}

    @property
    def folder(self) -> Path:
        """In the cache."""
        start = f"{self.context.dataset.info.name}-{self.run.label}-inversion-seed{self.run.seed}"
        return cache_folder(self.context) / f"{start}-{recipe_hash(self.recipe)}"

    @property
    def needs(self) -> dict[str, Node]:
        """The model, and the detection that names the class."""
        found = {"detection": self.detection} if self.detection else {}
        return {"victim": self.victim, **found}

    def like(self) -> Inversion:
        """Return the shapes of triggers and numbers, of as many classes as are searched."""
        info = self.context.dataset.info
        single = self.detection or self.target is not None
        return like(1 if single else info.num_classes, info.shape)

    def compute(self, inputs: Inputs, hooks: Hooks) -> tuple[Inversion, list[LogRecord]]:
        """Return the inversion with the reserved images; of no class where none is flagged."""
        context, run = self.context, self.run
        key = stream(stream(jax.random.key(run.seed), "repair"), "inversion")
        reserved = reserved_split(context, run.seed)
        given = (key, context.model, inputs.victim.tree.variables, reserved, self.config)
        labels = None if self.target is None else [self.target]
        if self.detection:
            flagged = broadcast_from_host0([flagged_label(inputs.detection.tree)])[0]
            if flagged < 0:
                return nothing(context.dataset.info.shape), []
            labels = [flagged]
        return invert(*given, labels, hooks)
