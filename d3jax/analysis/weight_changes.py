"""How far each weight tensor of a model moved, and by which amounts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ..core.types import Params


def changes(
    first: Params, others: Sequence[Params], bins: int = 61
) -> list[dict[str, dict[str, Any]]]:
    """Return norm and histogram of each weight tensor's change from one model to several others.

    The result has a dict for each of the others, by the tensor's name. It holds the `norm` of the
    change, also `relative` to the tensor's norm. A histogram of the changes has `counts` between
    `edges`. A tensor has its own edges, the same for all others. Changes beyond the edges are in
    the outermost bins.
    """
    leaves = jax.tree_util.tree_leaves_with_path(first)
    found: list[dict[str, dict[str, Any]]] = [{} for _ in others]
    for (path, before), *after in zip(leaves, *map(jax.tree.leaves, others), strict=True):
        name, length = (
            jax.tree_util.keystr(path, simple=True, separator="/"),
            float(np.linalg.norm(before)),
        )
        moved = [np.asarray(leaf) - np.asarray(before) for leaf in after]
        limit = max(float(np.quantile(np.abs(change), 0.999)) for change in moved) or 1.0
        edges = np.linspace(-limit, limit, bins + 1)
        for change, mine in zip(moved, found, strict=True):
            norm = float(np.linalg.norm(change))
            counts, _ = np.histogram(np.clip(change, -limit, limit), edges)
            mine[name] = {
                "norm": norm,
                "relative": norm / length if length else float("inf"),
                "counts": counts,
                "edges": edges,
            }
    return found
