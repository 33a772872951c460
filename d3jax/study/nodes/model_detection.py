"""The model-detection node: a model detector's verdict on the victim, compared with the truth."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from ...core.images import as_float, as_levels
from ...core.records import Row
from ...core.types import Array, ModelDetector, Verdict
from ..attack_run import targets_of
from .base import AnalysisNode, Findings, Inputs
from .evidence import EvidenceNode
from .report_samples import shown_images


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class ModelDetectionNode(AnalysisNode):
    """A node that judges by a model detector's evidence whether the victim is backdoored.

    `choice` is the detection's entry in the config.
    """

    evidence: EvidenceNode

    kind, title, role = "model_detection", "detection", "detection"
    outcome_of = "evidence"

    @property
    def what(self) -> str:
        """Return `detection@<label>`, the last part of a model-detection node's name."""
        return f"detection@{self.label}"

    @property
    def settings(self) -> dict[str, Any]:
        """Return the flags `external` (unknown training) and `pictures` (draw for the page)."""
        shown = self.run.seed == self.context.config.seeds[0]
        return {"external": not self.run.knows_training, "pictures": shown}

    def analyse(self, inputs: Inputs) -> Findings:
        """Judge a detector's evidence; return rows of detections.csv and evidence.csv.

        For the first seed, also return arrays for the page.
        """
        tree, detector = inputs.evidence.tree, self.evidence.detector
        verdict = detector.judge(tree)
        tables = self._tables(verdict, inputs.evidence.seconds)
        if not self.settings["pictures"]:
            return Findings(tables)
        arrays = {"scores": verdict.scores, "flagged": verdict.flagged, **verdict.columns}
        if detector.trigger:
            arrays |= self._pictures(tree, verdict)
        facts = {"statistic": verdict.statistic, "threshold": verdict.threshold, **verdict.facts}
        return Findings(tables, arrays, facts)

    def _tables(self, verdict: Verdict, seconds: float) -> dict[str, list[Row]]:
        run, info = self.run, self.context.dataset.info
        unknown = self.settings["external"] and not run.attacked
        targets = None if unknown else targets_of(run, info.num_classes)
        flagged = np.flatnonzero(verdict.flagged).tolist()
        where = {
            "dataset": info.name,
            "model": self.context.config.model.name,
            "attack": run.label,
            "seed": run.seed,
            "detection": self.label,
        }
        detection = where | {
            "flagged": bool(flagged),
            "flagged_classes": _named(flagged, info.classes),
            "targets": None if targets is None else _named(targets, info.classes),
            "n_flagged": len(flagged),
            "n_targets": None if targets is None else len(targets),
            "n_found": None if targets is None else len(set(flagged) & set(targets)),
            "right": None if targets is None else flagged == targets,
            "statistic": float(verdict.statistic),
            "threshold": float(verdict.threshold),
            "highest": info.classes[int(np.argmax(verdict.scores))],
            "seconds": seconds,
        }
        evidence = [
            where
            | {"class": name, "is_target": None if targets is None else i in targets}
            | {"flagged": bool(verdict.flagged[i]), "score": float(verdict.scores[i])}
            | {column: values[i].item() for column, values in verdict.columns.items()}
            for i, name in enumerate(info.classes)
        ]
        return {"detections": [detection], "evidence": evidence}

    def _pictures(self, tree: Any, verdict: Verdict) -> dict[str, np.ndarray]:
        """Draw each class's inverted trigger on grey, and the most suspicious on test images."""
        clean = shown_images(self.context, self.run)[0]
        grey, detector = jnp.full((1, *clean.shape[1:]), 0.5), self.evidence.detector
        stamps = [_stamp(detector, tree, label) for label in range(len(verdict.scores))]
        triggers = [as_levels(stamp(grey)).astype(jnp.uint8) for stamp in stamps]
        _, stamp = to_try(detector, tree)
        stamped = as_levels(stamp(as_float(jnp.asarray(clean)))).astype(jnp.uint8)
        return {"triggers": np.concatenate(triggers), "smallest": np.asarray(stamped)}


def to_try(detector: ModelDetector, tree: Any) -> tuple[int, Callable[[Array], Array]]:
    """Return a detector's most suspicious class, and a function that stamps its trigger on images.

    It is the flagged class with the highest score, or the class with the highest score if none is
    flagged.
    """
    verdict = detector.judge(tree)
    label = verdict.target if verdict.target >= 0 else int(np.argmax(verdict.scores))
    return label, _stamp(detector, tree, label)


def _stamp(detector: ModelDetector, tree: Any, label: int) -> Callable[[Array], Array]:
    """Return a function that stamps the trigger that a detector found for a class on images."""
    assert detector.trigger is not None  # callers check that the detector finds triggers
    return detector.trigger(tree, label)


def _named(labels: list[int], classes: tuple[str, ...]) -> str:
    return ", ".join(classes[label] for label in labels)
