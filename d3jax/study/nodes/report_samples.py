"""The report-samples node: test images for the page, and a model's predictions on them."""

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
"""The number of test images in the page's grid, and the number for mean PSNR and SSIM."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class SamplesNode(AnalysisNode):
    """A node that predicts the classes of some clean and triggered test images by one model.

    The victim's node also contains the images themselves.
    """

    victim: Node
    model: Node

    kind, title = "report_samples", "sample images"

    @property
    def label(self) -> str:
        """Return the label of the model whose predictions of sample images are shown."""
        return self.model.label

    @property
    def what(self) -> str:
        """Return `samples@<label of the model>`, the last part of a samples node's name."""
        return f"samples@{self.label}"

    def analyse(self, inputs: Inputs) -> Findings:
        """Return one model's predictions of the sample images, as arrays for the page.

        The victim's node also returns the images, and how similar clean and triggered ones are.
        """
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
    """Return the first test images that the attacker wants misclassified, with labels and targets.

    If there are none, return the first test images. The result is images uint8 [n, H, W, C],
    labels [n] and targets [n], with n at most `count`.
    """
    images, labels = context.dataset.test
    wanted = run.attack.relabel(labels)
    candidates = np.flatnonzero(np.asarray(wanted != labels))
    rows = (candidates if candidates.size else np.arange(len(labels)))[:count]
    return images[rows], labels[rows], wanted[rows]
