"""Contract checks of attacks, models, data sets and defences, to call from the tests of new ones.

    from d3jax import testing

    def test_my_attack():
        testing.check_attack(my_attack(MyConfig(), info), info)

Each check raises an `AssertionError` that names the broken rule. Defences are checked on a
`Fixture`, a small backdoored model that `make_fixture` trains in some seconds.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from .attacks import badnets
from .config.recipes import OptimConfig, TrainConfig
from .core.errors import ConfigError
from .core.images import as_float
from .core.types import (
    Attack,
    Batch,
    DataInfo,
    Dataset,
    InputDetector,
    Model,
    ModelDetector,
    Repair,
    Repaired,
    SampleDetector,
    Scored,
    Split,
    Trained,
    TrainingDefense,
    Variables,
    Verdict,
)
from .data import synthetic
from .metrics import Counts, make_evaluate
from .metrics.attack_success import triggered_images, triggered_split
from .metrics.detection import detection_rates
from .training import Hooks, fit, train_backdoored
from .training.poisoned_set import poisoned_split


class Fixture(NamedTuple):
    """A small backdoored model with its data: BadNets at 10 % on `synthetic` images of 4 classes.

    ACC and ASR are near 100 %. `samples` is the poisoned training set, `poisoned` [N] bool marks
    its poisoned rows, and `reserved` are 100 clean images.
    """

    model: Model
    dataset: Dataset
    attack: Attack
    variables: Variables
    trigger: Any
    samples: Split
    poisoned: np.ndarray
    reserved: Split

    @property
    def before(self) -> Counts:
        """Return the `Counts` of the fixture's backdoored model on the test set."""
        return self.evaluate(self.model, self.variables)

    def evaluate(self, model: Model, variables: Variables) -> Counts:
        """Return a model's `Counts` on the fixture's test images, clean and triggered."""
        classes = self.dataset.info.num_classes
        return make_evaluate(model, self.attack, classes)(
            variables, self.trigger, self.dataset.test
        )


def make_fixture(build: Callable[[DataInfo], Model], seed: int = 0) -> Fixture:
    """Train a small backdoored model of the architecture `build(info)`; return it as a `Fixture`.

    `build(info)` returns a `Model`. The training has 250 steps.
    """
    settings = {"size": 12, "channels": 3, "classes": 4, "train": 400, "test": 130, "noise": 0.15}
    dataset = synthetic(**settings).build()
    model, attack = build(dataset.info), badnets(rate=0.1).build(dataset.info)
    recipe = TrainConfig(steps=250, batch_size=64, augment="none", optimizer=OptimConfig(lr=0.05))
    key = jax.random.key(seed)
    victim = train_backdoored(key, model, dataset, attack, recipe)
    samples, flags = poisoned_split(key, attack, dataset.train)
    flags = np.asarray(flags)
    clean = np.flatnonzero(~flags)[:100]
    reserved = Split(*(np.asarray(part)[clean] for part in dataset.train))
    return Fixture(
        model, dataset, attack, victim.variables, victim.trigger, samples, flags, reserved
    )


