"""Trigger inversion: the smallest change of an image that makes a model see a given class, for all classes at once.

A backdoored model needs an unusually small one for its target (Neural Cleanse, Wang et al., IEEE S&P 2019). An inverted trigger need
not look like the attacker's, nor sit in its place.
"""

from __future__ import annotations

import functools
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int32

from ..core.errors import ConfigError
from ..core.images import as_float
from ..core.records import LogRecord
from ..core.types import Model, Params, Split, TrainState, Variables
from ..data.batched import batched_map
from ..training.loop import Hooks, TrainLoop, fit
from ..training.memory import out_of_memory_named
from ..training.step import TrainData, make_batches, make_rows
from .config import InversionConfig
from .parameters import Trigger, count_of, tidy, trigger_of
from .search import inversion_step, kept_of, logits_of, only, stamp_all, start


class Inversion(NamedTuple):
    """Triggers [L] of `labels` [L] int32 (−1: of none), and of each: its `norms` (‖mask‖₁, for pixel how many pixels change),
    `success`, the share of the images of other classes that it turns, and after how many `passes` it stopped."""

    labels: Int32[jax.Array, " L"]
    trigger: Trigger
    norms: Float32[jax.Array, " L"]
    success: Float32[jax.Array, " L"]
    passes: Int32[jax.Array, " L"]


def invert(
    key: jax.Array,
    model: Model,
    variables: Variables,
    images: Split,
    config: InversionConfig = InversionConfig(),
    labels: Any = None,
    hooks: Hooks = Hooks(),
) -> tuple[Inversion, list[LogRecord]]:
    """The smallest triggers found for `labels` [L] (None: all the model's), and the lines logged on the way.

    All labels are searched in one program; when half of them are done, the others go on in a smaller one. A label gets the numbers
    it would get alone: batches follow from (key, step), its start from (key, label). What never turned enough images is as the
    last step left it. Raises `ConfigError` where there are fewer images than a batch has, or a label is no class.
    """
    labels = (
        np.arange(model_classes(model, variables, images))
        if labels is None
        else np.asarray(labels, np.int32)
    )
    loop, left, lines, found = (
        inversion_loop(key, model, variables, images, config, labels),
        labels,
        [],
        {},
    )
    while len(left):
        state, logged = fit(loop, hooks.within(f"labels{len(left)}"))
        before = lines[-1]["seconds"] if lines else 0.0
        lines += [line | {"seconds": before + line["seconds"]} for line in logged]
        kept = kept_of(state)
        found |= {
            int(label): jax.tree.map(operator.itemgetter(i), kept) for i, label in enumerate(left)
        }
        going = np.flatnonzero(np.asarray(state.carry.active))
        if int(state.step) == loop.steps:
            break
        left = left[going]
        loop = loop._replace(
            state=only(state, going),
            data=loop.data._replace(loss_inputs={"labels": jnp.asarray(left)}),
        )
    raw, passes = jax.tree.map(
        lambda *leaves: np.stack(leaves), *(found[int(label)] for label in labels)
    )
    trigger, norms = _measured(raw, config.preset)
    turned = success_of(model, variables, trigger, labels, images, config.batch_size)
    return Inversion(jnp.asarray(labels), trigger, norms, turned, jnp.asarray(passes)), lines


@jax.jit(static_argnums=1)
def _measured(raw: Params, preset: str) -> tuple[Trigger, jax.Array]:
    """The final triggers [L] and their norms."""
    raw = tidy(raw, preset)
    trigger = trigger_of(raw, preset)
    return trigger, count_of(raw) if preset == "pixel" else trigger.mask.sum((1, 2, 3))


def inversion_loop(
    key: jax.Array,
    model: Model,
    variables: Variables,
    images: Split,
    config: InversionConfig,
    labels: np.ndarray,
) -> TrainLoop:
    """The loop that searches the triggers of `labels` [L], which ends when half of them are done. Raises as `invert`."""
    size, classes = len(images.labels), model_classes(model, variables, images)
    if size < config.batch_size:
        raise ConfigError(
            f"inversion: batch_size {config.batch_size} is more than the {size} images there are"
        )
    if not len(labels) or not ((labels >= 0) & (labels < classes)).all():
        raise ConfigError(
            f"inversion: labels {labels.tolist()}: want classes of the model, which are 0 to {classes - 1}"
        )
    per_epoch = size // config.batch_size
    per_pass = config.batches or per_epoch
    rows = make_rows(size=size, steps_per_epoch=per_epoch, batch_size=config.batch_size)
    step = inversion_step(
        model, config, make_batches(rows=rows, augment=lambda key, images: images), per_pass
    )
    split, wanted = Split(*map(jnp.asarray, images)), jnp.asarray(labels, jnp.int32)
    data = TrainData(split, jnp.zeros(size, bool), {}, variables, {"labels": wanted})
    state = start(key, wanted, images.images.shape[1:], config)
    return TrainLoop(step, state, data, config.passes * per_pass, finished=_half_done)


def _half_done(state: TrainState) -> bool:
    active = np.asarray(state.carry.active)
    return 2 * int(active.sum()) <= len(active)


def nothing(shape: tuple[int, int, int]) -> Inversion:
    """The inversion of no label: its trigger changes nothing."""
    height, width, channels = shape
    trigger = Trigger(jnp.zeros((1, height, width, 1)), jnp.zeros((1, height, width, channels)))
    return Inversion(
        jnp.array([-1], jnp.int32), trigger, jnp.zeros(1), jnp.zeros(1), jnp.zeros(1, jnp.int32)
    )


def trigger_at(inversion: Inversion, row: int) -> Trigger:
    """Return one of the triggers of an inversion."""
    return jax.tree.map(lambda part: part[row], inversion.trigger)


def like(count: int, shape: tuple[int, int, int]) -> Inversion:
    """The shapes and dtypes of an inversion of `count` labels on images of `shape`."""
    return jax.eval_shape(
        lambda: jax.tree.map(lambda leaf: jnp.repeat(leaf, count, 0), nothing(shape))
    )


def model_classes(model: Model, variables: Variables, images: Split) -> int:
    """How many classes the model tells apart."""
    example = jax.ShapeDtypeStruct((1, *images.images.shape[1:]), jnp.float32)
    return jax.eval_shape(
        lambda v, x: model.apply(v, x, train=False).logits, variables, example
    ).shape[-1]


def success_of(
    model: Model,
    variables: Variables,
    trigger: Trigger,
    labels: Any,
    images: Split,
    batch_size: int = 32,
) -> jax.Array:
    """Return the share [L] of the images of other classes that the triggers [L] turn to `labels` [L].

    `batch_size` · L images are classified at once.
    """
    compute = functools.partial(_turned, model, variables, trigger, jnp.asarray(labels))
    with out_of_memory_named():
        turned = batched_map(compute, images.images, batch_size=batch_size)
    others = np.asarray(images.labels)[:, None] != np.asarray(labels)
    rates = (turned & others).sum(0) / np.maximum(others.sum(0), 1)
    return jnp.asarray(rates, jnp.float32)


@jax.jit(static_argnums=0)
def _turned(
    model: Model, variables: Variables, trigger: Trigger, labels: jax.Array, images: jax.Array
) -> jax.Array:
    """Return whether each image [B] is turned by each trigger [L]: [B, L]."""
    logits = logits_of(model, variables, stamp_all(trigger, as_float(images)))
    return logits.argmax(-1) == labels
