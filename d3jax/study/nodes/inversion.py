"""The inversion node: inverts the trigger of one class of the victim, for repairs that stamp it."""

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
from ..context import reserved_settings, reserved_split
from .base import Inputs, Node, recipe_hash
from .evidence import EvidenceNode


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class InversionNode(Node):
    """A node that inverts the trigger of one class of the victim by the settings `config`.

    The class is `target`, or with `target` None the class that a detection flags. `detected` is
    then the evidence of that detection.
    """

    victim: Node
    config: InversionConfig
    target: int | None = None
    detected: EvidenceNode | None = None

    kind = title = "inversion"
    shared = True

    @property
    def settings(self) -> dict[str, Any]:
        """Return the settings that determine an inverted trigger, as plain data for the recipe.

        They are those of the inversion, of its class and of the reserved images.
        """
        after = self.detected.recipe if self.detected else None
        reserved = reserved_settings(self.context)
        search = {"config": to_mapping(self.config), "label": self.target, "after": after}
        return search | {"reserved": reserved}

    @property
    def what(self) -> str:
        """Return `inversion-<preset>-<class>-<hash>`, the last part of an inversion node's name."""
        whom = "flagged" if self.detected else f"class{self.target}"
        return f"inversion-{self.config.preset}-{whom}-{recipe_hash(self.settings)}"

    def like(self) -> Inversion:
        """Return the shapes and dtypes of an `Inversion` of one class, to load a checkpoint."""
        return like(1, self.context.dataset.info.shape)

    def compute(self, inputs: Inputs, hooks: Hooks) -> tuple[Inversion, list[LogRecord]]:
        """Invert the trigger of one class on the reserved images; return it and log records.

        Return an empty inversion if the detection flags no class.
        """
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
        """Return None: an inverted trigger is not a model, so there are no test counts."""
