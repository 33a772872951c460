"""The model that everything begins with, where it was trained elsewhere."""

from __future__ import annotations

from ...core.records import LogRecord
from ...interop.external_model import trigger_for
from ...training.loop import Hooks
from .base import Inputs
from .victim import Victim, VictimNode


class ExternalModelNode(VictimNode):
    """A model read from a file, with the trigger of the study's attack."""

    kind, title, what, is_loop, group = "external_model", "model", "read", False, None

    def compute(self, inputs: Inputs, hooks: Hooks) -> tuple[Victim, list[LogRecord]]:
        """Return the model as it was read."""
        external, run = self.context.external, self.run
        trigger = trigger_for(external, run.attack, run.recipe, run.key)
        return Victim(external.variables, trigger), []
