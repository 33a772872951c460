"""Nodes that read an external model, or one that d3jax exported, in place of the victim."""

from __future__ import annotations

from typing import Any, ClassVar

from ...core.records import LogRecord
from ...core.types import Prepared
from ...interop.external_model import trigger_for
from ...training.loop import Hooks
from ..attack_run import AttackRun
from .base import Inputs
from .trigger import TriggerNode
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
        external = self.run.external
        assert external is not None  # this kind of node exists only for external models
        return Victim(external.variables, stored_trigger(self.run)), []


class StoredModelNode(ExternalModelNode):
    """A node that reads a victim that d3jax trained and exported, whose training set is known."""

    kind: ClassVar[str] = "stored_model"


class StoredTriggerNode(TriggerNode):
    """A node that reads the trigger that d3jax exported with a victim, in place of preparing it."""

    kind: ClassVar[str] = "stored_trigger"
    what: ClassVar[str] = "read trigger"

    def compute(self, inputs: Inputs, hooks: Hooks) -> tuple[Prepared, list[LogRecord]]:
        """Return the stored trigger as a `Prepared`, with no log records."""
        return Prepared._make((stored_trigger(self.run), None)), []


def stored_trigger(run: AttackRun) -> Any:
    """Return the trigger of an attack run on an external model (see `trigger_for`)."""
    assert run.external is not None  # the nodes of this file exist only for external models
    return trigger_for(run.external, run.attack, run.recipe, run.key)
