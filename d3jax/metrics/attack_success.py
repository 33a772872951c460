"""ACC, ASR, RA and DER by the field's conventions, from exact counts."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int32, Integer, UInt8

from ..core.images import as_float, as_levels
from ..core.types import Array, Attack, Model, Split, Variables, check_built
from ..data.batched import batched_map, batched_sums
from ..data.drift import Drift, keys_of
from ..runtime.compilation import fast


class Counts(NamedTuple):
    """Per true class [K], int32: test images and those classified right; triggered images, those that reached the
    attacker's class, and those still classified as their true class."""

    clean: Integer[Array, " K"]
    correct: Integer[Array, " K"]
    triggered: Integer[Array, " K"]
    reached: Integer[Array, " K"]
    recovered: Integer[Array, " K"]

    @property
    def acc(self) -> float:
        """ACC: the share of all clean test images classified right."""
        return _share(self.correct, self.clean)

    @property
    def acc_non_target(self) -> float:
        """ACC without the images of the target, as some authors measure it; NaN without a trigger."""
        others = self.triggered > 0
        return _share(self.correct[others], self.clean[others])

    @property
    def asr(self) -> float:
        """ASR: the share of triggered images, true class not the target, classified as the target; NaN without a trigger."""
        return _share(self.reached, self.triggered)

    @property
    def ra(self) -> float:
        """RA: the share of the same images classified as their true class."""
        return _share(self.recovered, self.triggered)


def der(before: Counts, after: Counts) -> float:
    """Defence effectiveness rating [max(0, ΔASR) − max(0, ΔACC) + 1] / 2 with Δ = before − after (Zhu et al. 2023)."""
    return (
        (max(0.0, before.asr - after.asr) - max(0.0, before.acc - after.acc) + 1) / 2
        if before.triggered.sum()
        else np.nan
    )


def make_evaluate(
    model: Model,
    attack: Attack,
    num_classes: int,
    batch_size: int = 500,
    drift: Drift | None = None,
    trigger_first: bool = False,
) -> Callable[..., Counts]:
    """Builds `evaluate(variables, trigger, test) -> Counts`, exact for any number of test images: `make_measure` without the score.

    Raises `ConfigError` where the model or the attack was not built.
    """
    check_built(model=model, attack=attack)
    measure = make_measure(model, attack, num_classes, batch_size, drift, trigger_first)
    return lambda *given: measure(*given)[0]


def make_measure(
    model: Model,
    attack: Attack,
    num_classes: int,
    batch_size: int = 500,
    drift: Drift | None = None,
    trigger_first: bool = False,
) -> Callable[..., tuple[Counts, float]]:
    """Builds `measure(variables, trigger, test) -> (Counts, score)`, exact for any number of test images.

    A triggered image counts when the attacker wants another class for it than its own: for all-to-one that leaves the
    target's images out, for all-to-all none. The score is by how much the trigger raises the logit of the wanted class, on average over
    these; NaN without any. With a `drift` it is `measure(variables, trigger, test, strengths)`: clean and
    triggered images are drifted, the trigger pasted after that, or before (`trigger_first`); what is random in a drift belongs to the
    image's place in `test`, and is the same for the clean and the triggered one.
    """
    counts_of = fast(_counts_of(model, attack, num_classes, drift, trigger_first))

    def measure(
        variables: Variables, trigger: Any, test: Split, strengths: jax.Array | None = None
    ) -> tuple[Counts, float]:
        def count(*batch: Any) -> tuple[Counts, jax.Array]:
            return counts_of(variables, trigger, *batch, strengths)

        counts, raised = batched_sums(count, *test, batch_size=batch_size)
        total = int(counts.triggered.sum())
        return counts, float(raised) / total if total else float("nan")

    return measure


def make_asr(
    model: Model,
    attack: Attack,
    num_classes: int,
    batch_size: int = 500,
    drift: Drift | None = None,
    trigger_first: bool = False,
) -> Callable[..., float]:
    """Builds `asr(variables, trigger, test) -> float`: `make_evaluate`'s ASR alone, at half its cost, as clean images are not looked at."""
    counts_of = _counts_of(model, attack, num_classes, drift, trigger_first)

    @fast
    def shares_of(*batch: Any) -> tuple[jax.Array, jax.Array]:
        counts, _ = counts_of(*batch)
        return counts.reached.sum(), counts.triggered.sum()

    def asr(
        variables: Variables, trigger: Any, test: Split, strengths: jax.Array | None = None
    ) -> float:
        def share(*batch: Any) -> tuple[jax.Array, jax.Array]:
            return shares_of(variables, trigger, *batch, strengths)

        return _share(*batched_sums(share, *test, batch_size=batch_size))

    return asr


