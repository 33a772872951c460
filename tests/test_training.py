"""The step, the loop, optimisers: closed forms, exact resume, a loss that breaks."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from d3jax.config.recipes import OptimConfig, TrainConfig
from d3jax.core.errors import DivergedError
from d3jax.core.types import Attack, Batch, Joint, Variables
from d3jax.training import (
    Hooks,
    TrainData,
    TrainLoop,
    accept_if,
    chain_steps,
    fit,
    fit_ensemble,
    init_state,
    make_optimizer,
    make_schedule,
    make_train_step,
    train_backdoored,
)
from d3jax.training.loop import lines_of, trace_of
from d3jax.training.optim import restart_every, scale_by_step_rate
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


def shifted_data(data, carry):
    """The images with what is trained added to every channel."""
    return data + carry["shift"].value


def joint_quadratic(params, batch_stats, batch, key, data):
    """½‖w − mean of the batch‖²: the batch is the data's, shifted by a trained part of the carry."""
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


def test_a_part_of_the_carry_is_trained_by_an_optimiser_of_its_own():
    """Gradients of w and of the shift are opposite; each goes its own way, one by SGD and one by Adam."""
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


def test_an_update_is_applied_to_a_trained_part_with_its_statistics_moved_on():
    """As with BatchNorm's running statistics: what the loss reports under the part's name takes the place of the old value."""
    tx, trained = optax.sgd(0.1), {"shift": optax.sgd(0.5)}

    def moves(params, batch_stats, batch, key, data):
        value, (stats, found) = joint_quadratic(params, batch_stats, batch, key, data)
        return value, (stats, found | {"shift": jnp.full(3, 10.0)})

    step = make_train_step(tx, loss=moves, batches=drawn, view=shifted_data, trained=trained)
    state = shifting_state(tx, trained)
    gap = np.ones(3) - np.asarray(drawn(state.key, 0, DATA).images.mean((0, 1, 2)))
    state, metrics = jax.jit(step)(state, DATA)
    np.testing.assert_allclose(state.carry["shift"].value, 10 + 0.5 * gap, rtol=1e-6)
    assert set(metrics) == {"loss", "gap"}  # the part is no metric


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
    """Every other update is rejected; steps and carry go on."""
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
        assert float(metrics["loss"]) == pytest.approx(float(reported["loss"]))  # the first one's
        assert set(metrics) == {"loss", "size", "second"}


def test_optimisers_read_the_step_and_the_data():
    """Rates that come in the data, and a momentum that restarts every third step, against NumPy."""
    tx = optax.chain(
        restart_every(optax.trace(0.9), 3),
        scale_by_step_rate(lambda step, data: data.trigger[step]),
    )

    def straight(params, batch_stats, batch, key, data):
        return jnp.sum(params["w"]), (batch_stats, {})

    step = make_train_step(tx, loss=straight, batches=lambda key, step, data: None)
    rates = np.array([0.1, 0.2, 0.3, 0.4, 0.5], np.float32)
    data = TrainData(None, None, jnp.asarray(rates))
    state, w, v = init_state(Variables({"w": jnp.ones(3)}, {}), tx, jax.random.key(0)), 1.0, 0.0
    for i, rate in enumerate(rates):
        v = 1 + 0.9 * (0 if i % 3 == 0 else v)
        w -= rate * v
        state, _ = jax.jit(step)(state, data)
        np.testing.assert_allclose(state.variables.params["w"], np.full(3, w), rtol=1e-5)


@pytest.mark.parametrize("steps_per_call", [1, 4])
def test_resume_is_bitwise_with_a_carry(steps_per_call):
    """A trained part, a part that is advanced, and updates that are rejected: one member alone, from the checkpoint of step 7."""
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


def test_members_have_carries_of_their_own():
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


def brightened(optimizer):
    """An attack whose trigger is a bare array: what is added to every channel."""

    def poison(trigger, key, batch):
        images = jnp.where(
            batch.poisoned[:, None, None, None], batch.images + trigger, batch.images
        )
        joint = Joint(0.1 * jnp.sum(trigger**2), trigger) if optimizer else None
        return batch._replace(images=jnp.clip(images, 0, 1), joint=joint)

    return Attack(
        init=lambda key: jnp.full(3, 0.25),
        stamp=lambda trigger, images: jnp.clip(images + trigger, 0, 1),
        select=lambda key, labels: jnp.arange(len(labels)) % 4 == 0,
        relabel=jnp.zeros_like,
        poison=poison,
        optimizer=optimizer,
    )


@pytest.mark.parametrize("optimizer", [None, optax.adam(1e-2)])
def test_the_trigger_may_be_a_bare_array(optimizer, dataset, model):
    """It is given back, trained or not: an array has no truth value to ask for."""
    config = TrainConfig(steps=3, batch_size=32, augment="none", optimizer=OptimConfig(lr=0.05))
    hooks = Hooks(log_every=1)
    attack = brightened(optimizer)
    victim = train_backdoored(jax.random.key(0), model, dataset, attack, config, hooks)
    assert victim.trigger.shape == (3,)
    moved = np.abs(np.asarray(victim.trigger) - 0.25)
    assert (moved > 1e-3).all() if optimizer else (moved == 0).all()
    assert ("penalty" in victim.trace) == bool(optimizer)
