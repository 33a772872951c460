"""Trigger inversion: the smallest change of an image that makes a model see a given class, for all classes at once.

A backdoored model needs an unusually small one for its target (Neural Cleanse, Wang et al., IEEE S&P 2019). All inversions give
one kind of trigger, a mask and a pattern: clip((1 − mask) · x + pattern, 0, 1). A triggered image need not look like the attacker's.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .base import DataInfo, Metrics, Model, Params, Split, TrainState, Variables, as_float, stream
from .config import check_fields, fill_preset, option
from .errors import ConfigError
from .training.loop import Job, Line, Session, fit
from .training.step import Batches, Step, TrainData, cross_entropy, make_batches, make_rows

NC = {
    "lr": 0.1, "b1": 0.5, "b2": 0.9, "batches": 31, "threshold": 0.99, "cost": 1e-3, "patience": 5, "up": 2.0, "down": 2**1.5, "stop": 25,
}  # fmt: skip
PRESETS = {
    "nc": NC,
    "fixed": NC | {"lr": 0.005, "b1": 0.9, "b2": 0.999, "batches": 0, "threshold": 0.0, "cost": 0.01, "patience": 0, "stop": 30},
    "pixel": NC | {"batches": 0, "threshold": 0.9, "patience": 10, "up": 1.5, "down": 1.5**1.5, "stop": 50},
}


@dataclasses.dataclass(frozen=True)
class InversionConfig:
    """A preset and what departs from it. A pass is what the cost is adapted after.

    `nc`: Neural Cleanse's mask and pattern through tanh, its official schedule. `fixed`: raw mask and pattern, clipped, at a fixed
    cost (the first MCL code). `pixel`: two additive patterns, one up and one down, with a smooth count of the pixels they change
    (Tao et al., CVPR 2022; the second MCL code); where it stops early is ours.
    """

    preset: Literal["nc", "fixed", "pixel"] = option("nc", "what is searched, and where all below comes from unless given")
    passes: int = option(1000, "passes at most", low=1)
    batch_size: int = option(32, "images a step", low=1)
    batches: int | None = option(None, "steps a pass (0: all images once)", low=0)
    lr: float | None = option(None, "Adam's learning rate", above=0)
    b1: float | None = option(None, "its first moment's decay", low=0, high=1)
    b2: float | None = option(None, "its second moment's decay", low=0, high=1)
    threshold: float | None = option(None, "share of a pass's images that a trigger must turn to be kept", low=0, high=1)
    cost: float | None = option(None, "weight of the size, once there is one", low=0)
    patience: int | None = option(None, "passes at or below the threshold before the cost changes (0: it never does)", low=0)
    up: float | None = option(None, "factor of the cost when it rises", low=1)
    down: float | None = option(None, "divisor of the cost when it falls", low=1)
    stop: int | None = option(None, "passes without a smaller trigger after which a label is done (0: never)", low=0)
    median: Literal["lower", "mean"] = option(
        "lower", "of an even number of sizes the lower middle one (as the field's PyTorch codes), or the mean of both (as NumPy)"
    )

    def __post_init__(self) -> None:
        check_fields(self)
        fill_preset(self, PRESETS)


class Trigger(NamedTuple):
    """`mask [..., H, W, 1]` in [0, 1], how much of each pixel goes, and `pattern [..., H, W, C]`, what comes in its place."""

    mask: jax.Array
    pattern: jax.Array


class Inversion(NamedTuple):
    """Triggers [L] of `labels` [L] int32 (−1: of none), and of each: its `norms` (‖mask‖₁, for pixel how many pixels change),
    `success`, the share of the images of other classes that it turns, and after how many `passes` it stopped."""

    labels: jax.Array
    trigger: Trigger
    norms: jax.Array
    success: jax.Array
    passes: jax.Array


class Detection(NamedTuple):
    """Neural Cleanse's outlier test: `index` [L] is |norm − median| / spread, spread 1.4826 · MAD; `flagged` [L] those with
    more than 2 below the median. `anomaly` is the index of the smallest norm."""

    index: np.ndarray
    flagged: np.ndarray
    median: float
    spread: float
    anomaly: float


def stamp(trigger: Trigger, images: jax.Array) -> jax.Array:
    """`images [B, H, W, C]` in [0, 1] with one trigger."""
    return jnp.clip((1 - trigger.mask[None]) * images + trigger.pattern[None], 0, 1)


_stamp_all = jax.vmap(stamp, in_axes=(0, None), out_axes=1)
"""Images [B, H, W, C] with each of L triggers: [B, L, H, W, C]. The batch comes first, as a mesh splits it."""


def detect(norms: Any, median: str = "lower") -> Detection:
    """Which of the `norms` [L] are outliers on the small side. With equal norms but for one, that one's index is infinite."""
    norms = np.asarray(norms, np.float64)
    middle = float(_median(norms, median))
    gaps = np.abs(norms - middle)
    spread = 1.4826 * float(_median(gaps, median))
    index = np.divide(gaps, spread, out=np.where(gaps > 0, np.inf, 0.0), where=spread > 0)
    return Detection(index, (norms < middle) & (index > 2), middle, spread, float(index[norms.argmin()]))


