"""The external-model node: a model that was trained elsewhere takes the place of the victim."""

from __future__ import annotations

from typing import ClassVar

from ...core.records import LogRecord
from ...interop.external_model import trigger_for
from ...training.loop import Hooks
from .base import Inputs
from .victim import Victim, VictimNode


class ExternalModelNode(VictimNode):
    """An external model, read from a file or checkpoint, with the trigger of the study's attack."""

    kind: ClassVar[str] = "external_model"
    title: ClassVar[str] = "model"
    what: ClassVar[str] = "read"
    is_loop: ClassVar[bool] = False
    group: ClassVar[None] = None

    def compute(self, inputs: Inputs, hooks: Hooks) -> tuple[Victim, list[LogRecord]]:
        """Return the model as it was read, with the trigger; there are no log records."""
        external, run = self.context.external, self.run
        assert external is not None  # this kind of node exists only for external models
        trigger = trigger_for(external, run.attack, run.recipe, run.key)
        return Victim(external.variables, trigger), []
