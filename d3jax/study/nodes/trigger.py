"""The trigger node: prepares an attack's trigger and poisoned images before the training."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ...core.records import LogRecord
from ...core.types import Prepared
from ...training.loop import Hooks
from ...training.victim import prepare
from .base import Inputs, Node


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class TriggerNode(Node):
    """A node that prepares an attack before training: a trigger, and replaced training images.

    Some attacks need a clean model for it, the `surrogate`. Without one, and if the preparation
    does not use the architecture, studies of several architectures share the result.
    """

    surrogate: Node | None = None

    kind = title = "trigger"
    what: ClassVar[str] = "trigger"
    shared = True

    @property
    def seed(self) -> int:
        """Return the attack seed: attack runs that share a victim also share its trigger."""
        return self.run.attack_seed

    @property
    def recipe(self) -> dict[str, Any]:
        """Return the victim's recipe, without those parts that do not affect the trigger.

        Without a surrogate, they are the training of the model, and the model too unless the
        preparation uses it.
        """
        preparation = self.run.attack.preparation
        uses_model = preparation is not None and preparation.uses_model
        unused = () if self.surrogate else ("train",) if uses_model else ("model", "net", "train")
        return {key: value for key, value in self.run.recipe.items() if key not in unused}

    def like(self) -> Prepared:
        """Return the shapes and dtypes of the prepared trigger and images (`Prepared`)."""
        shape = (self.run.poisoned, *self.context.dataset.info.shape)
        preparation = self.run.attack.preparation
        replaces = preparation is not None and preparation.replaces
        images = jax.ShapeDtypeStruct(shape, jnp.uint8) if replaces else None
        return Prepared._make((jax.eval_shape(self.run.attack.init, self.run.key), images))

    def compute(self, inputs: Inputs, hooks: Hooks) -> tuple[Prepared, list[LogRecord]]:
        """Prepare an attack's trigger and poisoned images; return them and the log records."""
        clean = inputs.surrogate.variables if self.surrogate else None
        context, run = self.context, self.run
        return prepare(run.key, context.model, clean, context.dataset, run.attack, hooks)

    def count(self, inputs: Inputs, tree: Prepared) -> None:
        """Return None: a prepared trigger is not a model, so there are no test counts."""
