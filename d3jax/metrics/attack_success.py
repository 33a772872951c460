"""ACC, ASR, RA and DER by the field's conventions, computed from exact counts of predictions."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int32, Integer, UInt8

from ..core.checks import check_built, check_labelled
from ..core.errors import ConfigError
from ..core.images import as_float, as_levels
from ..core.types import (
    Array,
    Attack,
    Model,
    Split,
    Variables,
)
from ..data.batched import batched_map, batched_sums
from ..data.drift import Drift, keys_of
from ..runtime.compilation import fast


class Counts(NamedTuple):
    """Counts of test images, and of their correct and attacker-wanted predictions, per class.

    All are int32 [K]. By true class, `clean` counts the test images, and `correct` those classified
    correctly. `triggered` counts the triggered images, `reached` those classified as the attacker's
    class, and `recovered` those classified as their true class. By predicted class, `mistaken`
    counts the triggered images that are wrongly classified as it (None in records of releases that
    did not count them).
    """

    clean: Integer[Array, " K"]
    correct: Integer[Array, " K"]
    triggered: Integer[Array, " K"]
    reached: Integer[Array, " K"]
    recovered: Integer[Array, " K"]
    mistaken: Integer[Array, " K"] | None = None

    @property
    def acc(self) -> float:
        """Return the ACC: the share of all clean test images that are classified correctly."""
        return _share(self.correct, self.clean)

    @property
    def acc_non_target(self) -> float:
        """Return the clean accuracy (ACC) on the test images of all classes but the target class.

        Some authors report this ACC. NaN without triggered images.
        """
        others = self.triggered > 0
        return _share(self.correct[others], self.clean[others])

    @property
    def asr(self) -> float:
        """Return the ASR: the share of triggered images that are classified as the target class.

        Images whose true class is the target do not count. NaN without triggered images.
        """
        return _share(self.reached, self.triggered)

    @property
    def ra(self) -> float:
        """Return the RA: the share of triggered images that are classified as their true class.

        The images are those of `asr`. NaN without triggered images.
        """
        return _share(self.recovered, self.triggered)

    @property
    def moved(self) -> tuple[int, float]:
        """Return the class other than the target that attracts triggered images most, and how much.

        The number is the share of the triggered images of the remaining classes that are classified
        as this class. It would be the ASR if this class were the target. For all-to-all attacks it
        is over all classes. (−1, NaN) without triggered images or without `mistaken`.
        """
        total = self.triggered.sum()
        if not total or self.mistaken is None:
            return -1, float("nan")
        # An all-to-one attack leaves out its target's images, so the target has none.
        others = np.where(self.triggered > 0, total - self.triggered, 0)
        shares = np.where(others > 0, self.mistaken / np.maximum(others, 1), 0.0)
        return int(shares.argmax()), float(shares.max())


def der(before: Counts, after: Counts) -> float:
    """Return the defence effectiveness rating (DER), from the counts before and after a repair.

    DER = [max(0, ΔASR) − max(0, ΔACC) + 1] / 2 with Δ = before − after (Zhu et al. 2023). NaN
    without triggered images.
    """
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
    """Build `evaluate(variables, trigger, test) -> Counts`, which measures ACC, ASR and RA.

    It is `make_measure` without the score, and takes the same arguments. The counts are exact for
    any number of test images. Raises `ConfigError` where the model or the attack was not built, and
    `evaluate` where the test images are not uint8 or `num_classes` is not the model's.
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
    """Build `measure(variables, trigger, test)`, which returns ACC, ASR, RA and a logit increase.

    It returns (Counts, score). The counts are exact for any number of test images. A triggered
    image counts if the attacker wants another class for it than its own. All-to-one thus leaves out
    the target's images, and all-to-all leaves out none. The score is how much the trigger raises
    the logit of the wanted class, averaged over these images (NaN without any).

    With a `drift` it is `measure(variables, trigger, test, strengths)`. Clean and triggered images
    are then drifted. The trigger is stamped after the drift, or before it with `trigger_first`. The
    randomness of a drift depends on the image's row in `test`, so it is the same for the clean and
    the triggered image.
    """
    counts_of = fast(_counts_of(model, attack, num_classes, drift, trigger_first))

    def measure(
        variables: Variables, trigger: Any, test: Split, strengths: jax.Array | None = None
    ) -> tuple[Counts, float]:
        def count(*batch: Any) -> tuple[Counts, jax.Array]:
            return counts_of(variables, trigger, *batch, strengths)

        check_built(variables=variables)
        check_labelled("test", test, num_classes)
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
    """Build `asr(variables, trigger, test) -> float`, which computes only the ASR.

    It is the ASR of `make_evaluate` at half the cost, because it skips the clean images.
    """
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
    """Build the function that counts a model's clean and triggered predictions on one padded batch.

    It returns the `Counts`, and the sum of the logit increases of the wanted class by the trigger.
    """

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
                raise TypeError("strengths: missing; the drift needs one for each of its kinds")
            return drift(keys_of(jax.random.key(0), rows), x, strengths)

        stamped = (
            move(attack.stamp(trigger, clean))
            if trigger_first
            else attack.stamp(trigger, move(clean))
        )
        logits = [model.apply(variables, x, train=False).logits for x in (move(clean), stamped)]
        if logits[0].shape[-1] != num_classes:
            raise ConfigError(
                f"num_classes: {num_classes}, but the model has {logits[0].shape[-1]} classes"
            )
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
    """Return the `Counts` of a batch's predictions: correct ones, target hits and other mistakes.

    `predicted` [B] are the classes predicted for clean images, `triggered` [B] those for triggered
    images, and `wanted` [B] the attacker's labels. Rows that are not `valid` [B] do not count. A
    prediction that is not a class, such as −1 for a rejected input, is neither correct nor the
    target.
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
    wrong = counted & (triggered != labels)
    mistaken = wrong.astype(jnp.int32) @ jax.nn.one_hot(triggered, num_classes, dtype=jnp.int32)
    by_true_class = Counts(*(mask.astype(jnp.int32) @ by_class for mask in masks))
    return by_true_class._replace(mistaken=mistaken)


def evaluate(
    predict: Callable[[Float32[Array, "B H W C"]], Integer[jax.Array, " B"]],
    attack: Attack,
    trigger: Any,
    test: Split,
    num_classes: int,
    batch_size: int = 500,
) -> Counts:
    """Return the test `Counts`, which give ACC, ASR and RA, of any function `predict(images)`.

    The function may be a model with an input detector. `predict(images) -> labels [B]` takes float
    images [B, H, W, C] in [0, 1], and returns −1 for an input that it rejects. For a plain model
    use `make_evaluate`, which compiles.
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
    """Return the class [B] that a model predicts for each of B uint8 images."""
    return model.apply(variables, as_float(images), train=False).logits.argmax(-1)


