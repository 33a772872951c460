"""A detection: which classes of a model an inversion flags, beside the truth."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...config.study import Choice
from ...core.images import as_float, as_levels
from ...inversion import Detection, Inversion, Trigger, detect, stamp
from ...results.artifacts import Row
from ..attack_run import targets_of
from .base import AnalysisNode, Findings, Inputs, Node
from .report_samples import shown_images


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class ModelDetectionNode(AnalysisNode):
    """The detection `choice` of the config, from an inversion of all classes."""

    kind, title = "model_detection", "detection"
    inversion: Node
    choice: Choice

    @property
    def what(self) -> str:
        """Named by the detection."""
        return f"detection-{self.choice.label}"

    @property
    def label(self) -> str:
        """The detection's label."""
        return self.choice.label

    @property
    def needs(self) -> dict[str, Node]:
        """The inversion."""
        return {"inversion": self.inversion}

    @property
    def recipe(self) -> dict[str, Any]:
        """Whether the truth is known, and whether there are pictures."""
        return {"external": bool(self.context.external), "pictures": self._has_pictures}

    @property
    def _has_pictures(self) -> bool:
        return self.run.seed == self.context.config.seeds[0]

    def analyse(self, inputs: Inputs) -> Findings:
        """Return the rows of detections.csv, and for the first seed what the page shows."""
        artifact = inputs.inversion
        found = detect(artifact.tree.norms)
        rows = self._rows(artifact.tree, found, artifact.seconds)
        if not self._has_pictures:
            return Findings({"detections": rows})
        arrays = {
            "labels": np.asarray(artifact.tree.labels),
            "norms": np.asarray(artifact.tree.norms),
            "success": np.asarray(artifact.tree.success),
            "index": found.index,
            "flagged": found.flagged,
            **self._pictures(artifact.tree),
        }
        facts = {"median": found.median, "spread": found.spread}
        return Findings({"detections": rows}, arrays, facts)

    def _rows(self, tree: Inversion, found: Detection, seconds: float) -> list[Row]:
        context, run, info = self.context, self.run, self.context.dataset.info
        targets = targets_of(run, info.num_classes)
        unknown = context.external is not None and not run.attacked
        return [
            {
                "dataset": info.name,
                "model": context.config.model.name,
                "attack": run.label,
                "seed": run.seed,
                "detection": self.label,
                "class": info.classes[label],
                "is_target": None if unknown else label in targets,
                "flagged": bool(found.flagged[i]),
                "norm": float(tree.norms[i]),
                "index": float(found.index[i]),
                "success": float(tree.success[i]),
                "passes": int(tree.passes[i]),
                "seconds": seconds,
            }
            for i, label in enumerate(np.asarray(tree.labels).tolist())
        ]

    def _pictures(self, tree: Inversion) -> dict[str, np.ndarray]:
        """Return every trigger on grey, and the smallest on the page's images."""
        clean = shown_images(self.context, self.run)[0]
        grey = jnp.full((1, *clean.shape[1:]), 0.5)
        triggers = [stamped(trigger_at(tree, row), grey) for row in range(len(tree.labels))]
        smallest = trigger_at(tree, int(np.argmin(tree.norms)))
        return {
            "triggers": np.concatenate([np.asarray(image) for image in triggers]),
            "smallest": np.asarray(stamped(smallest, as_float(jnp.asarray(clean)))),
        }


def trigger_at(tree: Inversion, row: int) -> Trigger:
    """Return one of the triggers of an inversion."""
    return jax.tree.map(lambda part: part[row], tree.trigger)


def chosen(found: Detection) -> int:
    """Return the row of the trigger to try: the smallest flagged one, or of all if none is."""
    norms = np.asarray(found.norms)
    return int(np.argmin(np.where(found.flagged, norms, np.inf) if found.flagged.any() else norms))


def stamped(trigger: Trigger, images: jax.Array) -> jax.Array:
    """Return float images [B, H, W, C] with a trigger, uint8 as a file would hold them."""
    return as_levels(stamp(trigger, images)).astype(jnp.uint8)
