"""Tests of D3 against closed forms and a float64 computation, and of fine-tuning."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from d3jax.config.recipes import OptimConfig, ReservedConfig
from d3jax.core.errors import ConfigError
from d3jax.core.types import Batch, DataInfo, Model, Outputs, Split, Variables
from d3jax.data import reserve
from d3jax.defenses import D3Config, FinetuneConfig, ScheduleConfig, make_d3, make_finetune
from d3jax.defenses.repair.d3 import (
    d3_loss,
    distance,
    geometry,
    loss_inputs,
    norm,
    penalty,
    project,
    select,
    start,
)
from d3jax.metrics.attack_success import make_evaluate
from d3jax.training import TrainData
from d3jax.training.loop import Hooks

EVERY_STEP = Hooks(log_every=1)
W0 = jax.random.normal(jax.random.key(0), (5, 4))
PARAMS = {"body": {"kernel": jnp.ones((3, 5))}, "head": {"kernel": W0, "bias": jnp.zeros(4)}}
HEAD = select(PARAMS)


def with_head(kernel):
    return {**PARAMS, "head": {**PARAMS["head"], "kernel": kernel}}


def test_d3_and_finetune_settings_are_the_published_ones():
    paper, code = D3Config(preset="paper"), D3Config()
    assert (paper.lam, paper.eps, paper.hinge, paper.scale, paper.constraint) == (
        10.0,
        0.1,
        "mean",
        False,
        "ball",
    )
    assert (code.lam, code.eps, code.hinge, code.scale, code.constraint) == (
        0.5,
        0.1,
        "sample",
        True,
        "sphere",
    )
    assert D3Config(preset="paper", lam=3.0, start="far").lam == 3.0
    schedule = code.schedule
    assert (
        schedule.epochs,
        schedule.batch_size,
        schedule.optimizer.lr,
        schedule.optimizer.weight_decay,
    ) == (100, 256, 0.01, 0.0)
    assert (code.start, code.p, code.batch_norm, schedule.optimizer.schedule) == (
        "random",
        2.0,
        "train",
        "cosine_epoch",
    )
    assert FinetuneConfig().schedule.optimizer == OptimConfig(
        lr=0.01, momentum=0.9, weight_decay=5e-4, schedule="cosine_epoch"
    )


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
def test_norm_has_a_zero_gradient_at_zero_and_numpys_value_elsewhere(p):
    zero = jnp.zeros((2, 3))
    assert norm(zero, p) == 0 and jnp.array_equal(jax.grad(norm)(zero, p), zero)
    x = jnp.array([[3.0, 0.0], [-4.0, 1.0]])
    assert norm(x, p) == pytest.approx(np.linalg.norm(np.asarray(x).ravel(), p), rel=1e-6)
    assert np.isfinite(jax.grad(norm)(x, p)).all()


def test_distance_has_no_gradient_at_the_reference_params():
    value, grad = jax.value_and_grad(distance)(PARAMS, PARAMS, HEAD)
    assert value == 0 and all(not leaf.any() for leaf in jax.tree.leaves(grad))


def test_distance_and_projection_use_only_the_selected_tensors():
    moved = jax.tree.map(lambda w: w + 1.0, PARAMS)
    assert distance(moved, PARAMS, HEAD) == pytest.approx(np.sqrt(20), rel=1e-6)
    on_sphere = project(jax.tree.map(lambda w: 3 * w + 1, PARAMS), PARAMS, HEAD, "sphere")
    assert norm(on_sphere["head"]["kernel"]) == pytest.approx(float(norm(W0)), rel=1e-6)
    assert jnp.array_equal(on_sphere["body"]["kernel"], 3 * PARAMS["body"]["kernel"] + 1)
    inside = with_head(0.5 * W0)
    assert jnp.array_equal(project(inside, PARAMS, HEAD, "ball")["head"]["kernel"], 0.5 * W0)
    np.testing.assert_allclose(
        project(with_head(2 * W0), PARAMS, HEAD, "ball")["head"]["kernel"], W0, rtol=1e-6
    )
    assert not project(with_head(0 * W0), PARAMS, HEAD, "sphere")["head"]["kernel"].any()
    assert jnp.array_equal(
        project(with_head(2 * W0), PARAMS, HEAD, "none")["head"]["kernel"], 2 * W0
    )


def test_tensors_are_selected_by_kind_or_glob_and_misspellings_are_refused():
    assert select(PARAMS, "linear") == {
        "body": {"kernel": True},
        "head": {"kernel": True, "bias": False},
    }
    assert select(PARAMS, "head/*") == {
        "body": {"kernel": False},
        "head": {"kernel": True, "bias": True},
    }
    with pytest.raises(
        ConfigError,
        match=r"'hed/kernel' matches none of the 3 parameters; did you mean 'head/kernel'\?",
    ):
        select(PARAMS, "hed/kernel")


@pytest.mark.parametrize(
    ("kind", "cosine"),
    [("near", 1.0), ("far", -1.0), ("middle", 0.0), ("random", None), ("noise", None)],
)
def test_starts_have_their_cosine_and_change_only_the_selected_tensors(kind, cosine):
    begin = start(jax.random.key(1), PARAMS, HEAD, kind)
    kernel = begin["head"]["kernel"]
    assert jnp.array_equal(begin["body"]["kernel"], PARAMS["body"]["kernel"])
    if cosine is not None:
        assert geometry(begin, PARAMS, HEAD)["cosine"] == pytest.approx(cosine, abs=1e-6)
    if kind == "random":
        assert (
            norm(kernel) == pytest.approx(float(norm(W0)), rel=1e-6)
            and abs(geometry(begin, PARAMS, HEAD)["cosine"]) < 0.6
        )
    if kind == "middle":
        assert not kernel.any()
    if kind == "noise":
        assert 0.5 < float((kernel - W0).std() / W0.std()) < 1.5


def test_distance_follows_from_the_cosine_on_the_sphere():
    """On the sphere of radius r, ‖W − W0‖² = 2r²(1 − cos)."""
    kernel = start(jax.random.key(2), PARAMS, HEAD, "random")["head"]["kernel"]
    measured = geometry(with_head(kernel), PARAMS, HEAD)
    assert measured["distance"] ** 2 == pytest.approx(
        2 * float(norm(W0)) ** 2 * (1 - float(measured["cosine"])), rel=1e-5
    )
    assert measured["distance_ratio"] == pytest.approx(
        float(measured["distance"] / (2 * norm(W0))), rel=1e-6
    )


def test_penalty_is_the_hinge_of_the_mean_loss_or_the_mean_of_hinges():
    ce = jnp.array([0.0, 0.05, 0.5])
    assert penalty(ce, 0.1, "mean") == pytest.approx(0.55 / 3 - 0.1) and penalty(
        ce, 0.1, "sample"
    ) == pytest.approx(0.4 / 3)
    assert penalty(ce, 1.0, "mean") == 0


@pytest.mark.parametrize(
    "tx", [optax.sgd(0.05), optax.sgd(0.01, momentum=0.9)], ids=["plain", "momentum"]
)
@pytest.mark.parametrize("kind", ["random", "far", "noise", "middle"])
def test_projected_descent_without_the_clean_term_reaches_minus_w0(tx, kind):
    params = start(jax.random.key(3), PARAMS, HEAD, kind)

    @jax.jit
    def descend(params, state):
        updates, state = tx.update(
            jax.grad(lambda p: -distance(p, PARAMS, HEAD))(params), state, params
        )
        return project(optax.apply_updates(params, updates), PARAMS, HEAD, "sphere"), state

    state = tx.init(params)
    for _ in range(1500):
        params, state = descend(params, state)
    reached = geometry(params, PARAMS, HEAD)
    assert reached["cosine"] == pytest.approx(-1, abs=2e-3) and reached[
        "distance_ratio"
    ] == pytest.approx(1, abs=1e-3)


def linear_model():
    """Return a model with logits = pixels · kernel + bias.

    NumPy computes the gradient of D3's loss for it in a few lines.
    """

    def apply(variables, images, *, train):
        features = images.reshape(len(images), -1)
        head = variables.params["head"]
        return Outputs(
            features @ head["kernel"] + head["bias"],
            {"penultimate": features},
            variables.batch_stats,
        )

    return Model(lambda key: Variables(PARAMS, {}), apply)


@pytest.mark.parametrize("preset", ["paper", "code"])
@pytest.mark.parametrize("lam", [0.5, 10.0])
def test_d3_loss_and_gradient_match_float64_numpy(preset, lam):
    config = D3Config(preset=preset, lam=lam)
    rng = np.random.default_rng(0)
    x, y = rng.random((6, 1, 5, 1)), np.array([0, 1, 2, 3, 0, 1])
    reference_params, kernel, bias = (
        np.asarray(W0, np.float64),
        rng.normal(size=(5, 4)),
        rng.normal(size=4),
    )

    def reference(kernel, bias):
        logits = x.reshape(6, 5) @ kernel + bias
        shifted = logits - logits.max(1, keepdims=True)
        probabilities = np.exp(shifted) / np.exp(shifted).sum(1, keepdims=True)
        ce = -np.log(probabilities[np.arange(6), y])
        gap = kernel - reference_params
        if config.hinge == "mean":
            value, weight = max(0, ce.mean() - 0.1), np.full(6, float(ce.mean() > 0.1) / 6)
        else:
            value, weight = np.maximum(0, ce - 0.1).mean(), (ce > 0.1) / 6
        d_logits = lam * weight[:, None] * (probabilities - np.eye(4)[y])
        scale = lam + 1 if config.scale and lam > 1 else 1
        size = np.sqrt((gap**2).sum())
        return (
            (lam * value - size) / scale,
            (x.reshape(6, 5).T @ d_logits - gap / size) / scale,
            d_logits.sum(0) / scale,
        )

    value, d_kernel, d_bias = reference(kernel, bias)
    params = {
        **PARAMS,
        "head": {
            "kernel": jnp.asarray(kernel, jnp.float32),
            "bias": jnp.asarray(bias, jnp.float32),
        },
    }
    loss = d3_loss(config, linear_model(), HEAD)
    data = TrainData(None, None, {}, PARAMS, loss_inputs(config))
    batch = Batch(jnp.asarray(x, jnp.float32), jnp.asarray(y), jnp.zeros(6, bool))
    (ours, (_, reported)), grads = jax.value_and_grad(loss, has_aux=True)(
        params, {}, batch, jax.random.key(0), data
    )
    assert ours == pytest.approx(value, rel=1e-5)
    np.testing.assert_allclose(grads["head"]["kernel"], d_kernel, atol=1e-5)
    np.testing.assert_allclose(grads["head"]["bias"], d_bias, atol=1e-5)
    assert {"clean_loss", "distance", "distance_ratio", "cosine", "accuracy"} <= set(reported)


@pytest.fixture(scope="module")
def reserved(dataset):
    rows = reserve(dataset.train, ReservedConfig(fraction=0.2), 0, 4)
    return Split(dataset.train.images[rows], dataset.train.labels[rows])


def test_d3_forgets_the_backdoor_and_keeps_the_task(victim, dataset, model, attack, reserved):
    evaluate = make_evaluate(model, attack, 4)
    before = evaluate(victim.variables, victim.trigger, dataset.test)
    repair = make_d3(
        D3Config(
            schedule=ScheduleConfig(steps=400, optimizer=OptimConfig(lr=0.02, weight_decay=0.0))
        ),
        dataset.info,
    ).repair
    repaired = repair(jax.random.key(0), model, victim.variables, reserved)
    after = evaluate(repaired.variables, victim.trigger, dataset.test)
    assert before.asr > 0.95 and after.asr < 0.1 and after.acc > before.acc - 0.03
    assert repaired.trace["cosine"][-1] < -0.8
    assert all(np.isfinite(values).all() for values in repaired.trace.values())
    radius = norm(victim.variables.params["head"]["kernel"])
    assert norm(repaired.variables.params["head"]["kernel"]) == pytest.approx(
        float(radius), rel=1e-5
    )


@pytest.mark.parametrize("batch_norm", ["train", "fixed"])
def test_running_statistics_stay_fixed_only_in_mode_fixed(
    victim, dataset, model, reserved, batch_norm
):
    schedule = dataclasses.replace(D3Config().schedule, steps=3)
    config = D3Config(batch_norm=batch_norm, schedule=schedule)
    stats = (
        make_d3(config, dataset.info)
        .repair(jax.random.key(0), model, victim.variables, reserved)
        .variables.batch_stats
    )
    kept = jax.tree.all(jax.tree.map(jnp.array_equal, stats, victim.variables.batch_stats))
    assert kept == (batch_norm == "fixed")


def test_finetuning_keeps_accuracy_and_moves_every_parameter(
    victim, dataset, model, attack, reserved
):
    short = dataclasses.replace(FinetuneConfig().schedule, steps=30)
    repaired = make_finetune(FinetuneConfig(schedule=short), dataset.info).repair(
        jax.random.key(0), model, victim.variables, reserved
    )
    counts = make_evaluate(model, attack, 4)(repaired.variables, victim.trigger, dataset.test)
    assert counts.acc > 0.95
    unchanged = jax.tree.map(jnp.array_equal, repaired.variables.params, victim.variables.params)
    assert not any(jax.tree.leaves(unchanged))


def test_tensors_that_match_no_parameter_are_refused_before_the_repair(dataset, model):
    given = model, jax.eval_shape(model.init, jax.random.key(0))
    with pytest.raises(ConfigError, match="matches none"):
        make_d3(D3Config(tensors="classifier/*"), dataset.info).check(*given, 10)
    assert make_d3(D3Config(), dataset.info).check(*given, 10) is None


def toy():
    """Return a linear model, its variables and 40 images of 2 classes."""

    def init(key):
        kernel = jax.random.normal(key, (12, 2))
        return Variables({"head": {"kernel": kernel, "bias": jnp.zeros(2)}}, {})

    def apply(variables, images, *, train, edit=None):
        head = variables.params["head"]
        features = images.reshape(len(images), -1)
        return Outputs(features @ head["kernel"] + head["bias"], {"features": features}, {})

    draws = np.random.default_rng(0)
    images = draws.integers(0, 256, (40, 2, 2, 3), dtype=np.uint8)
    split = Split(images, (images[:, 0, 0, 0] > 127).astype(np.int32))
    info = DataInfo("toy", (2, 2, 3), ("a", "b"), (0.0,) * 3, (1.0,) * 3)
    model = Model(init, apply)
    return model, model.init(jax.random.key(1)), split, info


def test_an_adaptive_multiplier_follows_the_violation_of_the_constraint():
    model, variables, split, info = toy()
    steps = 30
    config = D3Config(
        multiplier="adaptive",
        multiplier_rate=0.25,
        lam=2.0,
        eps=0.3,
        hinge="none",
        schedule=ScheduleConfig(steps=steps, batch_size=20, optimizer=OptimConfig(lr=0.05)),
    )
    trace = (
        make_d3(config, info).repair(jax.random.key(2), model, variables, split, EVERY_STEP).trace
    )
    lam = [2.0]
    for clean in trace["clean_loss"][:-1]:
        lam.append(max(0.0, lam[-1] + 0.25 * (clean - 0.3)))
    np.testing.assert_allclose(trace["lam"], lam, rtol=1e-5)
    assert len(set(trace["lam"])) > 20
    wanted = trace["lam"] * (trace["clean_loss"] - 0.3) - trace["distance"]
    np.testing.assert_allclose(
        trace["loss"], wanted / np.maximum(1, trace["lam"]), rtol=1e-4, atol=1e-5
    )


def test_the_bound_of_the_model_is_its_clean_loss():
    model, variables, split, info = toy()
    logits = model.apply(variables, split.images / np.float32(255), train=False).logits
    want = float(-jax.nn.log_softmax(logits)[np.arange(40), split.labels].mean())
    for eps, bound, expected in ((0.01, "model", want), (9.0, "model", 9.0), (0.01, "fixed", 0.01)):
        loop = make_d3(D3Config(eps=eps, bound=bound), info).loop(
            jax.random.key(0), model, variables, split
        )
        assert float(loop.data.loss_inputs["eps"]) == pytest.approx(expected, rel=1e-5)


def test_the_one_value_of_ours_can_be_given_to_code():
    assert D3Config(preset="code", lam=4.0).preset == "code"
    assert D3Config(preset="ours").lam == 4.0
    with pytest.raises(ConfigError, match="given with all the values of 'ours'"):
        dataclasses.replace(D3Config(preset="ours"), preset="code")
