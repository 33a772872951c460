"""The inversion of one class's trigger, for a repair that stamps it."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from ...config.loading import to_mapping
from ...core.random import stream
from ...core.records import LogRecord
from ...inversion import Inversion, InversionConfig, invert, like, nothing
from ...runtime.distributed import broadcast_from_host0
from ...training.loop import Hooks
from ..context import reserved_split
from .base import Inputs, Node, recipe_hash
from .evidence import EvidenceNode


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class InversionNode(Node):
    """An inversion by `config` of the class `target`, or of the one that a detection flags.

    `target` is None where `detected`, the evidence of that detection, says which class it is.
    """

    victim: Node
    config: InversionConfig
    target: int | None = None
    detected: EvidenceNode | None = None

    kind = title = "inversion"
    shared = True

    @property
    def settings(self) -> dict[str, Any]:
        """The search, what says which class it is of, and the reserved images it sees."""
        after = self.detected.recipe if self.detected else None
        reserved = to_mapping(self.context.config.reserved)
        search = {"config": to_mapping(self.config), "label": self.target, "after": after}
        return search | {"reserved": reserved}

    @property
    def what(self) -> str:
        """A name that no other settings have."""
        whom = "flagged" if self.detected else f"class{self.target}"
        return f"inversion-{self.config.preset}-{whom}-{recipe_hash(self.settings)}"

    def like(self) -> Inversion:
        """Return the shapes of one trigger and its numbers."""
        return like(1, self.context.dataset.info.shape)

    def compute(self, inputs: Inputs, hooks: Hooks) -> tuple[Inversion, list[LogRecord]]:
        """Return the inversion with the reserved images; of no class where none is flagged."""
        context, seed, label = self.context, self.run.seed, self.target
        if self.detected:
            verdict = self.detected.detector.judge(inputs.detected.tree)
            label = int(broadcast_from_host0([verdict.target])[0])
            if label < 0:
                return nothing(context.dataset.info.shape), []
        key = stream(stream(jax.random.key(seed), "repair"), "inversion")
        given = (context.model, inputs.victim.variables, reserved_split(context, seed))
        return invert(key, *given, self.config, [label], hooks)

    def count(self, inputs: Inputs, tree: Inversion) -> None:
        """Return None: it is no model."""
