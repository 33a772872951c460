"""Penultimate features of clean and triggered test images in a model, for the page."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...analysis.features import compare_features
from ...core.images import as_float, as_levels
from ...core.types import Array
from ...data.reserved import draw_stratified
from ...metrics.attack_success import triggered_images
from .base import AnalysisNode, Findings, Inputs, Node
from .evidence import EvidenceNode
from .model_detection import to_try


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class FeaturesNode(AnalysisNode):
    """The features of one `model` of a run.

    With the `evidence` of a detection, for a model from elsewhere whose trigger is unknown, the
    triggered images carry the trigger that it found.
    """

    victim: Node
    model: Node
    evidence: EvidenceNode | None = None

    kind = title = "features"
    optional = ("evidence",)

    @property
    def label(self) -> str:
        """The model's label."""
        return self.model.label

    @property
    def what(self) -> str:
        """Named by the model."""
        return f"features@{self.label}"

    @property
    def settings(self) -> dict[str, Any]:
        """How many images."""
        return {"features": self.context.config.features}

    def analyse(self, inputs: Inputs) -> Findings:
        """Return points by PCA and t-SNE, and how far the triggered lie from their clean twins."""
        context, attack = self.context, self.run.attack
        stamp = partial(triggered_images, attack, inputs.victim.tree.trigger)
        relabel, inverted = attack.relabel, getattr(inputs, "evidence", None)
        if inverted and self.evidence:
            label, put = to_try(self.evidence.detector, inverted.tree)

            def stamp(images: Array) -> jax.Array:
                return as_levels(put(as_float(images))).astype(jnp.uint8)

            relabel = partial(jnp.full_like, fill_value=label)
        labels = np.asarray(context.dataset.test.labels)
        count, classes = min(context.config.features, len(labels)), context.dataset.info.num_classes
        rows = draw_stratified(labels, count, classes, np.random.default_rng(0))
        images = jnp.asarray(context.dataset.test.images)[rows]
        given = (self.model.network, inputs.model.variables, images, labels[rows])
        arrays, facts = compare_features(*given, stamp, relabel)
        return Findings(arrays=arrays, facts=facts | {"inverted": bool(inverted)})
