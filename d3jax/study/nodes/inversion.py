"""Trigger inversion of a model, for a detection or for a repair that needs a trigger."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from ...config.loading import to_mapping
from ...core.random import stream
from ...core.records import LogRecord
from ...defenses.repair.target import flagged_label
from ...inversion import Inversion, InversionConfig, invert, like, nothing
from ...runtime.distributed import broadcast_from_host0
from ...training.loop import Hooks
from ..context import reserved_split
from .base import Inputs, Node, recipe_hash


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class InversionNode(Node):
    """An inversion by `config` of one class, of the one that `detection` flags, or of all.

    `target` is a class; None with a `detection` stands for the flagged one, else for all.
    """

    victim: Node
    config: InversionConfig
    target: int | None = None
    detection: InversionNode | None = None

    kind = title = "inversion"
    shared = True

    @property
    def settings(self) -> dict[str, Any]:
        """The search, and the reserved images it sees."""
        after = to_mapping(self.detection.config) if self.detection else None
        reserved = to_mapping(self.context.config.reserved)
        search = {"config": to_mapping(self.config), "label": self.target, "after": after}
        return search | {"reserved": reserved}

    @property
    def what(self) -> str:
        """A name that no other settings have."""
        whom = "all" if self.target is None else f"class{self.target}"
        whom = "flagged" if self.detection else whom
        return f"inversion-{self.config.preset}-{whom}-{recipe_hash(self.settings)}"

    def like(self) -> Inversion:
        """Return the shapes of triggers and numbers, of as many classes as are searched."""
        info = self.context.dataset.info
        single = self.detection or self.target is not None
        return like(1 if single else info.num_classes, info.shape)

    def compute(self, inputs: Inputs, hooks: Hooks) -> tuple[Inversion, list[LogRecord]]:
        """Return the inversion with the reserved images; of no class where none is flagged."""
        context, seed = self.context, self.run.seed
        labels = None if self.target is None else [self.target]
        if self.detection:
            labels = broadcast_from_host0([flagged_label(inputs.detection.tree)])
            if labels[0] < 0:
                return nothing(context.dataset.info.shape), []
        key = stream(stream(jax.random.key(seed), "repair"), "inversion")
        given = (context.model, inputs.victim.variables, reserved_split(context, seed))
        return invert(key, *given, self.config, labels, hooks)

    def count(self, inputs: Inputs, tree: Inversion) -> None:
        """Return None: it is no model."""
