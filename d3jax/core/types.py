"""The contracts every piece of d3jax is written against: what a model, an attack, a defence and a data set are.

Shapes use `B` images of `H`×`W`×`C` in `K` classes; `N` is the size of a data set. Images rest as uint8 NHWC and are
float32 in [0, 1] inside functions; models normalise for themselves, so triggers live in pixel space.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

Params = Any
"""A nested dict of arrays."""

Metrics = dict[str, jax.Array]


class Variables(NamedTuple):
    """What a model is: trainable `params` and running `batch_stats` (an empty dict where there are none)."""

    params: Params
    batch_stats: Params


class Outputs(NamedTuple):
    """What a model says of `B` images: `logits [B, K]`, named `features`, and the updated `batch_stats`.

    `features["penultimate"]` is what the classifier sees; others are named by the architecture (`block1`, …).
    """

    logits: jax.Array
    features: dict[str, jax.Array]
    batch_stats: Params


class Model(NamedTuple):
    """A network as two functions. Any framework's net fits by writing these.

    `init(key) -> Variables`; `apply(variables, images, *, train) -> Outputs` with float32 images [B, H, W, C] in [0, 1].
    """

    init: Callable[[jax.Array], Variables]
    apply: Callable[..., Outputs]


class Batch(NamedTuple):
    """`images [B, H, W, C]` float32 in [0, 1], `labels [B]` int32, `poisoned [B]` bool: the rows the attacker owns.

    `joint` is what the poisoning by a trigger adds that is trained with the model: a `Joint`, else None. `rows [B]` int32 says which
    of the set they are, where the set is on the device.
    """

    images: jax.Array
    labels: jax.Array
    poisoned: jax.Array
    joint: Any = None
    rows: jax.Array | None = None


class Joint(NamedTuple):
    """`penalty` float32 [], added to the model's loss, and the `trigger` with its running statistics moved on."""

    penalty: jax.Array
    trigger: Any


class Split(NamedTuple):
    """Labelled images at rest: `images [N, H, W, C]` uint8, `labels [N]` int32."""

    images: np.ndarray | jax.Array
    labels: np.ndarray | jax.Array


@dataclasses.dataclass(frozen=True)
class DataInfo:
    """What code must know of a data set without its pixels.

    `mean` and `std` are per channel, in [0, 1] units; `crop` is the padding in pixels of the random crop that suits the
    images (0: none) and `flip` says whether a mirrored image keeps its class.
    """

    name: str
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: int = 0
    flip: bool = False

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes)


class Dataset(NamedTuple):
    """A training set, a test set and what is known of them."""

    train: Split
    test: Split
    info: DataInfo


class Prepared(NamedTuple):
    """What an attack computed before the training: its `trigger`, and `images` [n, H, W, C] uint8 that take the places of the
    n poisoned training images (None: they stay)."""

    trigger: Any
    images: jax.Array | None = None


class Preparation(NamedTuple):
    """Work that an attack does before the training.

    `run(key, model, clean, dataset, poisoned, hooks) -> (Prepared, lines)` with `poisoned [N]` bool; `clean` are the variables of
    a model trained on the clean set where `surrogate` is true, else None. `replaces` says whether there will be images.
    """

    run: Callable[..., tuple[Prepared, list[Any]]]
    surrogate: bool = False
    replaces: bool = False


class Attack(NamedTuple):
    """A backdoor attack as pure functions; `trigger` is a pytree made once by `init`.

    `init(key) -> trigger`; `stamp(trigger, images) -> images` is what the attacker does at test time (batch-wise,
    range-keeping); `select(key, labels [N]) -> bool [N]` draws the training rows to poison; `relabel(labels) -> labels`
    is the label the attacker wants for each true label; `poison(trigger, key, batch) -> Batch` is what training sees.

    A trigger that is found before the training comes from a `preparation`; `init` then gives its structure. One that is trained
    with the model has an `optimizer`: `poison` is differentiable in it and fills `Batch.joint`. `per_batch_rate` is the share of every
    batch that `poison` takes by position, drawn again in each epoch, instead of the rows of `select`. `eligible(labels) -> bool [N]` says which
    images it can poison at all: those of one class where the attack leaves labels right.
    """

    init: Callable[[jax.Array], Any]
    stamp: Callable[[Any, jax.Array], jax.Array]
    select: Callable[[jax.Array, jax.Array], jax.Array]
    relabel: Callable[[jax.Array], jax.Array]
    poison: Callable[[Any, jax.Array, Batch], Batch]
    preparation: Preparation | None = None
    optimizer: optax.GradientTransformation | None = None
    per_batch_rate: float | None = None
    eligible: Callable[[jax.Array], jax.Array] = lambda labels: jnp.ones(len(labels), bool)


class Repaired(NamedTuple):
    """What a repair returns: the new `variables` and a `trace` of arrays over logged steps, for plots."""

    variables: Variables
    trace: dict[str, np.ndarray]


class Defense(NamedTuple):
    """A post-training repair and what it must check before any work starts.

    `repair(key, model, variables, reserved, hooks=Hooks()) -> Repaired` with `reserved` a clean `Split`;
    `check(params, size)` raises `ConfigError` where the repair cannot run on such parameters (shapes suffice) or with that
    many reserved images. `loop(key, model, variables, reserved) -> TrainLoop` is the loop of a repair that is nothing but one
    (`defenses.repair.one_loop`): such repairs can run together, as members of one program. `search` is what must be found out of
    the model before (`defenses.target.Search`); defences that search alike share it, and `repair` takes it as `found=`.
    """

    repair: Callable[..., Repaired]
    check: Callable[[Params, int], None] = lambda params, size: None
    loop: Callable[..., Any] | None = None
    search: Any = None


class Trained(NamedTuple):
    """What a training-time defence returns: the `variables`, what it `found` out about the training images, arrays [N] by name, and a
    `trace` of arrays over logged steps."""

    variables: Variables
    found: dict[str, np.ndarray]
    trace: dict[str, np.ndarray]


class TrainingDefense(NamedTuple):
    """A training from scratch on images that may be poisoned, nobody says which; the defender controls it.

    `begin(key, model, data) -> TrainLoop` is its first stage on a `Split`, from its own start; `settings` say all of it as plain data, and
    defences that agree in them share what it leaves. `train(key, model, data, begun, hooks=Hooks()) -> Trained` goes on from the
    variables `begun`; `found(size)` is what it finds, as shapes. `check(size)` raises `ConfigError` where it cannot run on so many images;
    `epoch(size)` is how many steps an epoch of the first stage has.
    """

    begin: Callable[..., Any]
    settings: Any
    train: Callable[..., Trained]
    found: Callable[[int], dict[str, jax.ShapeDtypeStruct]]
    check: Callable[[int], None] = lambda size: None
    epoch: Callable[[int], int] = lambda size: 1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Hold everything that an optimiser loop moves. `step` (int32 []) is the only cursor: batches follow from (key, step).

    `carry` is a pytree of whatever moves besides the model and its optimiser, () where nothing does: a trained trigger with its
    optimiser's state, the parameters at the start of an update, the progress of a search. `training.step.make_train_step` says
    what a step does with it.
    """

    step: jax.Array
    variables: Variables
    opt_state: optax.OptState
    key: jax.Array
    carry: Any = ()