def check_attack(
    attack: Attack, info: DataInfo, *, tolerance: float = 1e-6, eager: bool = True
) -> None:
    """Check the contract of an `Attack` on random images of a data set's shape.

    - `init` gives equal triggers for equal keys.
    - `stamp` keeps shape, dtype and range. Its results under jit are equal to `tolerance`.
    - `poison` keeps shapes, dtypes and range, and changes the labels as `relabel` does. With fixed
      rows it leaves all images but the attacker's as they are.
    - `relabel`, `eligible` and `select` return arrays of the right kind. `select` takes eligible
      rows only.
    - `covers`, if the attack has it, draws rows that `select` does not draw. `poison` keeps their
      labels and changes their images.

    With `eager=False`, `stamp` and `poison` only run compiled, which is faster for networks.
    """
    _require_kind(attack, Attack)
    stamp, poison = (
        (attack.stamp, attack.poison) if eager else map(jax.jit, (attack.stamp, attack.poison))
    )
    trigger = attack.init(jax.random.key(3))
    chex.assert_trees_all_equal(trigger, attack.init(jax.random.key(3)))
    images = jax.random.uniform(jax.random.key(1), (6, *info.shape))
    out = stamp(trigger, images)
    _require(out.shape == images.shape, f"stamp: shape {out.shape}, want {images.shape}")
    _require(out.dtype == jnp.float32, f"stamp: {out.dtype}, want float32")
    _require(0 <= out.min() and out.max() <= 1, "stamp: leaves [0, 1]")
    if eager:
        compiled = jax.jit(stamp)(trigger, images)
        chex.assert_trees_all_close(compiled, out, atol=tolerance, rtol=0)
    labels = jnp.arange(60) % info.num_classes
    wanted, may = attack.relabel(labels), attack.eligible(labels)
    _require(wanted.shape == labels.shape, "relabel: changes the shape")
    _require(
        bool(((wanted >= 0) & (wanted < info.num_classes)).all()), "relabel: a label is no class"
    )
    _require(may.shape == labels.shape and may.dtype == bool, "eligible: want bool [N]")
    if attack.per_batch_rate is None:
        chosen = attack.select(jax.random.key(0), labels)
        _require(
            chosen.dtype == bool and not bool((chosen & ~may).any()),
            "select: a row is not eligible",
        )
    own, six = jnp.array([True, False, True, False, False, True]), labels[:6]
    covers = None
    if attack.covers:
        covers = attack.covers(jax.random.key(0), labels)
        _require(covers.dtype == bool and bool(covers.any()), "covers: want bool [N], some true")
        _require(not bool((covers & chosen).any()), "covers: a row is also poisoned")
        covers = jnp.array([False, True, False, False, False, False])
    before = Batch(images, six, own, rows=jnp.arange(6), covers=covers)
    batch = poison(trigger, jax.random.key(2), before)
    chex.assert_trees_all_equal_shapes_and_dtypes(batch._replace(joint=None), before)
    _require(0 <= batch.images.min() and batch.images.max() <= 1, "poison: leaves [0, 1]")
    relabelled = jnp.where(batch.poisoned, attack.relabel(six), six)
    _require(bool((batch.labels == relabelled).all()), "poison: labels are not those of relabel")
    if attack.per_batch_rate is None:
        _require(bool((batch.poisoned == own).all()), "poison: takes other rows than select's")
        clean = ~own if covers is None else ~(own | covers)
        _require(bool((batch.images[clean] == images[clean]).all()), "poison: changes clean rows")
    if covers is not None:
        changed = bool((batch.images[covers] != images[covers]).any())
        _require(changed, "poison: leaves the cover rows as they are")
    _require((batch.joint is None) == (attack.optimizer is None), "poison: joint and optimizer")


def check_model(model: Model, info: DataInfo) -> None:
    """Check the contract of a `Model`: shapes, finite logits and its use of running statistics.

    `init` gives equal variables for equal keys. The logits have the right shape and are finite.
    Running statistics change in training only. `activations` gives the shapes of the features.
    """
    variables = model.init(jax.random.key(0))
    chex.assert_trees_all_equal(variables, model.init(jax.random.key(0)))
    images = jax.random.uniform(jax.random.key(1), (3, *info.shape))
    tested, trained = (
        jax.jit(functools.partial(model.apply, train=train))(variables, images)
        for train in (False, True)
    )
    chex.assert_shape(tested.logits, (3, info.num_classes))
    chex.assert_tree_all_finite((tested.logits, trained.logits))
    chex.assert_trees_all_equal(tested.batch_stats, variables.batch_stats)
    chex.assert_trees_all_equal_shapes_and_dtypes(trained.batch_stats, variables.batch_stats)
    same = jax.tree.map(jnp.array_equal, trained.batch_stats, variables.batch_stats)
    _require(not any(jax.tree.leaves(same)), "training does not change running statistics")
    if model.activations:
        shapes = {name: feature.shape[1:] for name, feature in tested.features.items()}
        told = {name: shape.shape for name, shape in model.activations().items()}
        _require(shapes == told, "activations: not the features that apply returns")


