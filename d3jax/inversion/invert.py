"""Trigger inversion: a search for the smallest trigger of every class at once.

A trigger is a change of an image that makes the model predict a given class. A backdoored model
needs an unusually small one for its target class (Neural Cleanse, Wang et al., IEEE S&P 2019). An
inverted trigger need not resemble the attacker's, nor lie in the same place.
"""

from __future__ import annotations

import functools
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int32

from ..core.checks import check_built, check_labelled
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
    """The result of trigger inversion: triggers of L labels, with their norms and success rates.

    `labels` are int32, −1 for the trigger of no label. `norms` are ‖mask‖₁, or for pixel the number
    of pixels that change. `success` is the share of the images of other classes that the model
    assigns to the label. `passes` is the number of passes after which the search of the label
    stopped.
    """

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
    """Search for a model's smallest trigger to each of `labels`; return an `Inversion` and records.

    `labels` are [L] (None: all classes of the model). Returns the inversion and the log records of
    the search. All labels are searched in one program. When half of them are done, the others
    continue in a smaller one. A label gets the numbers that it would get alone: batches follow from
    (key, step), and its start from (key, label). Where no trigger reached the threshold, the one
    after the last step is returned.

    Raises `ConfigError` where there are fewer images than a batch has, or where a label is not a
    class.
    """
    check_built(model=model, variables=variables)
    check_labelled("images", images)
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
    """Convert raw parameters of trigger inversion to the final triggers [L] and their norms [L]."""
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
    """Build the `TrainLoop` that searches for a model's smallest trigger to each of L labels.

    The loop ends when half of the labels are done. Raises as `invert`.
    """
    size, classes = len(images.labels), model_classes(model, variables, images)
    if size < config.batch_size:
        raise ConfigError(
            f"inversion: batch_size {config.batch_size} is more than the {size} images there are"
        )
    if not len(labels) or not ((labels >= 0) & (labels < classes)).all():
        raise ConfigError(
            f"inversion: labels {labels.tolist()}: "
            f"want classes of the model, which are 0 to {classes - 1}"
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
    """Return a placeholder `Inversion` of no label, whose trigger changes no image of `shape`."""
    height, width, channels = shape
    trigger = Trigger(jnp.zeros((1, height, width, 1)), jnp.zeros((1, height, width, channels)))
    return Inversion(
        jnp.array([-1], jnp.int32), trigger, jnp.zeros(1), jnp.zeros(1), jnp.zeros(1, jnp.int32)
    )


def trigger_at(inversion: Inversion, row: int) -> Trigger:
    """Return the `Trigger` at index `row` of an `Inversion` of several labels."""
    return jax.tree.map(lambda part: part[row], inversion.trigger)


def like(count: int, shape: tuple[int, int, int]) -> Inversion:
    """Return an `Inversion` of shapes and dtypes only, for `count` labels and images of `shape`."""
    return jax.eval_shape(
        lambda: jax.tree.map(lambda leaf: jnp.repeat(leaf, count, 0), nothing(shape))
    )


def model_classes(model: Model, variables: Variables, images: Split) -> int:
    """Return the number of classes of a model, from the shape of its logits."""
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
    """Return the share [L] of images of other classes that each of L triggers sends to its label.

    This success rate is the share that the model assigns to the trigger's label in `labels` [L].
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
    """Return whether a model predicts label l for image b with trigger l, as [B, L] bool."""
    logits = logits_of(model, variables, stamp_all(trigger, as_float(images)))
    return logits.argmax(-1) == labels
