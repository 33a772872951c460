"""Held-out reserved images, and the accuracy by which a repair chooses between its results.

A published rule that reads test data (`rule: oracle`) has a twin that a defender can use (`rule:
defender`): it reads a share of the reserved images. The repair makes its choice from the others.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...config.fields import option
from ...core.errors import ConfigError
from ...core.random import stream
from ...core.types import Array, Model, Split, TrainState, Variables
from ...data.batched import batched_map
from ...metrics.attack_success import predict
from ...training.step import Advance
from .common import EVAL_BATCH


def held_out_option() -> Any:
    """Return the field of a config for the share of the reserved images that are held out."""
    doc = "share of the reserved images held out, by which a defender judges accuracy"
    return option(0.2, doc, above=0, high=0.9)


def divide(key: jax.Array, reserved: Split, share: float) -> tuple[Split, Split]:
    """Divide reserved images at random; return (images to learn from, held-out images).

    At least one image is held out.
    """
    rows = np.asarray(jax.random.permutation(stream(key, "held_out"), len(reserved.labels)))
    held, kept = np.split(rows, [max(1, round(share * len(rows)))])
    first, second = (
        Split(*(np.asarray(part)[np.sort(chosen)] for part in reserved)) for chosen in (kept, held)
    )
    return first, second


def judged_by(
    config: Any,
    key: jax.Array,
    reserved: Split,
    test_set: Split | None,
    triggered_set: Split | None,
) -> tuple[Split, Split]:
    """Return (images to learn from, images by which the rule of a repair judges accuracy).

    `config` has `rule` and `held_out`. Raises `TypeError` if the rule is oracle and a set is
    missing.
    """
    if config.rule != "oracle":
        return divide(key, reserved, config.held_out)
    if test_set is None or triggered_set is None:
        raise TypeError("rule: oracle reads test data: give `test_set`, `triggered_set`")
    return reserved, test_set


def check_divisible(rule: str, size: int) -> None:
    """Raise `ConfigError` if a rule holds images out, and there is a single reserved image."""
    if rule == "defender" and size < 2:
        raise ConfigError("rule: defender holds images out, and there is one reserved image")


def accuracy_on(model: Model, variables: Variables, split: Split) -> float:
    """Return the share of images that a model classifies as their labels."""
    compute = functools.partial(predict, model, variables)
    found = batched_map(compute, np.asarray(split.images), batch_size=EVAL_BATCH)
    return float((found == np.asarray(split.labels)).mean())


def traced_accuracy(model: Model, variables: Variables, split: Split) -> jax.Array:
    """Return what `accuracy_on` does, in a form that can be part of a compiled train step."""
    count = len(split.labels)
    size = min(EVAL_BATCH, count)
    rows = jnp.arange(-(-count // size) * size).reshape(-1, size)

    def hits(rows: jax.Array) -> jax.Array:
        # Rows past the end read the last image, and do not count.
        images, labels = (jnp.take(part, rows, 0, mode="clip") for part in split)
        return jnp.sum((predict(model, variables, images) == labels) & (rows < count))

    return jax.lax.map(hits, rows).sum() / count


Score = Callable[[Variables, Any], Array]
"""`score(variables, data) -> []`: how good a model is by a rule; higher is better."""


def keep_best(score: Score, period: int) -> Advance:
    """Build an `advance` that keeps the variables with the highest score of every `period` steps.

    The carry is that of `no_best`.
    """

    def advance(before: TrainState, after: TrainState, reported: Any, data: Any):
        found = jax.lax.cond(
            after.step % period == 0,
            lambda: score(after.variables, data).astype(jnp.float32),
            lambda: jnp.float32(-jnp.inf),
        )
        best = after.carry
        better = found > best["score"]
        kept = jax.tree.map(
            lambda new, old: jnp.where(better, new, old), after.variables, best["variables"]
        )
        carry = {"variables": kept, "score": jnp.maximum(found, best["score"])}
        return dataclasses.replace(after, carry=carry), reported

    return advance


def no_best(variables: Variables) -> dict[str, Any]:
    """Return the carry of `keep_best` before the first measurement."""
    return {"variables": jax.tree.map(jnp.copy, variables), "score": jnp.float32(-jnp.inf)}
