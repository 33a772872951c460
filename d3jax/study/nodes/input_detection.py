"""The input-detection node: an input detector's scores for clean and triggered test images.

It also measures the model that answers only inputs which the detector does not flag.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from ...core.random import stream
from ...core.records import LogRecord
from ...core.types import InputDetector
from ...data.batched import batched_map
from ...metrics.attack_success import predict, triggered_images
from ...metrics.detection import detection_rates
from ...training.loop import Hooks
from ..context import reserved_settings, reserved_split
from .base import Artifact, Findings, Inputs, Node, detection_identity
from .sample_detection import extremes, scored_like


class InputScores(NamedTuple):
    """Scores, flags and predicted classes [N + M] of N clean and M triggered test images."""

    scores: np.ndarray
    flagged: np.ndarray
    predicted: np.ndarray


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

    def like(self) -> InputScores:
        """Return the shapes and dtypes of the input detector's results (`InputScores`)."""
        size = len(self.context.dataset.test.labels) + len(self.counted)
        return InputScores(*scored_like(size), jax.ShapeDtypeStruct((size,), np.int32))  # pyright: ignore[reportArgumentType]

    def compute(self, inputs: Inputs, hooks: Hooks) -> tuple[InputScores, list[LogRecord]]:
        """Score all test images by an input detector, and flag those above its threshold."""
        context, seed, victim = self.context, self.run.seed, inputs.victim.tree
        key = stream(jax.random.key(seed), "detection")
        given = (context.model, victim.variables)
        state = self.detector.prepare(key, *given, reserved_split(context, seed), hooks)

        def judge(images: Any) -> tuple[jax.Array, jax.Array]:
            return self.detector.score(*given, state, images), predict(*given, images)

        def triggered(images: Any) -> tuple[jax.Array, jax.Array]:
            return judge(triggered_images(self.run.attack, victim.trigger, images))

        images, size = context.dataset.test.images, self.detector.batch_size
        parts = [batched_map(judge, images, batch_size=size)]
        if len(self.counted):
            parts.append(batched_map(triggered, images[self.counted], batch_size=size))
        scores, predicted = (np.concatenate(part) for part in zip(*parts, strict=True))
        scores = scores.astype(np.float32)
        flagged = scores > self.detector.threshold(state)
        return InputScores(scores, flagged, predicted.astype(np.int32)), []

    def count(self, inputs: Inputs, tree: InputScores) -> None:
        """Return None: a detector's scores are not a model, so there are no test counts."""

    def findings(self, inputs: Inputs, artifact: Artifact) -> Findings:
        """Return the detector's row of inputs.csv; for the first seed also scores and flags."""
        scores, flagged, predicted = map(np.asarray, artifact.tree)
        triggered = np.arange(len(scores)) >= len(self.context.dataset.test.labels)
        row = detection_identity(self) | detection_rates(scores, flagged, triggered)
        row |= self.rejecting(flagged, predicted) | {"seconds": artifact.seconds}
        arrays = {}
        if self.run.seed == self.context.config.seeds[0]:
            arrays = {"scores": scores, "flagged": flagged, "positive": triggered}
            for side, rows in extremes(scores).items():
                arrays[side] = self.images(inputs, rows)
        return Findings({"inputs": [row]}, arrays)

    def images(self, inputs: Inputs, rows: np.ndarray) -> np.ndarray:
        """Return the uint8 images of rows of the scores: clean ones, then triggered ones."""
        test = np.asarray(self.context.dataset.test.images)
        places = np.concatenate([np.arange(len(test)), self.counted])[rows]
        clean, trigger = test[places], inputs.victim.tree.trigger
        stamped = np.asarray(triggered_images(self.run.attack, trigger, clean))
        return np.where((rows < len(test))[:, None, None, None], clean, stamped)

    def rejecting(self, flagged: np.ndarray, predicted: np.ndarray) -> dict[str, Any]:
        """Return ACC and ASR of the model that rejects flagged inputs, by column.

        A rejected clean image counts as a wrong prediction, and a rejected triggered image as none.
        """
        labels = np.asarray(self.context.dataset.test.labels)
        wanted = np.asarray(self.run.attack.relabel(labels))[self.counted]
        right = np.concatenate([labels, wanted]) == predicted
        answered, size = right & ~flagged, len(labels)
        return {
            "acc_rejecting": float(answered[:size].mean()),
            "asr_rejecting": float(answered[size:].mean()) if len(wanted) else None,
        }
