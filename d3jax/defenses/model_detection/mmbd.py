"""MM-BD, a detector of backdoored models by maximum margins (Wang et al., IEEE S&P 2024).

Source: arXiv 2205.06900. The method needs no data. In a backdoored model, the logit of the target
class can exceed all other logits by more than the logit of any other class can. For every class,
MM-BD maximises the margin z_t − max_{j≠t} z_j by gradient ascent from random images. A Gamma
distribution, fitted to all margins except the largest, gives the p-value of the largest one.
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
    """Settings of MM-BD, which detects a backdoored model by the largest logit margin per class.

    The defaults are the authors'.
    """

    images: int = option(30, "number of random start images for each class", low=1)
    steps: int = option(300, "maximum number of gradient ascent steps", low=1)
    lr: float = option(0.01, "learning rate of gradient ascent on the pixels", above=0)
    tolerance: float = option(
        1e-5, "relative change of a class's summed margins below which its search ends", low=0
    )
    alpha: float = option(0.05, "largest p-value at which the model is flagged", above=0, high=1)

    __post_init__ = check_fields

    def build(self, info: DataInfo) -> ModelDetector:
        """Build MM-BD, a detector of backdoored models, for the data set that `info` describes."""
        return make_mmbd(self, info)


class Margins(NamedTuple):
    """The evidence of MM-BD: the largest logit margin of each of K classes.

    `margins` [K] float32 are the largest margins over a class's images. `steps` [K] int32 are the
    numbers of steps of the searches.
    """

    margins: jax.Array
    steps: jax.Array


class Searched(NamedTuple):
    """The progress of MM-BD's margin search for each of K classes, as a train loop's carry.

    `active` [K] bool says whether the search of a class continues. `last` [K] are its summed
    margins, and `steps` [K] its number of steps so far.
    """

    active: jax.Array
    last: jax.Array
    steps: jax.Array


def margins_of(logits: jax.Array, wanted: jax.Array) -> jax.Array:
    """Return the margins z_t − max_{j≠t} z_j [...] of logits [..., K].

    `wanted` [...] are the classes t.
    """
    own = jax.nn.one_hot(wanted, logits.shape[-1], dtype=bool)
    best = jnp.where(own, -jnp.inf, logits).max(-1)
    return jnp.where(own, logits, 0).sum(-1) - best


def margin_loss(model: Model) -> Loss:
    """Build the loss of MM-BD's margin search: minus the sum of the margins of all images.

    The trained parameters are the images [K, n, H, W, C]. The frozen model's variables come in
    `data.reference_params`. The loss reports the `margins` [K, n].
    """

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
    """Build the `TrainLoop` of MM-BD, which changes images to maximise the margins of all classes.

    Images are clipped to [0, 1] after every step. The loop ends early when every class has stopped.
    """
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
    """Return MM-BD's `Verdict` whether a model is backdoored, by the largest margin's p-value.

    The p-value is p = 1 − F(r_max)^K, where F is the Gamma distribution fitted to all other
    margins, by shape, location and scale. The score of a class is its margin. If a margin is not
    finite or the other margins are all equal, nothing can be fitted. Then p = 1 and the model is
    not flagged.
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
    """Return MM-BD, a `ModelDetector` that flags a model whose largest margin is an outlier.

    The statistic is 1 − p and the threshold is 1 − `alpha`. Raises `ConfigError` for fewer than
    four classes.

    Deviations: images are clipped to [0, 1] after every step. A class whose margins no longer
    change keeps its images, and the loop ends when all classes have stopped.
    """
    if info.num_classes < 4:
        raise ConfigError(
            "MM-BD fits a distribution to the margins of all classes but one: "
            f"{info.num_classes} classes are too few, want 4"
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
