"""Penultimate features of clean and triggered test images in a model, for the page."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...analysis.features import penultimate, project, separation
from ...core.images import as_float
from ...core.types import Variables
from ...data.reserved import draw_stratified
from ...inversion import detect
from .base import AnalysisNode, Findings, Inputs, Node
from .model_detection import chosen, stamped, trigger_at
from .report_samples import triggered_images

Stamp = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class FeaturesNode(AnalysisNode):
    """The features of one `model` of a run.

    With an `inversion`, for a model from elsewhere whose trigger is unknown, the triggered images
    carry the trigger that it found.
    """

    kind, title, optional = "features", "features", ("inversion",)
    victim: Node
    model: Node
    inversion: Node | None = None

    @property
    def what(self) -> str:
        """Named by the model."""
        return f"features-{self.model.label}"

    @property
    def label(self) -> str:
        """The model's label."""
        return self.model.label

    @property
    def needs(self) -> dict[str, Node]:
        """The model, the victim for its trigger, and the inversion."""
        inversion = {"inversion": self.inversion} if self.inversion else {}
        return {"victim": self.victim, "model": self.model, **inversion}

    @property
    def recipe(self) -> dict[str, Any]:
        """How many images."""
        return {"features": self.context.config.features}

    def analyse(self, inputs: Inputs) -> Findings:
        """Return points by PCA and t-SNE, and how far the triggered lie from their clean twins."""
        inverted = getattr(inputs, "inversion", None)
        if inverted:
            stamp, relabel = self._inverted(inverted.tree)
        else:
            stamp, relabel = self._attacked(inputs), self.run.attack.relabel
        variables = self.model.variables(inputs.model.tree)
        return self._features(variables, stamp, relabel, bool(inverted))

    def _attacked(self, inputs: Inputs) -> Stamp:
        def stamp(images: jax.Array) -> jax.Array:
            return triggered_images(self.run, inputs.victim.tree.trigger, images)

        return stamp

    def _inverted(self, tree: Any) -> tuple[Stamp, Stamp]:
        at = chosen(detect(tree.norms))
        label, trigger = int(tree.labels[at]), trigger_at(tree, at)

        def stamp(images: jax.Array) -> jax.Array:
            return stamped(trigger, as_float(jnp.asarray(images)))

        def relabel(labels: jax.Array) -> jax.Array:
            return jnp.full_like(labels, label)

        return stamp, relabel

    def _features(
        self, variables: Variables, stamp: Stamp, relabel: Stamp, inverted: bool
    ) -> Findings:
        images, labels = self._images()
        twins = np.flatnonzero(np.asarray(relabel(jnp.asarray(labels)) != labels))
        clean = penultimate(self.context.model, variables, images)
        triggered = clean[:0]
        if len(twins):
            triggered = penultimate(self.context.model, variables, stamp(images[twins]))
        labels, both = np.asarray(labels), np.concatenate([clean, triggered])
        arrays = {method: project(both, method) for method in ("pca", "tsne")}
        facts = separation(clean, triggered, labels, twins) | {"inverted": inverted}
        return Findings(arrays=arrays | {"labels": labels}, facts=facts)

    def _images(self) -> tuple[Any, Any]:
        """Return test images of all classes, and their labels."""
        images, labels = self.context.dataset.test
        count = min(self.context.config.features, len(labels))
        classes = self.context.dataset.info.num_classes
        rng = np.random.default_rng(0)
        rows = draw_stratified(np.asarray(labels), count, classes, rng)
        return images[rows], labels[rows]