def check_dataset(dataset: Dataset) -> None:
    """Check the contract of a `Dataset`: array types and shapes, and that every class occurs.

    Images are uint8 of the shape in `info`, and labels int32. The training set and the test set
    contain every class. `mean` and `std` have one value per channel.
    """
    info = dataset.info
    for split in (dataset.train, dataset.test):
        images, labels = (np.asarray(part) for part in split)
        chex.assert_rank(labels, 1)
        _require(images.shape == (len(labels), *info.shape), f"images: shape {images.shape}")
        _require(images.dtype == np.uint8, f"images: {images.dtype}, want uint8")
        _require(labels.dtype == np.int32, f"labels: {labels.dtype}, want int32")
        _require(set(labels.tolist()) == set(range(info.num_classes)), "labels: not all classes")
    for name in ("mean", "std"):
        _require(len(getattr(info, name)) == info.shape[2], f"{name}: want one for each channel")


def check_repair(
    repair: Repair,
    fixture: Fixture,
    *,
    asr: float = 1.0,
    drop: float = 0.2,
    **given: Any,
) -> Repaired:
    """Check the contract of a `Repair` on a `Fixture` and return the `Repaired` result.

    - Its `check` accepts the fixture.
    - Equal keys give equal variables, of the structure that `network` declares.
    - The given variables are not modified.
    - The new variables and the trace are finite.
    - ACC falls by at most `drop`, and the ASR is at most `asr` afterwards.

    `given` has values for the repair's `needs`, such as `target=`. The training set and the test
    set are passed automatically.
    """
    _require_kind(repair, Repair)
    model, variables = fixture.model, fixture.variables
    repair.check(model, jax.eval_shape(model.init, jax.random.key(0)), len(fixture.reserved.labels))
    sets = _test_sets(fixture) | {"training_set": fixture.samples}
    given = {name: sets[name] for name in repair.needs if name in sets} | given
    copy = jax.tree.map(np.array, variables)
    arguments = (jax.random.key(1), model, variables, fixture.reserved)
    found, again = (repair.repair(*arguments, Hooks(), **given) for _ in range(2))
    _require(isinstance(found, Repaired), f"repair: returned a {type(found).__name__}")
    chex.assert_trees_all_equal(copy, jax.tree.map(np.array, variables))
    chex.assert_trees_all_equal(found.variables, again.variables)
    chex.assert_tree_all_finite((found.variables, dict(found.trace)))
    network = repair.network(model)
    _require(found.model in (None, network), "repair: model is another than network's")
    _require_variables(found.variables, network)
    before, after = fixture.before, fixture.evaluate(network, found.variables)
    _require(after.acc >= before.acc - drop, f"ACC {before.acc:.3f} → {after.acc:.3f}")
    _require(after.asr <= asr, f"ASR {before.asr:.3f} → {after.asr:.3f}, want at most {asr:g}")
    return found


def _test_sets(fixture: Fixture) -> dict[str, Split]:
    """Return a fixture's test images, clean and triggered, for rules that read them."""
    test = fixture.dataset.test
    triggered = triggered_split(fixture.attack, fixture.trigger, test)
    return {"test_set": test, "triggered_set": triggered}


def _require_variables(variables: Variables, network: Model) -> None:
    """Raise if variables do not have the structure, shapes and dtypes of a network's."""
    like = jax.eval_shape(network.init, jax.random.key(0))
    chex.assert_trees_all_equal_shapes_and_dtypes(variables, like)


