"""What an attack computes before the training: a trigger, and images that replace others."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from ...core.types import Prepared
from ...training.loop import Hooks, LogRecord
from ...training.victim import prepare
from .base import Inputs, Node, cache_folder, recipe_hash


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class TriggerNode(Node):
    """The preparation of an attack. Without a clean `surrogate` any architecture shares it."""

    kind, title = "trigger", "trigger"
    surrogate: Node | None = None

    what = "trigger"

    @property
    def name(self) -> str:
        """Runs that share a victim share its trigger."""
        return f"{self.run.name}/trigger"

    @property
    def recipe(self) -> dict[str, Any]:
        """The victim's, without the net where none is used."""
        unused = () if self.surrogate else ("model", "net", "train")
        return {key: value for key, value in self.run.recipe.items() if key not in unused}

    @property
    def folder(self) -> Path:
        """In the cache."""
        data = self.context.dataset.info.name
        name = f"{data}-{self.run.label}-trigger-{recipe_hash(self.recipe)}"
        return cache_folder(self.context) / name

    @property
    def needs(self) -> dict[str, Node]:
        """The clean model on which the attack finds its trigger."""
        return {"surrogate": self.surrogate} if self.surrogate else {}

    def like(self) -> Prepared:
        """Return the shapes of trigger and images."""
        images = None
        if self.run.attack.preparation.replaces:
            shape = (self.run.poisoned, *self.context.dataset.info.shape)
            images = jax.ShapeDtypeStruct(shape, jnp.uint8)
        return Prepared(jax.eval_shape(self.run.attack.init, self.run.key), images)

    def compute(self, inputs: Inputs, hooks: Hooks) -> tuple[Prepared, list[LogRecord]]:
        """Return what the attack prepares."""
        clean = inputs.surrogate.tree.variables if self.surrogate else None
        context, attack = self.context, self.run.attack
        return prepare(self.run.key, context.model, clean, context.dataset, attack, hooks)
