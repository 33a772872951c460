"""Test images for the page, and the classes that a model sees in them."""

from __future__ import annotations

import dataclasses

import numpy as np

from ...core.images import as_float
from ...core.types import Array
from ...metrics.attack_success import predict, triggered_images
from ...metrics.image_similarity import likeness
from ..attack_run import AttackRun
from ..context import StudyContext
from .base import AnalysisNode, Findings, Inputs, Node

SHOWN, COMPARED = 8, 500
"""Test images in the page's grid, and those that PSNR and SSIM are means over."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class SamplesNode(AnalysisNode):
    """The predictions of one `model` of a run; with the victim's come the images themselves."""

    victim: Node
    model: Node

    kind, title = "report_samples", "sample images"

    @property
    def label(self) -> str:
        """The model's label."""
        return self.model.label

    @property
    def what(self) -> str:
        """Named by the model."""
        return f"samples@{self.label}"

    def analyse(self, inputs: Inputs) -> Findings:
        """Return the predictions, and for the victim images and their similarity."""
        clean, labels, targets = shown_images(self.context, self.run, COMPARED)
        triggered = triggered_images(self.run.attack, inputs.victim.tree.trigger, clean)
        given = (self.model.network, inputs.model.variables)
        arrays = {
            "predicted_clean": np.asarray(predict(*given, clean[:SHOWN])),
            "predicted_triggered": np.asarray(predict(*given, triggered[:SHOWN])),
        }
        if self.model is not self.victim:
            return Findings(arrays=arrays)
        parts = {"clean": clean, "triggered": triggered, "labels": labels, "targets": targets}
        arrays |= {name: np.asarray(part[:SHOWN]) for name, part in parts.items()}
        return Findings(arrays=arrays, facts=likeness(as_float(clean), as_float(triggered)))


def shown_images(
    context: StudyContext, run: AttackRun, count: int = SHOWN
) -> tuple[Array, Array, Array]:
    """Return the first test images of which the attacker wants another class.

    Without such, the first of all. Returns images uint8 [n, H, W, C], labels [n], targets [n].
    """
    images, labels = context.dataset.test
    wanted = run.attack.relabel(labels)
    candidates = np.flatnonzero(np.asarray(wanted != labels))
    rows = (candidates if candidates.size else np.arange(len(labels)))[:count]
    return images[rows], labels[rows], wanted[rows]
