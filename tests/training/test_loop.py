"""Tests of the train loop: exact resume, steps per call, watched metrics and divergence."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from d3jax.core.errors import DivergedError
from d3jax.training import (
    Hooks,
    TrainLoop,
    fit,
    make_train_step,
    scan,
)
from d3jax.training.loop import records_of, trace_of
from d3jax.training.scan import ScannedStep, whole_calls

from ..helpers.quadratic import DATA, drawn, fresh, quadratic


@pytest.mark.parametrize("steps_per_call", [1, 4])
def test_resume_is_bit_exact_from_every_checkpoint(steps_per_call):
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

        def restore(_, step, state=state, before=before):
            return (state, list(before)) if step == state.step else None

        again = hooks._replace(
            saved=lambda state=state: [int(state.step)], restore=restore, save=lambda *_: None
        )
        resumed, more = fit(TrainLoop(step, fresh(tx), DATA, 23), hooks=again)
        chex.assert_trees_all_equal(
            (whole.variables, whole.opt_state), (resumed.variables, resumed.opt_state)
        )

        def drop(lines):
            return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]

        assert drop(more) == drop(lines)
    assert [line["step"] for line in lines] == [5, 7, 10, 14, 15, 20, 21, 23]


def test_fit_leaves_the_arrays_of_the_caller_intact():
    tx = optax.sgd(0.1)
    state = fresh(tx)
    fit(TrainLoop(make_train_step(tx, loss=quadratic, batches=drawn), state, DATA, 2))
    assert state.variables.params["w"].tolist() == [1, 1, 1]


def test_a_nan_loss_names_its_step_and_saves_nothing_afterwards():
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


def test_nan_parameters_under_a_finite_loss_are_not_saved():
    tx, saved = optax.sgd(0.1), []

    def broken(params, data):
        return jax.tree.map(lambda w: jnp.where(w.mean() < 0.6, jnp.nan, w), params)

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


def test_many_steps_in_one_call_equal_many_calls():
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
def test_periods_are_rounded_to_whole_calls(period, call, whole):
    assert whole_calls(period, call) == whole


def test_watch_runs_every_watch_every_steps_and_after_the_last():
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
    assert [line["step"] for line in lines if "norm" in line] == [4, 8, 9]  # 9 is the last step
    trace = trace_of(lines)
    assert np.isnan(trace["norm"]).sum() == len(lines) - 3 and records_of(trace) == lines


def test_loops_that_share_a_step_compile_it_once(monkeypatch):
    compiled, count = scan.compiled, []

    def counted(*given):
        count.append(1)
        return compiled(*given)

    monkeypatch.setattr(scan, "compiled", counted)
    tx = optax.sgd(0.1, momentum=0.9)
    step = make_train_step(tx, loss=quadratic, batches=drawn)
    whole, _ = fit(TrainLoop(step, fresh(tx), DATA, 6))
    first, _ = fit(TrainLoop(step, fresh(tx), DATA, 4))
    second, _ = fit(TrainLoop(step, first, DATA, 6))
    assert len(count) == 1
    chex.assert_trees_all_equal(whole.variables, second.variables)
    fit(TrainLoop(step, first, DATA[:10], 6))
    assert len(count) == 2  # other shapes
    fit(TrainLoop(make_train_step(tx, loss=quadratic, batches=drawn), fresh(tx), DATA, 2))
    assert len(count) == 3  # another step
