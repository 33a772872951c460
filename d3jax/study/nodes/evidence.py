"""The evidence node: the work of a model detector on the victim, before any verdict."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax

from ...config.loading import to_mapping
from ...core.random import stream
from ...core.records import LogRecord
from ...core.types import ModelDetector
from ...training.loop import Hooks
from ..context import reserved_split
from .base import Inputs, Node, recipe_hash


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class EvidenceNode(Node):
    """The evidence that a model detector computes about the victim.

    Detections and repairs with equal settings share it.
    """

    victim: Node
    detector: ModelDetector

    kind, title = "evidence", "detection"
    label: ClassVar[str] = ""
    shared = True

    @property
    def settings(self) -> dict[str, Any]:
        """Return the settings of the reserved images."""
        return {"reserved": to_mapping(self.context.config.reserved)}

    @property
    def what(self) -> str:
        """Return `evidence-<detector>-<hash of its settings>`, the last part of the name."""
        made = {"config": to_mapping(self.chosen.config), **self.settings}
        return f"evidence-{self.chosen.name}-{recipe_hash(made)}"

    def like(self) -> Any:
        """Return the shapes and dtypes of the evidence."""
        info = self.context.dataset.info
        return self.detector.like(info.num_classes, info.shape)

    def compute(self, inputs: Inputs, hooks: Hooks) -> tuple[Any, list[LogRecord]]:
        """Return the detector's evidence and its log records."""
        context, seed = self.context, self.run.seed
        key = stream(jax.random.key(seed), "repair")
        given = (context.model, inputs.victim.variables, reserved_split(context, seed))
        return self.detector.detect(key, *given, hooks)

    def count(self, inputs: Inputs, tree: Any) -> None:
        """Return None, because the evidence is not a model."""
