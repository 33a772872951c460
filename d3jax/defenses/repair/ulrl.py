"""ULRL, unlearn to relearn backdoors (arXiv 2405.14781).

1. Unlearn: gradient ascent on a few clean images, as in RNP.
2. The rows of the classifier that this changes most belong to the target. A row is suspect where
   the sum of its changes is more than z robust standard deviations above the median; at most two.
3. Relearn: in the original model new suspect rows are drawn, and all is trained on clean
   images, with a penalty on the cosine of a suspect row to what it was.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ...config.fields import check_fields, option
from ...config.recipes import OptimConfig, ScheduleConfig
from ...core.losses import accuracy, cross_entropy
from ...core.random import stream
from ...core.types import DataInfo, Model, Params, Repair, Repaired, Split, Variables
from ...training.loop import Hooks, fit, trace_of
from ...training.step import Loss
from .common import repair_loop
from .d3 import select
from .forget import forget

NORMAL = 0.6745
"""The median absolute deviation of a standard normal distribution."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ULRLConfig:
    """Settings of ULRL, which redraws the rows of the classifier that unlearning changes most.

    The defaults are the authors' program's. They have 1 % of the training images
    (`reserved.fraction: 0.01`).
    """

    least: float = option(0.2, "accuracy in an epoch at which unlearning stops", low=0, high=1)
    z: float = option(3.5, "robust z-score above which a row is suspect", low=0)
    rows: int = option(2, "most rows that are redrawn", low=1)
    weight: float = option(0.7, "weight of the cosine of a suspect row to what it was", low=0)
    unlearn: ScheduleConfig = option(
        ScheduleConfig(epochs=20, batch_size=128, optimizer=OptimConfig(schedule="half_drop")),
        "length, batch size and optimiser of the unlearning",
    )
    relearn: ScheduleConfig = option(
        ScheduleConfig(epochs=20, batch_size=128, optimizer=OptimConfig(lr=0.005)),
        "length, batch size and optimiser of the relearning",
    )

    __post_init__ = check_fields

    def build(self, info: DataInfo) -> Repair:
        """Build the repair ULRL with these settings for the data set that `info` describes."""
        return make_ulrl(self, info)


def suspect_rows(
    before: Float[np.ndarray, "D K"], after: Float[np.ndarray, "D K"], z: float, most: int
) -> np.ndarray:
    """Return the classes whose weights in a classifier [D, K] changed by far the most, sorted.

    The score of a class is 0.6745 (s − median) / MAD for the sum s of its absolute changes.
    """
    sums = np.abs(np.asarray(after, np.float64) - np.asarray(before, np.float64)).sum(0)
    gaps = sums - np.median(sums)
    spread = np.median(np.abs(gaps))
    scores = NORMAL * gaps / spread if spread > 0 else np.zeros_like(gaps)
    order = np.argsort(-scores, kind="stable")[:most]
    return np.sort(order[scores[order] > z])


def relearn_loss(model: Model, weight: float) -> Loss:
    """Build the loss of the relearning: CE + `weight` · Σ cos(row, row before) of suspect rows.

    `data.loss_inputs["rows"]` [K] marks them, and `data.reference_params` are those before.
    """

    def loss(params, batch_stats, batch, key, data):
        outputs = model.apply(Variables(params, batch_stats), batch.images, train=True)
        ce = cross_entropy(outputs.logits, batch.labels).mean()
        new, old = params["head"]["kernel"], data.reference_params["head"]["kernel"]
        sizes = jnp.linalg.norm(new, axis=0) * jnp.linalg.norm(old, axis=0)
        cosines = jnp.sum(new * old, 0) / jnp.maximum(sizes, 1e-12)
        penalty = jnp.sum(jnp.where(data.loss_inputs["rows"], cosines, 0))
        reported = {
            "clean_loss": ce,
            "cosine": penalty,
            "accuracy": accuracy(outputs.logits, batch.labels),
        }
        return ce + weight * penalty, (outputs.batch_stats, reported)

    return loss


def redrawn(key: jax.Array, params: Params, rows: jax.Array) -> Params:
    """Return a model's parameters with the marked rows [K] of the classifier at U(±√(2/d))."""
    head = params["head"]
    limit = (2 / len(head["kernel"])) ** 0.5
    drawn = jax.random.uniform(key, head["kernel"].shape, jnp.float32, -limit, limit)
    return params | {"head": head | {"kernel": jnp.where(rows, drawn, head["kernel"])}}


def make_ulrl(config: ULRLConfig, info: DataInfo) -> Repair:
    """Return ULRL, the repair that redraws and relearns suspect rows of the classifier.

    The trace is that of the relearning, with the `unlearned` accuracy and the number of `suspects`.
    """

    def repair(
        key: jax.Array, model: Model, variables: Variables, reserved: Split, hooks: Hooks = Hooks()
    ) -> Repaired:
        forgetful, known = forget(
            stream(key, "unlearn"), model, variables, reserved, config.unlearn, config.least, info,
            hooks,
        )  # fmt: skip
        before, after = (np.asarray(one.params["head"]["kernel"]) for one in (variables, forgetful))
        found = suspect_rows(before, after, config.z, config.rows)
        rows = jnp.zeros(before.shape[1], bool).at[found].set(True)
        hooks.say(f"redraws the rows of classes {', '.join(map(str, found)) or 'none'}")
        begin = variables._replace(params=redrawn(stream(key, "rows"), variables.params, rows))
        loop = repair_loop(
            stream(key, "relearn"), begin, reserved,
            loss=relearn_loss(model, config.weight), loss_inputs={"rows": rows},
            reference_params=variables.params, schedule=config.relearn, info=info,
        )  # fmt: skip
        state, records = fit(loop, hooks.within("relearn"))
        more = {"unlearned": known, "suspects": len(found)}
        return Repaired(state.variables, trace_of([record | more for record in records]))

    def check(model: Model, shapes: Variables, size: int) -> None:
        select(shapes.params, "head/kernel", "ulrl")

    return Repair(repair, check)
