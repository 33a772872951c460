"""MM-BD: maximum margins of a backdoored model (Wang et al., IEEE S&P 2024, arXiv 2205.06900). No data.

The target's logit can be raised above all others by more than any other class's. For every class the
largest margin z_t − max_{j≠t} z_j is searched from random images; a Gamma distribution fitted to the
margins of all classes but the largest gives the p-value of that one.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ...config.fields import check_fields, option
from ...core.errors import ConfigError
from ...core.random import stream
from ...core.records import LogRecord
from ...core.types import (
    DataInfo,
    Model,
    ModelDetector,
    Params,
    Split,
    TrainState,
    Variables,
    Verdict,
)
from ...training.loop import Hooks, TrainLoop, fit
from ...training.step import Loss, Reported, TrainData, init_state, make_train_step


@dataclasses.dataclass(frozen=True)
class MMBDConfig:
    """Default: the authors' settings."""

    images: int = option(30, "random images for each class", low=1)
    steps: int = option(300, "steps at most", low=1)
    lr: float = option(0.01, "learning rate of gradient ascent on the pixels", above=0)
    tolerance: float = option(
        1e-5, "relative change of a class's summed margins at which its search ends", low=0
    )
    alpha: float = option(0.05, "p-value up to which the model is flagged", above=0, high=1)

    __post_init__ = check_fields

    def build(self, info: DataInfo) -> ModelDetector:
        """Return the detector for a data set."""
        return make_mmbd(self, info)


class Margins(NamedTuple):
    """The evidence: the largest `margins` [K] of each class, and the `steps` [K] of its search."""

    margins: jax.Array
    steps: jax.Array


class Searched(NamedTuple):
    """The carry: whether a class is `active` [K], its `last` [K] summed margins, its `steps` [K]."""

    active: jax.Array
    last: jax.Array
    steps: jax.Array


def margins_of(logits: jax.Array, wanted: jax.Array) -> jax.Array:
    """Return z_t − max_{j≠t} z_j of logits [..., K] and wanted classes [...]."""
    own = jax.nn.one_hot(wanted, logits.shape[-1], dtype=bool)
    best = jnp.where(own, -jnp.inf, logits).max(-1)
    return jnp.where(own, logits, 0).sum(-1) - best


def margin_loss(model: Model) -> Loss:
    """Build minus the sum of the margins of images [K, n, …]; the model is `reference_params`."""

    def loss(images: Params, stats: Params, batch: None, key: jax.Array, data: TrainData):
        flat = images.reshape(-1, *images.shape[2:])
        logits = model.apply(data.reference_params, flat, train=False).logits
        wanted = jnp.repeat(jnp.arange(images.shape[0]), images.shape[1])
        margins = margins_of(logits, wanted).reshape(images.shape[:2])
        return -margins.sum(), (stats, {"margins": margins})

    return loss


def margin_loop(
    key: jax.Array, model: Model, variables: Variables, config: MMBDConfig, info: DataInfo
) -> TrainLoop:
    """Return the loop that raises the margins of all classes at once; images stay in [0, 1]."""
    tx, count = optax.sgd(config.lr), info.num_classes

    def advance(before: TrainState, after: TrainState, reported: Reported, data: TrainData):
        margins, carry = reported.pop("margins"), before.carry
        total = margins.sum(1)
        small = jnp.abs(total - carry.last) < config.tolerance * jnp.abs(carry.last)
        active = carry.active & ~small
        moved = jnp.where(
            active[:, None, None, None, None], after.variables.params, before.variables.params
        )
        carry = Searched(active, total, carry.steps + active)
        metrics = {"margin": margins.max(1).mean(), "active": active.sum().astype(jnp.float32)}
        state = dataclasses.replace(after, variables=Variables(moved, {}), carry=carry)
        return state, metrics

    step = make_train_step(
        tx,
        loss=margin_loss(model),
        batches=lambda key, step, data: None,
        project=lambda images, data: jnp.clip(images, 0, 1),
        advance=advance,
    )
    images = jax.random.uniform(stream(key, "images"), (count, config.images, *info.shape))
    none, zero = jnp.zeros(count, jnp.int32), jnp.full(count, jnp.inf)
    state = init_state(Variables(images, {}), tx, key, Searched(none == 0, zero, none))
    data = TrainData(None, None, {}, variables)

    def finished(state: TrainState) -> bool:
        return not np.any(state.carry.active)

    return TrainLoop(step, state, data, config.steps, finished=finished)


def judge_margins(found: Margins, alpha: float) -> Verdict:
    """Return the verdict: p = 1 − F(r_max)^K with F the Gamma fit to all other margins.

    The score of a class is its margin. The fit has shape, location and scale. Margins that are all
    equal, or no numbers, have no distribution: the model is not flagged, with p = 1.
    """
    from scipy.stats import gamma

    margins = np.asarray(found.margins, np.float64)
    top = int(margins.argmax())
    others, p = np.delete(margins, top), 1.0
    if np.isfinite(margins).all() and np.ptp(others) > 0:
        shape, start, scale = gamma.fit(others)
        p = float(1 - gamma.cdf(margins[top], shape, start, scale) ** len(margins))
    flagged = (np.arange(len(margins)) == top) & (p <= alpha)
    columns = {"steps": np.asarray(found.steps)}
    return Verdict(margins, flagged, 1 - p, 1 - alpha, columns, {"p_value": p})


def make_mmbd(config: MMBDConfig, info: DataInfo) -> ModelDetector:
    """Return MM-BD. Its statistic is 1 − p, its threshold 1 − `alpha`.

    Deviations: images are kept in [0, 1] after every step. A class whose margins no longer change
    stops where it is, and the loop ends when all have.
    """
    if info.num_classes < 4:
        raise ConfigError(
            f"fits a distribution to the margins of all classes but one: {info.num_classes} classes "
            "are too few, want 4"
        )

    def detect(
        key: jax.Array,
        model: Model,
        variables: Variables,
        reserved: Split | None = None,
        hooks: Hooks = Hooks(),
    ) -> tuple[Margins, list[LogRecord]]:
        loop = margin_loop(stream(key, "mmbd"), model, variables, config, info)
        state, records = fit(loop, hooks)
        images = state.variables.params
        logits = model.apply(variables, images.reshape(-1, *info.shape), train=False).logits
        wanted = jnp.repeat(jnp.arange(len(images)), config.images)
        best = margins_of(logits, wanted).reshape(images.shape[:2]).max(1)
        return Margins(best, state.carry.steps), records

    def like(classes: int, shape: tuple[int, int, int]) -> Margins:
        return Margins._make(jax.ShapeDtypeStruct((classes,), t) for t in (jnp.float32, jnp.int32))

    return ModelDetector(detect, lambda found: judge_margins(found, config.alpha), like)
