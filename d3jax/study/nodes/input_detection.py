"""The input-detection node: an input detector's scores for clean and triggered test images."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from ...core.random import stream
from ...core.records import LogRecord
from ...core.types import InputDetector, Scored
from ...data.batched import batched_map
from ...metrics.attack_success import triggered_images
from ...metrics.detection import detection_rates
from ...training.loop import Hooks
from ..context import reserved_settings, reserved_split
from .base import Artifact, Findings, Inputs, Node, detection_identity
from .sample_detection import scored_like


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class InputDetectionNode(Node):
    """A node that scores the clean, then the triggered test images by an input detector.

    The triggered images are those that count in the ASR: the attacker wants another class for them.
    """

    victim: Node
    detector: InputDetector

    kind, title, role = "input_detection", "detection", "detection"

    @property
    def settings(self) -> dict[str, Any]:
        """Return the settings of the study's reserved clean images, as data for the recipe."""
        return {"reserved": reserved_settings(self.context)}

    @functools.cached_property
    def counted(self) -> np.ndarray:
        """Return the rows [M] of the test images that are also scored with the trigger."""
        labels = np.asarray(self.context.dataset.test.labels)
        return np.flatnonzero(np.asarray(self.run.attack.relabel(labels)) != labels)

    def like(self) -> Scored:
        """Return the shapes and dtypes of the input detector's scores and flags (`Scored`)."""
        return scored_like(len(self.context.dataset.test.labels) + len(self.counted))

    def compute(self, inputs: Inputs, hooks: Hooks) -> tuple[Scored, list[LogRecord]]:
        """Score all test images by an input detector, and flag those above its threshold."""
        context, seed, victim = self.context, self.run.seed, inputs.victim.tree
        key = stream(jax.random.key(seed), "detection")
        given = (context.model, victim.variables)
        state = self.detector.prepare(key, *given, reserved_split(context, seed), hooks)
        score = functools.partial(self.detector.score, *given, state)

        def triggered(images: Any) -> jax.Array:
            return score(triggered_images(self.run.attack, victim.trigger, images))

        images, size = context.dataset.test.images, self.detector.batch_size
        parts = [batched_map(score, images, batch_size=size)]
        if len(self.counted):
            parts.append(batched_map(triggered, images[self.counted], batch_size=size))
        scores = np.concatenate(parts).astype(np.float32)
        return Scored(scores, scores > self.detector.threshold(state)), []

    def count(self, inputs: Inputs, tree: Scored) -> None:
        """Return None: a detector's scores are not a model, so there are no test counts."""

    def findings(self, inputs: Inputs, artifact: Artifact) -> Findings:
        """Return the detector's row of inputs.csv; for the first seed also scores and flags."""
        scores, flagged = map(np.asarray, artifact.tree)
        triggered = np.arange(len(scores)) >= len(self.context.dataset.test.labels)
        row = detection_identity(self) | detection_rates(scores, flagged, triggered)
        arrays = {"scores": scores, "flagged": flagged, "positive": triggered}
        shown = self.run.seed == self.context.config.seeds[0]
        return Findings({"inputs": [row | {"seconds": artifact.seconds}]}, arrays if shown else {})
