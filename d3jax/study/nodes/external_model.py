"""The model that everything begins with, where it was trained elsewhere."""

from __future__ import annotations

from typing import ClassVar

from ...core.records import LogRecord
from ...interop.external_model import trigger_for
from ...training.loop import Hooks
from .base import Inputs
from .victim import Victim, VictimNode


class ExternalModelNode(VictimNode):
    """A model read from a file, with the trigger of the study's attack."""

    kind: ClassVar[str] = "external_model"
    title: ClassVar[str] = "model"
    what: ClassVar[str] = "read"
    is_loop: ClassVar[bool] = False
    group: ClassVar[None] = None

    def compute(self, inputs: Inputs, hooks: Hooks) -> tuple[Victim, list[LogRecord]]:
        """Return the model as it was read."""
        external, run = self.context.external, self.run
        assert external is not None  # it is what the node is of
        trigger = trigger_for(external, run.attack, run.recipe, run.key)
        return Victim(external.variables, trigger), []