def _median(values: np.ndarray, kind: str) -> np.floating:
    return np.quantile(values, 0.5, method="lower" if kind == "lower" else "linear")


def invert(
    key: jax.Array,
    model: Model,
    variables: Variables,
    images: Split,
    config: InversionConfig = InversionConfig(),
    labels: Any = None,
    session: Session = Session(),
) -> tuple[Inversion, list[Line]]:
    """The smallest triggers found for `labels` [L] (None: all the model's), and the lines logged on the way.

    All labels are searched in one program; when half of them are done, the others go on in a smaller one. A label gets the numbers
    it would get alone: batches follow from (key, step), its start from (key, label). What never turned enough images is as the
    last step left it. Raises `ConfigError` where there are fewer images than a batch has.
    """
    labels = np.arange(model_classes(model, variables, images)) if labels is None else np.asarray(labels)
    job, left, lines, found = inversion_job(key, model, variables, images, config, labels), labels, [], {}
    while len(left):
        state, logged = fit(job, session.within(f"labels{len(left)}"))
        before = lines[-1]["seconds"] if lines else 0.0
        lines += [line | {"seconds": before + line["seconds"]} for line in logged]
        kept = _kept(state)
        found |= {int(label): jax.tree.map(lambda leaf: leaf[i], kept) for i, label in enumerate(left)}  # noqa: B023
        going = np.flatnonzero(np.asarray(_progress(state).active))
        if int(state.step) == job.steps:
            break
        left = left[going]
        job = job._replace(state=_only(state, going), data=job.data._replace(hyper={"labels": jnp.asarray(left, jnp.int32)}))
    raw, passes = jax.tree.map(lambda *leaves: np.stack(leaves), *(found[int(label)] for label in labels))
    trigger, norms = _measured(raw, config.preset)
    turned = success_of(model, variables, trigger, labels, images)
    return Inversion(jnp.asarray(labels, jnp.int32), trigger, norms, turned, jnp.asarray(passes)), lines


@jax.jit(static_argnums=1)
def _measured(raw: Params, preset: str) -> tuple[Trigger, jax.Array]:
    """The final triggers [L] and their norms."""
    trigger = trigger_of(raw, preset, final=True)
    norms = (trigger.pattern != 0).any(-1).sum((1, 2)) if preset == "pixel" else trigger.mask.sum((1, 2, 3))
    return trigger, norms.astype(jnp.float32)