def _counts_of(
    model: Model, attack: Attack, num_classes: int, drift: Drift | None, trigger_first: bool
) -> Callable[..., tuple[Counts, jax.Array]]:
    """What is counted in one padded batch, and the sum by which the trigger raises the wanted class's logit."""

    def counts_of(
        variables: Variables,
        trigger: Any,
        images: jax.Array,
        labels: jax.Array,
        rows: jax.Array,
        valid: jax.Array,
        strengths: jax.Array | None,
    ) -> tuple[Counts, jax.Array]:
        clean = as_float(images)

        def move(x: Array) -> Array:
            if drift is None:
                return x
            if strengths is None:
                raise TypeError("strengths: the drift wants one for each of its kinds")
            return drift(keys_of(jax.random.key(0), rows), x, strengths)

        stamped = (
            move(attack.stamp(trigger, clean))
            if trigger_first
            else attack.stamp(trigger, move(clean))
        )
        logits = [model.apply(variables, x, train=False).logits for x in (move(clean), stamped)]
        wanted = attack.relabel(labels)
        predicted, triggered = (one.argmax(-1) for one in logits)
        counts = count(predicted, triggered, labels, wanted, valid, num_classes)
        raised = jnp.take_along_axis(logits[1] - logits[0], wanted[:, None], 1)[:, 0]
        return counts, jnp.where(valid & (wanted != labels), raised, 0).sum()

    return counts_of


def count(
    predicted: jax.Array,
    triggered: jax.Array,
    labels: Array,
    wanted: Array,
    valid: Array,
    num_classes: int,
) -> Counts:
    """Return the counts of a batch: classes [B] predicted of clean and of triggered images.

    `wanted` [B] are the attacker's labels; rows that are not `valid` [B] do not count. A prediction
    that is no class, such as −1 for a rejected input, is neither right nor the target.
    """
    counted = valid & (wanted != labels)
    by_class = jax.nn.one_hot(labels, num_classes, dtype=jnp.int32)
    masks = (
        valid,
        valid & (predicted == labels),
        counted,
        counted & (triggered == wanted),
        counted & (triggered == labels),
    )
    return Counts(*(mask.astype(jnp.int32) @ by_class for mask in masks))


def evaluate(
    predict: Callable[[Float32[Array, "B H W C"]], Integer[jax.Array, " B"]],
    attack: Attack,
    trigger: Any,
    test: Split,
    num_classes: int,
    batch_size: int = 500,
) -> Counts:
    """Return the counts of anything that predicts, such as a model with an input detector.

    `predict(images) -> labels [B]` takes float images [B, H, W, C] in [0, 1]; −1 rejects an input.
    Models are counted by `make_evaluate`, which compiles.
    """

    def counts(images: Any, labels: Any, rows: Any, valid: Any) -> Counts:
        clean, labels = as_float(jnp.asarray(images)), jnp.asarray(labels)
        predicted, triggered = predict(clean), predict(attack.stamp(trigger, clean))
        return count(predicted, triggered, labels, attack.relabel(labels), valid, num_classes)

    return batched_sums(counts, *test, batch_size=batch_size)


@functools.partial(jax.jit, static_argnums=0)
def predict(
    model: Model, variables: Variables, images: UInt8[Array, "B H W C"]
) -> Int32[jax.Array, " B"]:
    """The class [B] of each uint8 image."""
    return model.apply(variables, as_float(images), train=False).logits.argmax(-1)


def _share(part: Array, whole: Array) -> float:
    return int(part.sum()) / int(whole.sum()) if whole.sum() else float("nan")


def triggered_images(
    attack: Attack, trigger: Any, images: UInt8[Array, "B H W C"]
) -> UInt8[jax.Array, "B H W C"]:
    """Return uint8 images with the attacker's trigger, as a file would hold them."""
    return as_levels(attack.stamp(trigger, as_float(images))).astype(jnp.uint8)


def target_share(
    model: Model,
    variables: Variables,
    test: Split,
    label: int,
    stamp: Callable[[jax.Array], jax.Array],
    batch_size: int = 500,
) -> float:
    """Return the share of the images of other classes that are taken for `label` when stamped.

    `stamp` takes float images in [0, 1] and gives uint8 ones.
    """
    rows = np.flatnonzero(np.asarray(test.labels) != label)

    def hits(images: jax.Array) -> jax.Array:
        return predict(model, variables, stamp(as_float(jnp.asarray(images)))) == label

    return float(batched_map(hits, test.images[rows], batch_size=batch_size).mean())
