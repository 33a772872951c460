"""The external-model node: reads a model that was trained elsewhere, in place of the victim."""

from __future__ import annotations

from typing import ClassVar

from ...core.records import LogRecord
from ...interop.external_model import trigger_for
from ...training.loop import Hooks
from .base import Inputs
from .victim import Victim, VictimNode


class ExternalModelNode(VictimNode):
    """A node that reads an external model from a file or checkpoint, in place of the victim.

    It holds the trigger of the study's attack too.
    """

    kind: ClassVar[str] = "external_model"
    title: ClassVar[str] = "model"
    what: ClassVar[str] = "read"
    is_loop: ClassVar[bool] = False
    group: ClassVar[None] = None

    def compute(self, inputs: Inputs, hooks: Hooks) -> tuple[Victim, list[LogRecord]]:
        """Return the external model and the attack's trigger as a `Victim`, with no log records."""
        external, run = self.context.external, self.run
        assert external is not None  # this kind of node exists only for external models
        trigger = trigger_for(external, run.attack, run.recipe, run.key)
        return Victim(external.variables, trigger), []
