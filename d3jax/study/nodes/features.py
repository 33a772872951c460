"""The features node: compares a model's penultimate features of clean and triggered images."""

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
    """A node that projects the penultimate features of one model to points by PCA and t-SNE.

    The features are those of clean and triggered test images. `evidence` is given for an external
    model whose trigger is unknown. The triggered images then carry the trigger that this detection
    found.
    """

    victim: Node
    model: Node
    evidence: EvidenceNode | None = None

    kind = title = "features"
    optional = ("evidence",)

    @property
    def label(self) -> str:
        """Return the label of the model whose features are projected."""
        return self.model.label

    @property
    def what(self) -> str:
        """Return `features@<label of the model>`, the last part of a features node's name."""
        return f"features@{self.label}"

    @property
    def settings(self) -> dict[str, Any]:
        """Return the number of test images whose features are projected, for the recipe."""
        return {"features": self.context.config.features}

    def analyse(self, inputs: Inputs) -> Findings:
        """Return a model's features as PCA and t-SNE points, and how far the trigger moves them.

        The distances are those of triggered images from their clean twins. Arrays and facts are
        those of `results.node_arrays.FeatureArrays`.
        """
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