def inversion_job(
    key: jax.Array, model: Model, variables: Variables, images: Split, config: InversionConfig, labels: np.ndarray
) -> Job:
    """The loop that searches the triggers of `labels` [L], which ends when half of them are done. Raises as `invert`."""
    size, classes = len(images.labels), model_classes(model, variables, images)
    if size < config.batch_size:
        raise ConfigError(f"inversion: batch_size {config.batch_size} is more than the {size} images there are")
    if not ((labels >= 0) & (labels < classes)).all():
        raise ConfigError(f"inversion: labels {labels.tolist()} are not all classes of the model, which are 0 to {classes - 1}")
    per_epoch = size // config.batch_size
    per_pass = config.batches or per_epoch
    rows = make_rows(size=size, steps_per_epoch=per_epoch, batch_size=config.batch_size)
    step = inversion_step(model, config, make_batches(rows=rows, augment=lambda key, images: images), per_pass)
    split = Split(*map(jnp.asarray, images))
    data = TrainData(split, jnp.zeros(size, bool), {}, variables, {"labels": jnp.asarray(labels, jnp.int32)})
    state = start(key, jnp.asarray(labels), images.images.shape[1:], config)
    return Job(step, state, data, config.passes * per_pass, finished=_half_done)


def _half_done(state: TrainState) -> bool:
    active = np.asarray(_progress(state).active)
    return 2 * int(active.sum()) <= len(active)


def nothing(shape: tuple[int, int, int]) -> Inversion:
    """The inversion of no label: its trigger changes nothing."""
    height, width, channels = shape
    trigger = Trigger(jnp.zeros((1, height, width, 1)), jnp.zeros((1, height, width, channels)))
    return Inversion(jnp.array([-1], jnp.int32), trigger, jnp.zeros(1), jnp.zeros(1), jnp.zeros(1, jnp.int32))


def like(count: int, shape: tuple[int, int, int]) -> Inversion:
    """The shapes and dtypes of an inversion of `count` labels on images of `shape`."""
    return jax.eval_shape(lambda: jax.tree.map(lambda leaf: jnp.repeat(leaf, count, 0), nothing(shape)))


def model_classes(model: Model, variables: Variables, images: Split) -> int:
    """How many classes the model tells apart."""
    example = jax.ShapeDtypeStruct((1, *images.images.shape[1:]), jnp.float32)
    return jax.eval_shape(lambda v, x: model.apply(v, x, train=False).logits, variables, example).shape[-1]


def success_of(
    model: Model, variables: Variables, trigger: Trigger, labels: Any, images: Split, batch_size: int = 128
) -> jax.Array:
    """The share [L] of the images of other classes that the triggers [L] turn to `labels` [L]."""
    labels, truth = jnp.asarray(labels), jnp.asarray(images.labels)
    turned = [
        _turned(model, variables, trigger, labels, jnp.asarray(images.images[first : first + batch_size]))
        for first in range(0, len(truth), batch_size)
    ]
    others = np.asarray(truth)[None] != np.asarray(labels)[:, None]
    rates = (np.concatenate([np.asarray(part) for part in turned], 1) & others).sum(1) / np.maximum(others.sum(1), 1)
    return jnp.asarray(rates, jnp.float32)


@jax.jit(static_argnums=0)
def _turned(model: Model, variables: Variables, trigger: Trigger, labels: jax.Array, images: jax.Array) -> jax.Array:
    return (_logits(model, variables, _stamp_all(trigger, as_float(images))).argmax(-1) == labels[None]).T


def _logits(model: Model, variables: Variables, stamped: jax.Array) -> jax.Array:
    """Logits [B, L, K] of images [B, L, H, W, C]."""
    logits = model.apply(variables, stamped.reshape(-1, *stamped.shape[2:]), train=False).logits
    return logits.reshape(*stamped.shape[:2], -1)


# --- the search ---------------------------------------------------------------------------------------------------------------


class Progress(NamedTuple):
    """Where the search of every label [L] stands: its `cost` and what moves it, the smallest trigger so far (`raw`, of size
    `least`), whether it is `active` and for how many `passes` it was, and the sums over the pass that runs."""

    cost: jax.Array
    begun: jax.Array
    above: jax.Array
    below: jax.Array
    went_up: jax.Array
    went_down: jax.Array
    raw: Params
    least: jax.Array
    stale: jax.Array
    active: jax.Array
    passes: jax.Array
    success: jax.Array
    size: jax.Array


