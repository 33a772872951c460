"""Tests of the train step: carry, projection, rejected updates and chained steps."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from d3jax.core.types import Variables
from d3jax.training import (
    Hooks,
    TrainLoop,
    accept_if,
    chain_steps,
    fit,
    fit_ensemble,
    init_state,
    make_train_step,
)

from ..helpers.quadratic import DATA, drawn, fresh, quadratic


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


def shifted_data(data, carry):
    """Return the images with the trained shift added to their channels."""
    return data + carry["shift"].value


def joint_quadratic(params, batch_stats, batch, key, data):
    """Return ½‖w − mean of the batch‖², where the batch comes from the shifted images."""
    gap = params["w"] - batch.images.mean((0, 1, 2))
    return 0.5 * jnp.sum(gap**2), (batch_stats, {"gap": jnp.abs(gap).max()})


def shifting_step(tx, trained, **options):
    return make_train_step(
        tx, loss=joint_quadratic, batches=drawn, view=shifted_data, trained=trained, **options
    )


def shifting_state(tx, trained, **others):
    variables = Variables({"w": jnp.ones(3)}, {})
    carry = {"shift": jnp.zeros(3), **others}
    return init_state(variables, tx, jax.random.key(7), carry, trained)


def test_a_part_of_the_carry_is_trained_by_its_own_optimiser():
    """The gradients of w and of the shift are opposite; SGD updates w, and Adam the shift."""
    tx, trained = optax.sgd(0.1), {"shift": optax.adam(0.01)}
    step, state = shifting_step(tx, trained), shifting_state(tx, trained)
    w, shift = np.ones(3), np.zeros(3)
    adam = optax.adam(0.01)
    moments = adam.init(jnp.zeros(3))
    for i in range(3):
        batch = drawn(state.key, i, DATA + jnp.asarray(shift, jnp.float32))
        gap = w - np.asarray(batch.images.mean((0, 1, 2)))
        updates, moments = adam.update(jnp.asarray(-gap, jnp.float32), moments)
        w, shift = w - 0.1 * gap, shift + np.asarray(updates)
        state, metrics = jax.jit(step)(state, DATA)
        assert float(metrics["loss"]) == pytest.approx(0.5 * (gap**2).sum(), rel=1e-5)
        np.testing.assert_allclose(state.variables.params["w"], w, rtol=1e-5)
        np.testing.assert_allclose(state.carry["shift"].value, shift, rtol=1e-4, atol=1e-6)
    assert set(metrics) == {"loss", "gap"}


def test_a_trained_part_is_updated_from_the_value_that_the_loss_reports():
    """The value that the loss reports under the part's name replaces the old one.

    BatchNorm's running statistics are reported in the same way.
    """
    tx, trained = optax.sgd(0.1), {"shift": optax.sgd(0.5)}

    def moves(params, batch_stats, batch, key, data):
        value, (stats, found) = joint_quadratic(params, batch_stats, batch, key, data)
        return value, (stats, found | {"shift": jnp.full(3, 10.0)})

    step = make_train_step(tx, loss=moves, batches=drawn, view=shifted_data, trained=trained)
    state = shifting_state(tx, trained)
    gap = np.ones(3) - np.asarray(drawn(state.key, 0, DATA).images.mean((0, 1, 2)))
    state, metrics = jax.jit(step)(state, DATA)
    np.testing.assert_allclose(state.carry["shift"].value, 10 + 0.5 * gap, rtol=1e-6)
    assert set(metrics) == {"loss", "gap"}  # the part is not a metric


def test_the_carry_is_set_before_the_gradient_and_advanced_after_the_update():
    tx = optax.sgd(0.1)

    def begin(state, data):
        return {"began": state.variables.params["w"], "far": state.carry["far"]}

    def advance(before, after, reported, data):
        far = jnp.abs(after.variables.params["w"] - before.carry["began"]).sum()
        carry = after.carry | {"far": before.carry["far"] + far}
        return dataclasses.replace(after, carry=carry), {"far": far, "size": reported["size"]}

    step = make_train_step(tx, loss=quadratic, batches=drawn, begin=begin, advance=advance)
    carry = {"began": jnp.zeros(3), "far": jnp.zeros(())}
    state, total = dataclasses.replace(fresh(tx), carry=carry), 0.0
    for _ in range(3):
        was = state.variables.params["w"]
        state, metrics = jax.jit(step)(state, DATA)
        assert jnp.array_equal(state.carry["began"], was)
        total += float(metrics["far"])
        assert float(state.carry["far"]) == pytest.approx(total)
    assert total > 0 and set(metrics) == {"loss", "far", "size"}


def test_a_rejected_update_leaves_variables_and_optimiser_as_they_were():
    """Every other update is rejected, but the step and the carry still advance."""
    tx = optax.sgd(0.1, momentum=0.9)

    def advance(before, after, reported, data):
        state = accept_if(before.step % 2 == 0, before, after)
        return dataclasses.replace(state, carry=before.carry + 1), reported

    step = make_train_step(tx, loss=quadratic, batches=drawn, advance=advance)
    plain = make_train_step(tx, loss=quadratic, batches=drawn)
    state = dataclasses.replace(fresh(tx), carry=jnp.int32(0))
    for i in range(4):
        before, (state, _) = state, jax.jit(step)(state, DATA)
        wanted = before if i % 2 else jax.jit(plain)(before, DATA)[0]
        chex.assert_trees_all_equal(
            (state.variables, state.opt_state), (wanted.variables, wanted.opt_state)
        )
        assert (int(state.step), int(state.carry)) == (i + 1, i + 1)
    assert not jnp.array_equal(state.variables.params["w"], jnp.ones(3))


def test_chained_steps_are_one_step_with_two_optimisers():
    first, second = optax.sgd(0.1, momentum=0.9), optax.adam(0.01)

    def flat(params, batch_stats, batch, key, data):
        return jnp.sum(params["w"]), (batch_stats, {"second": jnp.float32(2)})

    one = make_train_step(first, loss=quadratic, batches=drawn)
    two = make_train_step(second, loss=flat, batches=drawn)
    both = jax.jit(chain_steps(one, two))
    state = fresh(first)
    opt_states = state.opt_state, second.init(state.variables.params)
    chained = dataclasses.replace(state, opt_state=opt_states, carry=jnp.int32(5))
    for i in range(3):
        middle, reported = one(dataclasses.replace(chained, opt_state=opt_states[0]), DATA)
        given = dataclasses.replace(middle, step=jnp.int32(i), opt_state=opt_states[1])
        last, _ = two(given, DATA)
        opt_states = middle.opt_state, last.opt_state
        chained, metrics = both(chained, DATA)
        chex.assert_trees_all_close(
            (chained.variables, chained.opt_state), (last.variables, opt_states), rtol=1e-6
        )
        assert int(chained.step) == i + 1 and int(chained.carry) == 5
        assert float(metrics["loss"]) == pytest.approx(float(reported["loss"]))  # of the first step
        assert set(metrics) == {"loss", "size", "second"}


@pytest.mark.parametrize("steps_per_call", [1, 4])
def test_resume_is_bit_exact_with_a_carry(steps_per_call):
    """The carry has a trained and an advanced part, and some updates are rejected.

    One loop runs alone and resumes from the checkpoint of step 7.
    """
    tx, trained = optax.sgd(0.1, momentum=0.9), {"shift": optax.adam(0.01)}

    def advance(before, after, reported, data):
        carry = after.carry | {"sum": before.carry["sum"] + reported["gap"]}
        state = accept_if(before.step % 3 != 0, before, after)
        return dataclasses.replace(state, carry=carry), reported

    step, saved = shifting_step(tx, trained, advance=advance), {}

    def save(state, lines):
        saved[int(state.step)] = jax.tree.map(jnp.copy, state), list(lines)

    def loop():
        return TrainLoop(step, shifting_state(tx, trained, sum=jnp.zeros(())), DATA, 12)

    hooks = Hooks(save=save, log_every=5, save_every=7, steps_per_call=steps_per_call)
    whole, _ = fit(loop(), hooks)
    hooks = hooks._replace(saved=lambda: [7], restore=lambda state, step: saved[7])
    resumed, _ = fit(loop(), hooks._replace(save=lambda *_: None))
    assert set(saved) == {7} and float(whole.carry["sum"]) > 0
    chex.assert_trees_all_equal(whole, resumed)


def test_members_have_their_own_carries():
    """Two loops in one program end where each ends alone."""
    tx, trained = optax.sgd(0.1), {"shift": optax.adam(0.01)}
    step = shifting_step(tx, trained)
    loops = [TrainLoop(step, shifting_state(tx, trained), DATA + i, 6) for i in range(2)]
    together = fit_ensemble(loops, [Hooks(), Hooks()])
    for loop, (state, _) in zip(loops, together, strict=True):
        alone, _ = fit(loop)
        chex.assert_trees_all_close(
            (state.variables, state.carry), (alone.variables, alone.carry), rtol=1e-5
        )
    shifts = [state.carry["shift"].value for state, _ in together]
    assert not jnp.array_equal(*shifts)
