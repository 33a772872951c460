"""The model that everything begins with, where it was trained elsewhere."""

from __future__ import annotations

import dataclasses

from ...training.loop import Hooks, LogRecord
from ..external_model import trigger_for
from .base import Inputs
from .victim import Victim, VictimNode


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class ExternalModelNode(VictimNode):
    """A model read from a file, with the trigger of the study's attack."""

    kind, title = "external_model", "model"
    what, is_loop, group = "read", False, None

    def compute(self, inputs: Inputs, hooks: Hooks) -> tuple[Victim, list[LogRecord]]:
        """Return the model as it was read."""
        external, run = self.context.external, self.run
        trigger = trigger_for(external, run.attack, run.recipe, run.key)
        return Victim(external.variables, trigger), []