def check_training_defense(
    defense: TrainingDefense, fixture: Fixture, *, asr: float = 1.0, acc: float = 0.5
) -> Trained:
    """Check a training-time defence's contract on a `Fixture`; return the `Trained` result.

    - Equal keys give equal variables.
    - The given variables and images are not modified.
    - The new variables are finite.
    - `found` has the shapes and dtypes that the defence declares.
    - The variables of the first stage and the new ones have the structure of their networks.
    - The trained model has an ACC of at least `acc` and an ASR of at most `asr`.
    """
    _require_kind(defense, TrainingDefense)
    size, key = len(fixture.samples.labels), jax.random.key(1)
    shapes = jax.eval_shape(fixture.model.init, key)
    defense.check(fixture.model, shapes, size, len(fixture.reserved.labels))
    sets = _test_sets(fixture) | {"reserved": fixture.reserved}
    given = {name: sets[name] for name in defense.needs}
    begun = fit(defense.begin(key, fixture.model, fixture.samples))[0].variables
    _require_variables(begun, defense.first_network(fixture.model))
    copy = jax.tree.map(np.array, (begun, fixture.samples))
    found, again = (
        defense.train(key, fixture.model, fixture.samples, begun, Hooks(), **given)
        for _ in range(2)
    )
    _require(isinstance(found, Trained), f"train: returned a {type(found).__name__}")
    chex.assert_trees_all_equal(copy, jax.tree.map(np.array, (begun, fixture.samples)))
    chex.assert_trees_all_equal(found.variables, again.variables)
    chex.assert_tree_all_finite(found.variables)
    network = defense.network(fixture.model)
    _require_variables(found.variables, network)
    shapes = {name: (one.shape, one.dtype) for name, one in defense.found(size).items()}
    made = {name: (one.shape, one.dtype) for name, one in found.found.items()}
    _require(shapes == made, f"found: {made}, want {shapes}")
    after = fixture.evaluate(network, found.variables)
    _require(after.acc >= acc, f"ACC {after.acc:.3f}, want at least {acc:g}")
    _require(after.asr <= asr, f"ASR {after.asr:.3f}, want at most {asr:g}")
    return found


def check_sample_detector(
    detector: SampleDetector, fixture: Fixture, *, auroc: float = 0.0
) -> Scored:
    """Check the contract of a poisoned-sample detector on a `Fixture`; return its `Scored`.

    Every row has a score and a flag. Equal keys give equal results. The AUROC of the scores on the
    fixture is at least `auroc`.
    """
    _require_kind(detector, SampleDetector)
    model, samples, reserved = fixture.model, fixture.samples, fixture.reserved
    size, shapes = len(samples.labels), jax.eval_shape(model.init, jax.random.key(0))
    detector.check(model, shapes, size, len(reserved.labels))
    variables = fixture.variables
    if detector.first_stage:
        loop = detector.first_stage.begin(jax.random.key(1), model, samples)
        variables = fit(loop)[0].variables
    arguments = (jax.random.key(2), model, variables, samples, reserved)
    found, again = (detector.score(*arguments) for _ in range(2))
    _check_scored(found, size)
    chex.assert_trees_all_equal(tuple(found), tuple(again))
    rate = detection_rates(found.scores, found.flagged, fixture.poisoned)["auroc"]
    _require(rate >= auroc, f"AUROC {rate:.3f}, want at least {auroc:g}")
    return found