def _share(part: Array, whole: Array) -> float:
    return int(part.sum()) / int(whole.sum()) if whole.sum() else float("nan")


def triggered_images(
    attack: Attack, trigger: Any, images: UInt8[Array, "B H W C"]
) -> UInt8[jax.Array, "B H W C"]:
    """Return uint8 images with an attack's trigger stamped on them, as uint8.

    A file would hold them in this form.
    """
    return as_levels(attack.stamp(trigger, as_float(images))).astype(jnp.uint8)


def triggered_split(attack: Attack, trigger: Any, test: Split, batch_size: int = 500) -> Split:
    """Return triggered test images as uint8, with the labels that the attacker wants for them.

    They are the images on which the ASR is measured.
    """
    wanted = np.asarray(attack.relabel(jnp.asarray(test.labels)))
    rows = np.flatnonzero(wanted != np.asarray(test.labels))
    stamp = jax.jit(functools.partial(triggered_images, attack, trigger))
    images = batched_map(stamp, np.asarray(test.images)[rows], batch_size=batch_size)
    return Split(images, wanted[rows])


def target_share(
    model: Model,
    variables: Variables,
    test: Split,
    label: int,
    stamp: Callable[[jax.Array], jax.Array],
    batch_size: int = 500,
) -> float:
    """Return the share of test images of other classes that a model predicts as `label` if stamped.

    `stamp` takes float images in [0, 1] and returns uint8 images.
    """
    rows = np.flatnonzero(np.asarray(test.labels) != label)

    def hits(images: jax.Array) -> jax.Array:
        return predict(model, variables, stamp(as_float(jnp.asarray(images)))) == label

    return float(batched_map(hits, test.images[rows], batch_size=batch_size).mean())
