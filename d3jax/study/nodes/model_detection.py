"""A detection: which classes of a model an inversion flags, beside the truth."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from ...core.images import as_float
from ...core.records import Row
from ...inversion import Detection, Inversion, detect, stamp_levels, trigger_at
from ..attack_run import targets_of
from .base import AnalysisNode, Findings, Inputs
from .inversion import InversionNode
from .report_samples import shown_images


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class ModelDetectionNode(AnalysisNode):
    """The detection `choice` of the config, from an inversion of all classes."""

    inversion: InversionNode

    kind, title, role = "model_detection", "detection", "detection"
    outcome_of = "inversion"

    @property
    def what(self) -> str:
        """Named by the detection."""
        return f"detection@{self.label}"

    @property
    def settings(self) -> dict[str, Any]:
        """Whether the truth is known, and whether there are pictures."""
        shown = self.run.seed == self.context.config.seeds[0]
        return {"external": bool(self.context.external), "pictures": shown}

    def analyse(self, inputs: Inputs) -> Findings:
        """Return the rows of detections.csv, and for the first seed what the page shows."""
        tree = inputs.inversion.tree
        found = detect(tree.norms)
        rows = self._rows(tree, found, inputs.inversion.seconds)
        if not self.settings["pictures"]:
            return Findings({"detections": rows})
        arrays = {"index": found.index, "flagged": found.flagged, **self._pictures(tree)}
        arrays |= {name: np.asarray(getattr(tree, name)) for name in ("labels", "norms", "success")}
        return Findings(
            {"detections": rows}, arrays, {"median": found.median, "spread": found.spread}
        )

    def _rows(self, tree: Inversion, found: Detection, seconds: float) -> list[Row]:
        run, info = self.run, self.context.dataset.info
        targets = targets_of(run, info.num_classes)
        unknown = self.settings["external"] and not run.attacked
        where = {
            "dataset": info.name,
            "model": self.context.config.model.name,
            "attack": run.label,
            "seed": run.seed,
            "detection": self.label,
        }
        return [
            where
            | {
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
        triggers = [stamp_levels(trigger_at(tree, row), grey) for row in range(len(tree.labels))]
        smallest = trigger_at(tree, int(np.argmin(tree.norms)))
        stamped = stamp_levels(smallest, as_float(jnp.asarray(clean)))
        return {"triggers": np.concatenate(triggers), "smallest": np.asarray(stamped)}