@jax.jit(static_argnums=(2, 3))
def start(key: jax.Array, labels: jax.Array, shape: tuple[int, int, int], config: InversionConfig) -> TrainState:
    """The state before the first step for `labels` [L] and images of `shape`."""
    place = lambda label: _random(jax.random.fold_in(stream(key, "start"), label), shape, config.preset)
    raw = jax.vmap(place)(labels)
    count = len(labels)
    number, no = jnp.zeros(count, jnp.int32), jnp.zeros(count, bool)
    zero = jnp.zeros(count)
    cost = zero if config.patience else zero + config.cost
    progress = Progress(cost, number, number, number, no, no, raw, zero + jnp.inf, number, ~no, number, zero, zero)
    return TrainState(jnp.zeros((), jnp.int32), Variables(raw, {}), (_adam(config).init(raw), progress), stream(key, "steps"))


def _adam(config: InversionConfig) -> optax.GradientTransformation:
    return optax.adam(config.lr, config.b1, config.b2)


def _random(key: jax.Array, shape: tuple[int, int, int], preset: str) -> Params:
    height, width, _ = shape
    first, second = jax.random.split(key)
    if preset == "pixel":
        return {"more": jax.random.uniform(first, shape), "less": jax.random.uniform(second, shape)}
    raw = {"mask": jax.random.uniform(first, (height, width, 1)), "pattern": jax.random.uniform(second, shape)}
    return jax.tree.map(lambda x: jnp.arctanh((x - 0.5) * (2 - 1e-7)), raw) if preset == "nc" else raw


def trigger_of(raw: Params, preset: str, final: bool = False) -> Trigger:
    """The triggers that raw parameters [L, ...] stand for; a `final` one of pixel has no changes under one 8-bit level."""
    if preset == "pixel":
        change = jnp.clip(raw["more"], 0, 1) - jnp.clip(raw["less"], 0, 1)
        change = jnp.where(jnp.abs(change) < 1 / 255, 0, change) if final else change
        return Trigger(jnp.zeros_like(change[..., :1]), change)
    mask, pattern = (raw["mask"], raw["pattern"]) if preset == "fixed" else map(_squash, (raw["mask"], raw["pattern"]))
    return Trigger(mask, mask * pattern)


def size_of(raw: Params, preset: str) -> jax.Array:
    """What is kept small [L]: ‖mask‖₁, or for pixel the smooth count Σ max_c(tanh(p / 10) / 2 + 1/2) of both patterns."""
    if preset == "pixel":
        return sum(_squash(part / 10).max(-1).sum((-2, -1)) for part in raw.values())
    return trigger_of(raw, preset).mask.sum((-3, -2, -1))


def _squash(x: jax.Array) -> jax.Array:
    return jnp.tanh(x) / (2 - 1e-7) + 0.5


def inversion_step(model: Model, config: InversionConfig, batches: Batches, per_pass: int) -> Step:
    """One step of Adam for every label on CE(f(stamped), label) + cost · size; after every `per_pass` of them `adapt`.

    The model is `data.anchor`, the labels [L] `data.hyper["labels"]`.
    """
    tx = _adam(config)

    def step(state: TrainState, data: TrainData) -> tuple[TrainState, Metrics]:
        moments, progress = state.opt_state
        images, labels = batches(state.key, state.step, data).images, data.hyper["labels"]

        def total(raw: Params):
            logits = _logits(model, data.anchor, _stamp_all(trigger_of(raw, config.preset), images))
            ce = cross_entropy(logits, jnp.broadcast_to(labels[None], logits.shape[:2])).mean(0)
            size = size_of(raw, config.preset)
            return (ce + progress.cost * size).sum(), (ce, (logits.argmax(-1) == labels[None]).mean(0), size)

        raw = state.variables.params
        (_, (ce, success, size)), grads = jax.value_and_grad(total, has_aux=True)(raw)
        metrics = {"loss": (ce + progress.cost * size).mean(), "success": success.mean(), "size": size.mean()}
        updates, moments = tx.update(grads, moments, raw)
        raw = optax.apply_updates(raw, updates)
        if config.preset == "fixed":
            raw = jax.tree.map(lambda x: jnp.clip(x, 0, 1), raw)
        progress = progress._replace(success=progress.success + success / per_pass, size=progress.size + size / per_pass)
        ended, adapted = (state.step + 1) % per_pass == 0, adapt(progress, raw, config)
        progress = jax.tree.map(lambda now, then: jnp.where(ended, then, now), progress, adapted)
        metrics["active"] = progress.active.sum().astype(jnp.float32)
        return TrainState(state.step + 1, Variables(raw, {}), (moments, progress), state.key), metrics

    return step


