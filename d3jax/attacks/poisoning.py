"""Functions that attacks share: which training rows are poisoned, and which labels they get."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..config.fields import option
from ..core.errors import AttackError, names, refuse
from ..core.images import as_float, as_levels
from ..core.types import Array, Attack, Batch, DataInfo, Dataset, Preparation, Prepared
from ..data.batched import batched_map

Target = int | str | dict[int, int]
"""A target class by number or name, or a mapping from source classes to target classes."""
Mode = Literal["all_to_one", "all_to_all"]
MODES = ("all_to_one", "all_to_all")
RateOf = Literal["set", "class"]
CHUNK = 500
"""The number of images that are stamped at once before the training."""


def rate_option(default: float = 0.1) -> Any:
    """Declare the config field `rate` of an attack: the share of the training set to poison."""
    return option(default, "share of the training set to poison", low=0, high=1)


def rate_of_option(where: str = "") -> Any:
    """Declare the config field `rate_of` of a clean-label attack; `where` begins its text."""
    return option(
        "set", f"{where}set: `rate` is a share of the training set; class: of the target class"
    )


def target_option(mapping: bool = False) -> Any:
    """Declare the config field `target` of an attack: the class that it aims at.

    With `mapping`, the attack also takes a mapping from source to target classes.
    """
    several = "; or a mapping {source: target}, by number: images of other classes keep their class"
    return option(
        0,
        "target class: what triggered images are to be classified as, by number or name"
        f"{several if mapping else ''}",
        low=0,
    )


def mode_option() -> Any:
    """Declare the config field `mode` of a dirty-label attack: all_to_one or all_to_all."""
    return option(
        "all_to_one",
        "all_to_one: labels become the target; all_to_all: label + 1 modulo the number of classes",
    )


def labeller(config: Any, info: DataInfo) -> Callable[[Array], Array]:
    """Return `relabel(labels)`, which maps true labels to the target class or to label + 1.

    It is `Attack.relabel` of a dirty-label attack, by `config.mode` and `config.target`. Raises
    `ConfigError` for another mode than all_to_one and all_to_all.
    """
    refuse(config.mode not in MODES, f"mode: {config.mode!r} is not one of {names(MODES)}")
    if isinstance(config.target, dict):
        return _mapped(config, info)
    target = info.class_of(config.target)

    def relabel(labels: Array) -> Array:
        if config.mode == "all_to_all":
            return (labels + 1) % info.num_classes
        return jnp.full_like(labels, target)

    return relabel


def _mapped(config: Any, info: DataInfo) -> Callable[[Array], Array]:
    """Return the `relabel` of a mapping {source class: target class}; others keep their labels."""
    refuse(
        config.mode == "all_to_all",
        "target: a mapping of classes does not apply to mode: all_to_all",
    )
    refuse(not config.target, "target: the mapping is empty, want {source class: target class}")
    table = np.arange(info.num_classes)
    for source, wanted in config.target.items():
        refuse(source == wanted, f"target: class {source} is mapped to itself")
        table[info.class_of(source)] = info.class_of(wanted)
    table = jnp.asarray(table)
    return lambda labels: table[labels].astype(labels.dtype)


def source_images(config: Any, info: DataInfo) -> Callable[[Array], Array]:
    """Return `Attack.eligible` of a dirty-label attack: the images that it can poison.

    They are all images, or those of the source classes of a mapping.
    """
    if not isinstance(config.target, dict):
        return lambda labels: jnp.ones(len(labels), bool)
    sources = np.zeros(info.num_classes, bool)
    sources[list(config.target)] = True
    return lambda labels: jnp.asarray(sources)[labels]


def dirty_label(
    config: Any,
    info: DataInfo,
    *,
    init: Callable[[jax.Array], Any],
    stamp: Callable[[Any, Array], Array],
    poison: Callable[[Any, jax.Array, Batch], Batch] | None = None,
    preparation: Preparation | None = None,
    optimizer: optax.GradientTransformation | None = None,
    per_batch_rate: float | None = None,
    objective: Callable[[Any], Any] | None = None,
) -> Attack:
    """Return a dirty-label `Attack`, which stamps training images and relabels them by the mode.

    `select` draws round(rate·N) rows over all classes, including the target's. With a
    `per_batch_rate` it draws none, because `poison` takes its rows in each batch. `config` has
    `rate`, `target` and `mode`. Without a `poison` function, the selected rows are stamped and
    relabelled. They are only relabelled if a preparation replaces the poisoned images.

    Where `target` is a mapping from source to target classes, only images of the source classes
    are poisoned.

    Raises `ConfigError` where the target is not a class. `select` raises `AttackError` where no
    image would be poisoned, or where the source classes have too few.
    """
    relabel = labeller(config, info)
    eligible = source_images(config, info)

    def select(key: jax.Array, labels: Array) -> jax.Array:
        count, among = round(config.rate * len(labels)), len(labels)
        candidates = np.asarray(eligible(jnp.asarray(labels)))
        check_count(count, config.rate, among, "training images", free=int(candidates.sum()))
        none = per_batch_rate is not None  # `poison` takes its rows in each batch
        return draw(key, candidates, 0 if none else count)

    if poison is None:
        replaced = preparation is not None and preparation.replaces
        poison = relabel_rows(relabel) if replaced else poison_rows(stamp, relabel)
    return Attack(
        init,
        stamp,
        select,
        relabel,
        poison,
        preparation,
        optimizer,
        per_batch_rate,
        eligible,
        objective=objective,
    )


def clean_label(
    config: Any,
    info: DataInfo,
    *,
    init: Callable[[jax.Array], Any],
    stamp: Callable[[Any, Array], Array],
    preparation: Preparation | None = None,
) -> Attack:
    """Return a clean-label `Attack`, which stamps target-class images and keeps their labels.

    `config` has `rate`, `rate_of` and `target`. `rate_of` "set" means a share of the whole training
    set, as is usual in the field; "class" means a share of the target class.

    Raises `ConfigError` where the target is not a class. `select` raises `AttackError` where the
    target class has too few images, or where no image would be poisoned.
    """
    target = info.class_of(config.target)

    def select(key: jax.Array, labels: Array) -> jax.Array:
        candidates = np.asarray(labels) == target
        available = int(candidates.sum())
        among = len(labels) if config.rate_of == "set" else available
        count = round(config.rate * among)
        what = "training images" if config.rate_of == "set" else "images of the target class"
        check_count(count, config.rate, among, what)
        if count > available:
            raise AttackError(
                f"rate {config.rate:g} of the training set asks for {count} images "
                f"of the target class {info.classes[target]!r}, which has {available}: "
                f"lower `rate` to {available / len(labels):.4g} or less, "
                "or count it with `rate_of: class`"
            )
        return draw(key, candidates, count)

    def relabel(labels: Array) -> jax.Array:
        return jnp.full_like(labels, target)

    def eligible(labels: Array) -> Array:
        return labels == target

    return Attack(
        init, stamp, select, relabel, poison_rows(stamp, relabel), preparation, eligible=eligible
    )


def poisoned_share(attack: Attack, selected: Array, batch_size: int) -> float:
    """Return the share of the training images that an `Attack` poisons.

    It is the share of the rows `selected` [N], or that of each batch for an attack with a
    `per_batch_rate`.
    """
    if attack.per_batch_rate is None:
        return int(selected.sum()) / len(selected)
    wanted = attack.per_batch_rate * batch_size
    return (int(wanted) if wanted >= 1 else wanted) / batch_size


def stamped_once(stamp: Callable, trigger: Any, dataset: Dataset, poisoned: Array) -> Prepared:
    """Return a `Prepared` with a trigger, and the rows `poisoned` [N] bool of the training images.

    They are stamped once, before the training, and rounded to 8-bit levels.
    """
    compiled = jax.jit(stamp)

    def stamped(levels: jax.Array) -> jax.Array:
        return as_levels(compiled(trigger, as_float(levels))).astype(jnp.uint8)

    images = jnp.asarray(dataset.train.images)[np.flatnonzero(poisoned)]
    return Prepared(trigger, jnp.asarray(batched_map(stamped, images, batch_size=CHUNK)))


def relabel_rows(relabel: Callable) -> Callable[[Any, jax.Array, Batch], Batch]:
    """Return the `Attack.poison` of an attack whose preparation replaces the poisoned images.

    It relabels the attacker's rows of a batch.
    """

    def poison(trigger: Any, key: jax.Array, batch: Batch) -> Batch:
        return batch._replace(labels=jnp.where(batch.poisoned, relabel(batch.labels), batch.labels))

    return poison


def poison_rows(stamp: Callable, relabel: Callable) -> Callable[[Any, jax.Array, Batch], Batch]:
    """Return the usual `Attack.poison`, which stamps and relabels the attacker's rows of a batch.

    All other rows stay unchanged.
    """

    def poison(trigger: Any, key: jax.Array, batch: Batch) -> Batch:
        own = batch.poisoned[:, None, None, None]
        images = jnp.where(own, stamp(trigger, batch.images), batch.images)
        return batch._replace(
            images=images, labels=jnp.where(batch.poisoned, relabel(batch.labels), batch.labels)
        )

    return poison


def check_count(
    count: int, rate: float, among: int, what: str, setting: str = "rate", free: int | None = None
) -> None:
    """Raise `AttackError` if a share of images amounts to none, or to more than are free.

    `count` is the number of images to take, and `rate` its share of the `among` images that `what`
    names. `free` is the number of images that can be taken, if it is not `among`.
    """
    if not count:
        least = f", want at least {1 / among:.2g}" if among else ""
        control = "; the attack clean is the control without a backdoor"
        raise AttackError(
            f"{setting}: {rate:g} of {among} {what} is none{least}"
            f"{control if setting == 'rate' else ''}"
        )
    if free is not None and count > free:
        raise AttackError(
            f"{setting}: {rate:g} of {among} {what} is {count} images, but only {free} can be "
            f"taken: lower it to {free / among:.3g} or less"
        )


def draw(key: jax.Array, candidates: np.ndarray, count: int) -> jax.Array:
    """Return `count` random rows of the `candidates` [N], as a mask [N] bool."""
    rows = jax.random.permutation(key, np.flatnonzero(candidates))[:count]
    return jnp.zeros(len(candidates), bool).at[rows].set(True)
