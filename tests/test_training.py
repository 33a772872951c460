"""The step, the loop, optimisers: closed forms, exact resume, a loss that breaks."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from d3jax.config.recipes import OptimConfig, TrainConfig
from d3jax.core.errors import DivergedError
from d3jax.core.types import Batch, Variables
from d3jax.training import (
    Hooks,
    TrainLoop,
    fit,
    init_state,
    make_optimizer,
    make_schedule,
    make_train_step,
    train_backdoored,
)
from d3jax.training.loop import lines_of, trace_of
from d3jax.training.scan import ScannedStep, whole_calls
from d3jax.training.victim import poisoned_rows


def quadratic(params, batch_stats, batch, key, data):
    """½‖w − mean of the batch‖², a little noise from the key, and the count of steps as statistics."""
    noise = 0.01 * jax.random.normal(key, params["w"].shape)
    loss = 0.5 * jnp.sum((params["w"] - batch.images.mean((0, 1, 2)) + noise) ** 2)
    return loss, ({"seen": batch_stats["seen"] + 1}, {"size": jnp.sum(params["w"] ** 2)})


def drawn(key, step, data):
    rows = jax.random.randint(jax.random.fold_in(key, step), (4,), 0, len(data))
    return Batch(data[rows], jnp.zeros(4, int), jnp.zeros(4, bool))


DATA = jnp.asarray(np.random.default_rng(0).random((20, 2, 2, 3)), jnp.float32)


def fresh(tx):
    return init_state(Variables({"w": jnp.ones(3)}, {"seen": jnp.int32(0)}), tx, jax.random.key(7))


def test_sgd_is_pytorchs_coupled_momentum():
    """v ← 0.9 v + g + wd·w; w ← w − lr·v, twice, in NumPy."""
    config = OptimConfig(lr=0.1, momentum=0.9, weight_decay=0.01, schedule="constant")
    tx = make_optimizer(config, steps=10, steps_per_epoch=1)
    w, v, params = np.array([1.0, -2.0]), np.zeros(2), {"w": jnp.array([1.0, -2.0])}
    state = tx.init(params)
    for g in (np.array([0.5, 0.25]), np.array([-1.0, 2.0])):
        v = 0.9 * v + g + 0.01 * w
        w = w - 0.1 * v
        updates, state = tx.update({"w": jnp.asarray(g, jnp.float32)}, state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params["w"], w, rtol=1e-6)


def test_schedules_closed_forms():
    by_epoch = make_schedule("cosine_epoch", steps=100, steps_per_epoch=10)
    wanted = [0.5 * (1 + np.cos(np.pi * (step // 10) / 10)) for step in range(100)]
    np.testing.assert_allclose([by_epoch(step) for step in range(100)], wanted, rtol=1e-5)
    short = make_schedule("cosine_epoch", steps=14, steps_per_epoch=10)
    assert short(13) == pytest.approx(0.5)  # the second epoch of two, begun or not
    cosine = make_schedule("cosine", steps=100, steps_per_epoch=10)
    np.testing.assert_allclose([cosine(0), cosine(50), cosine(100)], [1, 0.5, 0], atol=1e-7)
    assert make_schedule("constant", steps=100, steps_per_epoch=10)(73) == 1
    cycle = [
        float(make_schedule("onecycle", steps=100, steps_per_epoch=10)(step)) for step in range(100)
    ]
    assert max(cycle) == pytest.approx(1, rel=1e-3) and cycle[0] < 0.05 and cycle[-1] < 0.005


def test_the_projection_comes_after_the_update():
    tx = optax.sgd(1.0)
    step = make_train_step(
        tx,
        loss=quadratic,
        batches=drawn,
        project=lambda params, data: jax.tree.map(lambda w: jnp.clip(w, 0.9), params),
    )
    state, metrics = jax.jit(step)(fresh(tx), DATA)
    assert state.variables.params["w"].tolist() == pytest.approx([0.9, 0.9, 0.9])
    assert (
        int(state.step) == 1
        and int(state.variables.batch_stats["seen"]) == 1
        and set(metrics) == {"loss", "size"}
    )


@pytest.mark.parametrize("steps_per_call", [1, 4])
def test_resume_is_bitwise_wherever_it_was_cut(steps_per_call):
    tx = optax.sgd(0.1, momentum=0.9)
    step = make_train_step(tx, loss=quadratic, batches=drawn)
    saved = []
    hooks = Hooks(
        save=lambda s, lines: saved.append((jax.tree.map(jnp.copy, s), list(lines))),
        log_every=5,
        save_every=7,
    )
    hooks = hooks._replace(steps_per_call=steps_per_call)
    whole, lines = fit(TrainLoop(step, fresh(tx), DATA, 23), hooks=hooks)
    assert [int(state.step) for state, _ in saved] == [7, 14, 21]
    for state, before in saved:
        restore = lambda _, step, state=state, before=before: (
            (state, list(before)) if step == state.step else None
        )
        again = hooks._replace(
            saved=lambda state=state: [int(state.step)], restore=restore, save=lambda *_: None
        )
        resumed, more = fit(TrainLoop(step, fresh(tx), DATA, 23), hooks=again)
        chex.assert_trees_all_equal(
            (whole.variables, whole.opt_state), (resumed.variables, resumed.opt_state)
        )
        drop = lambda lines: [{k: v for k, v in line.items() if k != "seconds"} for line in lines]
        assert drop(more) == drop(lines)
    assert [line["step"] for line in lines] == [5, 7, 10, 14, 15, 20, 21, 23]


def test_a_caller_keeps_its_arrays():
    tx = optax.sgd(0.1)
    state = fresh(tx)
    fit(TrainLoop(make_train_step(tx, loss=quadratic, batches=drawn), state, DATA, 2))
    assert state.variables.params["w"].tolist() == [1, 1, 1]


def test_a_loss_that_breaks_names_the_step_and_saves_nothing_after():
    tx, saved = optax.sgd(0.1), []

    def breaks(params, batch_stats, batch, key, data):
        loss, aux = quadratic(params, batch_stats, batch, key, data)
        return jnp.where(batch_stats["seen"] == 12, jnp.nan, loss), aux

    hooks = Hooks(
        save=lambda state, lines: saved.append(int(state.step)), log_every=5, save_every=5
    )
    with pytest.raises(DivergedError, match="became nan at step 13"):
        fit(
            TrainLoop(make_train_step(tx, loss=breaks, batches=drawn), fresh(tx), DATA, 40),
            hooks=hooks,
        )
    assert saved == [5, 10]


def test_broken_parameters_under_a_finite_loss_are_not_kept():
    tx, saved = optax.sgd(0.1), []
    broken = lambda params, data: jax.tree.map(
        lambda w: jnp.where(w.mean() < 0.6, jnp.nan, w), params
    )

    def finite(params, batch_stats, batch, key, data):
        loss, aux = quadratic(params, batch_stats, batch, key, data)
        return jnp.nan_to_num(loss), (aux[0], {})

    step = make_train_step(tx, loss=finite, batches=drawn, project=broken)
    hooks = Hooks(
        save=lambda state, _: saved.append(np.asarray(state.variables.params["w"])), save_every=1
    )
    with pytest.raises(DivergedError, match="no longer finite after step"):
        fit(TrainLoop(step, fresh(tx), DATA, 60), hooks=hooks)
    assert 0 < len(saved) < 60 and np.isfinite(saved).all()
    with pytest.raises(DivergedError, match="after step 60"):
        fit(TrainLoop(step, fresh(tx), DATA, 60))


def test_one_call_of_many_steps_is_many_calls():
    tx = optax.sgd(0.1)
    repeat = ScannedStep(make_train_step(tx, loss=quadratic, batches=drawn), steps_per_call=3)
    many, stacked = repeat(fresh(tx), DATA, 3)
    one = fresh(tx)
    losses = []
    for _ in range(3):
        one, metrics = repeat(one, DATA, 1)
        losses.append(metrics["loss"][0])
    np.testing.assert_allclose(stacked["loss"], losses, rtol=1e-6)
    np.testing.assert_allclose(many.variables.params["w"], one.variables.params["w"], rtol=1e-6)


@pytest.mark.parametrize(
    ("period", "call", "whole"),
    [(390, 25, 400), (385, 25, 375), (7, 25, 7), (0, 25, 0), (390, 0, 390)],
)
def test_periods_of_whole_calls(period, call, whole):
    assert whole_calls(period, call) == whole


def test_watch_is_measured_when_due():
    tx = optax.sgd(0.1)
    hooks = Hooks(
        watch=lambda state: {"norm": float(state.variables.params["w"].sum())},
        watch_every=4,
        log_every=3,
    )
    _, lines = fit(
        TrainLoop(make_train_step(tx, loss=quadratic, batches=drawn), fresh(tx), DATA, 9),
        hooks=hooks,
    )
    assert [line["step"] for line in lines if "norm" in line] == [4, 8, 9]  # the last one too
    trace = trace_of(lines)
    assert np.isnan(trace["norm"]).sum() == len(lines) - 3 and lines_of(trace) == lines


def test_the_step_compiles_once():
    tx, traces = optax.sgd(0.1), []

    def counted(*args):
        traces.append(1)
        return quadratic(*args)

    fit(
        TrainLoop(make_train_step(tx, loss=counted, batches=drawn), fresh(tx), DATA, 12),
        hooks=Hooks(log_every=5),
    )
    assert len(traces) == 1


def test_the_backdoor_is_learned(victim, dataset, model, attack):
    from d3jax.metrics.attack_success import make_evaluate

    counts = make_evaluate(model, attack, 4)(victim.variables, victim.trigger, dataset.test)
    assert counts.acc >= 0.97 and counts.asr >= 0.95
    assert int(poisoned_rows(jax.random.key(0), attack, dataset.train.labels).sum()) == 40


def test_training_follows_from_the_key(dataset, model, attack):
    config = TrainConfig(steps=12, batch_size=32, optimizer=OptimConfig(lr=0.05))
    one, same = (
        train_backdoored(jax.random.key(1), model, dataset, attack, config).variables
        for _ in range(2)
    )
    chex.assert_trees_all_equal(one, same)
    assert not jnp.array_equal(
        model.init(jax.random.key(1)).params["head"]["kernel"], one.params["head"]["kernel"]
    )
