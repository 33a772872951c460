"""The evidence node: runs a model detector on the victim and saves its evidence for a verdict."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax

from ...config.loading import to_mapping
from ...core.random import stream
from ...core.records import LogRecord
from ...core.types import ModelDetector
from ...training.loop import Hooks
from ..context import reserved_settings, reserved_split
from .base import Inputs, Node, recipe_hash


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class EvidenceNode(Node):
    """A node that computes the evidence of a model detector about the victim, without a verdict.

    Detections and repairs with equal settings share it.
    """

    victim: Node
    detector: ModelDetector

    kind, title = "evidence", "detection"
    label: ClassVar[str] = ""
    shared = True

    @property
    def settings(self) -> dict[str, Any]:
        """Return the settings of the study's reserved clean images, as data for the recipe."""
        return {"reserved": reserved_settings(self.context)}

    @property
    def what(self) -> str:
        """Return `evidence-<detector>-<hash>`, the last part of an evidence node's name."""
        made = {"config": to_mapping(self.chosen.config), **self.settings}
        return f"evidence-{self.chosen.name}-{recipe_hash(made)}"

    def like(self) -> Any:
        """Return the shapes and dtypes of a model detector's evidence, to load a checkpoint."""
        info = self.context.dataset.info
        return self.detector.like(info.num_classes, info.shape)

    def compute(self, inputs: Inputs, hooks: Hooks) -> tuple[Any, list[LogRecord]]:
        """Run a model detector on the victim; return its evidence and the log records."""
        context, seed = self.context, self.run.seed
        key = stream(jax.random.key(seed), "repair")
        given = (context.model, inputs.victim.variables, reserved_split(context, seed))
        return self.detector.detect(key, *given, hooks)

    def count(self, inputs: Inputs, tree: Any) -> None:
        """Return None: a detector's evidence is not a model, so there are no test counts."""