def check_input_detector(
    detector: InputDetector, fixture: Fixture, *, auroc: float = 0.0
) -> Scored:
    """Check the contract of a triggered-input detector on a `Fixture`; return its `Scored`.

    Every image has a score and a flag. A score does not depend on the other images of the batch.
    The AUROC is at least `auroc`. The result is for all clean test images, followed by the
    triggered ones.
    """
    _require_kind(detector, InputDetector)
    model, test = fixture.model, fixture.dataset.test
    detector.check(
        model, jax.eval_shape(model.init, jax.random.key(0)), len(fixture.reserved.labels)
    )
    given = (model, fixture.variables)
    state = detector.prepare(jax.random.key(1), *given, fixture.reserved)
    labels = np.asarray(test.labels)
    counted = np.flatnonzero(np.asarray(fixture.attack.relabel(labels)) != labels)
    stamped = triggered_images(fixture.attack, fixture.trigger, jnp.asarray(test.images)[counted])
    images = np.concatenate([np.asarray(test.images), np.asarray(stamped)])
    parts = [detector.score(*given, state, images[i : i + 40]) for i in range(0, len(images), 40)]
    scores = np.concatenate([np.asarray(part) for part in parts]).astype(np.float32)
    found = Scored(scores, scores > detector.threshold(state))
    _check_scored(found, len(images))
    alone = np.asarray(detector.score(*given, state, images[:3]))
    chex.assert_trees_all_close(alone, scores[:3], rtol=1e-4, atol=1e-5)
    positive = np.arange(len(images)) >= len(labels)
    rate = detection_rates(found.scores, found.flagged, positive)["auroc"]
    _require(rate >= auroc, f"AUROC {rate:.3f}, want at least {auroc:g}")
    return found


def check_model_detector(
    detector: ModelDetector, fixture: Fixture, *, flags: bool | None = None
) -> Verdict:
    """Check the contract of a `ModelDetector` on a `Fixture` and return its `Verdict`.

    The evidence has the shapes and dtypes that `like` declares. The scores and the other columns
    have one value per class. If `flags` is True, the verdict must name the attacker's class. If it
    is False, the verdict must flag no class.
    """
    _require_kind(detector, ModelDetector)
    model, info = fixture.model, fixture.dataset.info
    detector.check(
        model, jax.eval_shape(model.init, jax.random.key(0)), len(fixture.reserved.labels)
    )
    evidence, _ = detector.detect(jax.random.key(1), model, fixture.variables, fixture.reserved)
    like = detector.like(info.num_classes, info.shape)
    chex.assert_trees_all_equal_shapes_and_dtypes(evidence, like)
    verdict = detector.judge(evidence)
    for name, array in {"scores": verdict.scores, **verdict.columns}.items():
        _require(len(array) == info.num_classes, f"{name}: want a number for each class")
    _require(verdict.flagged.dtype == bool, "flagged: want bool [K]")
    if detector.trigger:
        images = as_float(jnp.asarray(fixture.dataset.test.images[:2]))
        stamped = detector.trigger(evidence, 0)(images)
        chex.assert_equal_shape([stamped, images])
    target = 0 if flags else -1
    _require(flags is None or verdict.target == target, f"flags class {verdict.target}")
    return verdict


def check_refuses(check: Callable[..., None], *given: Any, words: str) -> None:
    """Check that `check(*given)` raises a `ConfigError` whose message contains `words`."""
    try:
        check(*given)
    except ConfigError as error:
        _require(words in str(error), f"{error}: does not say {words!r}")
        return
    raise AssertionError(f"nothing was refused; want a ConfigError with {words!r}")


def _check_scored(found: Scored, size: int) -> None:
    """Check that a detector's result has `size` scores without NaN, and as many flags."""
    _require(isinstance(found, Scored), f"score: returned a {type(found).__name__}, want a Scored")
    scores, flagged = (np.asarray(part) for part in found)
    _require(scores.shape == (size,), f"scores: shape {scores.shape}, want ({size},)")
    _require(scores.dtype == np.float32, f"scores: {scores.dtype}, want float32")
    _require(not np.isnan(scores).any(), "scores: NaN")
    _require(flagged.shape == (size,) and flagged.dtype == bool, "flagged: want bool [N]")


def _require_kind(given: Any, kind: type) -> None:
    """Raise `AssertionError` if an argument of a contract check is not of the type `kind`."""
    hint = "; call its build(info)" if hasattr(given, "build") else ""
    name = type(given).__name__
    _require(isinstance(given, kind), f"want the type {kind.__name__}, got {name}{hint}")


def _require(held: Any, message: str) -> None:
    if not held:
        raise AssertionError(message)