def adapt(progress: Progress, raw: Params, config: InversionConfig) -> Progress:
    """The end of a pass for every label, from the pass's mean `success` and `size`: what is kept, what stops, the new cost.

    The cost is 0 until `patience` passes in a row were at the threshold, then `config.cost`; from there each such row raises it and
    each row below lowers it. A label is done when its cost has gone both ways and nothing smaller came in `stop` passes.
    """
    enough = progress.success >= config.threshold
    better = progress.active & enough & (progress.size < progress.least)
    keep = lambda old, new: jnp.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)
    stale = jnp.where(better, 0, progress.stale + jnp.isfinite(progress.least))
    moved = (progress.went_up & progress.went_down) if config.patience else True
    done = moved & (stale >= config.stop) if config.stop else jnp.zeros_like(progress.active)
    kept = progress._replace(
        raw=jax.tree.map(keep, progress.raw, raw), least=jnp.where(better, progress.size, progress.least), stale=stale,
        active=progress.active & ~done, passes=progress.passes + progress.active,
        success=jnp.zeros_like(progress.success), size=jnp.zeros_like(progress.size),
    )  # fmt: skip
    if not config.patience:
        return kept
    begun = jnp.where((progress.cost == 0) & enough, progress.begun + 1, 0)
    first = begun >= config.patience
    above = jnp.where(enough, jnp.where(first, 0, progress.above) + 1, 0)
    below = jnp.where(enough, 0, jnp.where(first, 0, progress.below) + 1)
    rise, fall = above >= config.patience, below >= config.patience
    cost = jnp.where(first, config.cost, progress.cost) * jnp.where(rise, config.up, 1) / jnp.where(fall, config.down, 1)
    return kept._replace(
        cost=cost, begun=jnp.where(first, 0, begun), above=jnp.where(rise, 0, above), below=jnp.where(fall, 0, below),
        went_up=(progress.went_up & ~first) | rise, went_down=(progress.went_down & ~first) | fall,
    )  # fmt: skip


def _progress(state: TrainState) -> Progress:
    return state.opt_state[1]


@jax.jit
def _best(state: TrainState) -> tuple[Params, jax.Array]:
    progress = _progress(state)
    pick = lambda best, last: jnp.where(jnp.isfinite(progress.least).reshape(-1, *[1] * (last.ndim - 1)), best, last)
    return jax.tree.map(pick, progress.raw, state.variables.params), progress.passes


def _kept(state: TrainState) -> tuple[Params, np.ndarray]:
    """The smallest triggers so far, or where there is none the last ones, and the passes; on the host."""
    return jax.device_get(_best(state))


def _only(state: TrainState, rows: np.ndarray) -> TrainState:
    """The state of the labels in `rows` alone."""
    take = lambda leaf: jnp.asarray(leaf[rows]) if leaf.ndim else leaf  # the labels' axis is the first of every array
    variables, opt_state = jax.tree.map(take, jax.device_get((state.variables, state.opt_state)))
    return dataclasses.replace(state, variables=variables, opt_state=opt_state)


def inversion(config: InversionConfig, info: DataInfo) -> Any:
    """Detection by inversion: `(key, model, variables, images) -> (Inversion, lines)`, whose norms `detect` takes."""
    return functools.partial(invert, config=config)


DETECTIONS = {"inversion": (InversionConfig, inversion)}
"""`DETECTIONS[name] = (config class, constructor(config, info))`."""
