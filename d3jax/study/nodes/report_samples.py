"""Test images for the page, and the classes that a model sees in them."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...core.images import as_float, as_levels
from ...metrics.attack_success import predict
from ...metrics.image_similarity import likeness
from ..attack_run import AttackRun
from ..context import StudyContext
from .base import AnalysisNode, Findings, Inputs, Node

SHOWN, COMPARED = 8, 500
"""Test images in the page's grid, and those that PSNR and SSIM are means over."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class SamplesNode(AnalysisNode):
    """The predictions of one `model` of a run; with the victim's come the images themselves."""

    kind, title = "report_samples", "sample images"
    victim: Node
    model: Node

    @property
    def what(self) -> str:
        """Named by the model."""
        return f"samples-{self.model.label}"

    @property
    def label(self) -> str:
        """The model's label."""
        return self.model.label

    @property
    def needs(self) -> dict[str, Node]:
        """The model, and the victim for its trigger."""
        return {"victim": self.victim, "model": self.model}

    @property
    def recipe(self) -> dict[str, Any]:
        """How many images."""
        return {"shown": SHOWN, "compared": COMPARED}

    def analyse(self, inputs: Inputs) -> Findings:
        """Return the predictions, and for the victim images and their similarity."""
        trigger = inputs.victim.tree.trigger
        clean, labels, targets = shown_images(self.context, self.run, COMPARED)
        triggered = triggered_images(self.run, trigger, clean)
        variables = self.model.variables(inputs.model.tree)
        arrays = {
            f"predicted_{kind}": np.asarray(predict(self.context.model, variables, images[:SHOWN]))
            for kind, images in (("clean", clean), ("triggered", triggered))
        }
        if self.model is not self.victim:
            return Findings(arrays=arrays)
        parts = {"clean": clean, "triggered": triggered, "labels": labels, "targets": targets}
        arrays |= {name: np.asarray(part[:SHOWN]) for name, part in parts.items()}
        return Findings(arrays=arrays, facts=likeness(as_float(clean), as_float(triggered)))


def shown_images(
    context: StudyContext, run: AttackRun, count: int = SHOWN
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the first test images of which the attacker wants another class.

    Without such, the first of all. Returns images uint8 [n, H, W, C], labels [n], targets [n].
    """
    images, labels = context.dataset.test
    wanted = run.attack.relabel(labels)
    candidates = np.flatnonzero(np.asarray(wanted != labels))
    rows = (candidates if candidates.size else np.arange(len(labels)))[:count]
    return images[rows], labels[rows], wanted[rows]


def triggered_images(run: AttackRun, trigger: Any, images: jax.Array) -> jax.Array:
    """Return uint8 images with the attacker's trigger."""
    return as_levels(run.attack.stamp(trigger, as_float(images))).astype(jnp.uint8)
