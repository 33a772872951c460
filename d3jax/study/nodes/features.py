"""Penultimate features of clean and triggered test images in a model, for the page."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from ...analysis.features import compare_features
from ...core.images import as_float
from ...data.reserved import draw_stratified
from ...inversion import detect, stamp_levels, trigger_at, trigger_to_try
from ...metrics.attack_success import triggered_images
from .base import AnalysisNode, Findings, Inputs, Node


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class FeaturesNode(AnalysisNode):
    """The features of one `model` of a run.

    With an `inversion`, for a model from elsewhere whose trigger is unknown, the triggered images
    carry the trigger that it found.
    """

    victim: Node
    model: Node
    inversion: Node | None = None

    kind = title = "features"
    optional = ("inversion",)

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
        relabel, inverted = attack.relabel, getattr(inputs, "inversion", None)
        if inverted:
            at = trigger_to_try(detect(inverted.tree.norms))
            trigger, label = trigger_at(inverted.tree, at), inverted.tree.labels[at]

            def stamp(images):
                return stamp_levels(trigger, as_float(images))

            relabel = partial(jnp.full_like, fill_value=label)
        labels = np.asarray(context.dataset.test.labels)
        count, classes = min(context.config.features, len(labels)), context.dataset.info.num_classes
        rows = draw_stratified(labels, count, classes, np.random.default_rng(0))
        images = jnp.asarray(context.dataset.test.images)[rows]
        given = (context.model, inputs.model.variables, images, labels[rows])
        arrays, facts = compare_features(*given, stamp, relabel)
        return Findings(arrays=arrays, facts=facts | {"inverted": bool(inverted)})
