"""The sample-detection node: a detector's scores for the training samples, and their quality.

The node reads the poison flags for its tables only. No score depends on them.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from ...core.random import stream
from ...core.records import LogRecord
from ...core.types import SampleDetector, Scored, Split
from ...metrics.detection import detection_rates
from ...training.loop import Hooks
from ..attack_run import poison_flags
from ..context import reserved_settings, reserved_split
from .base import Artifact, Findings, Inputs, Node, detection_identity
from .first_stage import released_set


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class SampleDetectionNode(Node):
    """A node that scores the images of the poisoned training set by a sample detector.

    The detector reads the victim's variables, or those of its `first_stage` if it has one.
    `prepared` is the preparation of the attack, if it has one.
    """

    victim: Node
    detector: SampleDetector
    first_stage: Node | None = None
    prepared: Node | None = None

    kind, title, role = "sample_detection", "detection", "detection"

    @property
    def settings(self) -> dict[str, Any]:
        """Return what says which images are reserved and which are scored, for the recipe."""
        given = {"reserved": reserved_settings(self.context)}
        return given | ({"scored": len(self.scored_rows)} if self.context.config.scored else {})

    @functools.cached_property
    def scored_rows(self) -> np.ndarray:
        """Return the rows of the training images that are scored, in ascending order."""
        size, count = len(self.context.dataset.train.labels), self.context.config.scored
        if not count:
            return np.arange(size)
        key = stream(jax.random.key(self.run.seed), "scored")
        return np.sort(np.asarray(jax.random.permutation(key, size))[:count])

    def samples(self, inputs: Inputs) -> Split:
        """Return the images and labels of the poisoned training set that are scored."""
        released, _ = released_set(self, inputs)
        return Split(*(np.asarray(part)[self.scored_rows] for part in released))

    def like(self) -> Scored:
        """Return the shapes and dtypes of the sample detector's scores and flags (`Scored`)."""
        return scored_like(len(self.scored_rows))

    def compute(self, inputs: Inputs, hooks: Hooks) -> tuple[Scored, list[LogRecord]]:
        """Score and flag images of the poisoned training set by a sample detector."""
        context, seed, samples = self.context, self.run.seed, self.samples(inputs)
        variables = inputs.first_stage.tree if self.first_stage else inputs.victim.variables
        key = stream(jax.random.key(seed), "detection")
        given = (context.model, variables, samples, reserved_split(context, seed), hooks)
        return Scored(*map(np.asarray, self.detector.score(key, *given))), []

    def count(self, inputs: Inputs, tree: Scored) -> None:
        """Return None: a detector's scores are not a model, so there are no test counts."""

    def findings(self, inputs: Inputs, artifact: Artifact) -> Findings:
        """Return the detector's row of samples.csv; for the first seed also scores and flags."""
        scores, flagged = map(np.asarray, artifact.tree)
        poisoned = poison_flags(self.context, self.run)[self.scored_rows]
        first = getattr(inputs, "first_stage", None)
        seconds = artifact.seconds + (first.seconds if first else 0.0)
        row = detection_identity(self) | detection_rates(scores, flagged, poisoned)
        arrays = {}
        if self.run.seed == self.context.config.seeds[0]:
            arrays = {"scores": scores, "flagged": flagged, "positive": poisoned}
            for side, rows in extremes(scores).items():
                arrays[side] = np.asarray(self.samples(inputs).images[rows])
        return Findings({"samples": [row | {"seconds": seconds}]}, arrays)


def scored_like(size: int) -> Scored:
    """Return the shapes and dtypes of scores and flags (`Scored`) of `size` samples."""
    return Scored._make(jax.ShapeDtypeStruct((size,), kind) for kind in (np.float32, np.bool_))


EXTREMES = 10
"""Images with the highest scores, and with the lowest, that the report page shows."""


def extremes(scores: np.ndarray) -> dict[str, np.ndarray]:
    """Return the row numbers of the most and the least suspicious samples, in this order."""
    order = np.argsort(-np.nan_to_num(scores, nan=-np.inf), kind="stable")
    return {"most": order[:EXTREMES], "least": order[::-1][:EXTREMES]}
