"""Tests of ensembles, whose members are train loops in one program.

Members equal loops that run alone, on one device and on a mesh. They resume together and fail
alone.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax.config.recipes import OptimConfig
from d3jax.core.errors import DivergedError, OutOfMemoryError
from d3jax.core.types import Batch, Variables
from d3jax.models.layers.conv import weight_gradient
from d3jax.runtime.sharding import COPIES, MEMBERS, device_put_global, make_mesh, shard_batch
from d3jax.training import (
    Hooks,
    TrainLoop,
    fit,
    fit_ensemble,
    init_state,
    make_optimizer,
    make_train_step,
    memory,
)
from d3jax.training.scan import ScannedStep

IMAGES = jnp.asarray(np.random.default_rng(0).random((24, 2, 2, 3)), jnp.float32)


def regression(params, batch_stats, batch, key, data):
    """Return a squared error to the member's own target, with a batch statistic.

    The loss is NaN as soon as the sum of the statistics exceeds the member's `limit`.
    """
    x = batch.images.mean((1, 2))
    stats = 0.9 * batch_stats["mean"] + 0.1 * x.mean(0)
    loss = jnp.mean((x @ params["w"] - data["target"]) ** 2) + 0.1 * jnp.sum(x.mean(0) ** 2)
    return jnp.where(stats.sum() > data["limit"], jnp.nan, loss), (
        {"mean": stats},
        {"norm": jnp.sum(params["w"] ** 2)},
    )


def drawn(key, step, data):
    rows = shard_batch(jax.random.randint(jax.random.fold_in(key, step), (8,), 0, 24))
    return Batch(data["images"][rows], jnp.zeros(8, int), jnp.zeros(8, bool))


def loop(i, steps=12, limit=np.inf):
    tx = make_optimizer(
        OptimConfig(lr=0.05 * (i + 1), weight_decay=0.01 * (i + 1)), steps=steps, steps_per_epoch=3
    )
    step = make_train_step(tx, loss=regression, batches=drawn)
    variables = Variables({"w": jnp.full(3, float(i))}, {"mean": jnp.zeros(3)})
    data = {"images": IMAGES, "target": jnp.float32(i), "limit": jnp.float32(limit)}
    return TrainLoop(step, init_state(variables, tx, jax.random.key(i)), data, steps)


def same(one, other):
    for a, b in zip(jax.tree.leaves(one.variables), jax.tree.leaves(other.variables), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("devices", [0, 2, 4])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_members_equal_loops_that_run_alone(count, devices):
    """Members differ in key, initial parameters, learning rate, weight decay and data."""
    hooks = Hooks(log_every=5, devices=tuple(jax.devices()[:devices]))
    together = fit_ensemble([loop(i) for i in range(count)], [hooks] * count)
    for i, (state, lines) in enumerate(together):
        alone, before = fit(loop(i), Hooks(log_every=5))
        same(state, alone)
        assert [line["step"] for line in lines] == [5, 10, 12]
        np.testing.assert_allclose(
            [line["loss"] for line in lines], [line["loss"] for line in before], rtol=1e-5
        )
        assert len(jax.tree.leaves(state.variables)[0].devices()) == 1


def test_the_batch_is_split_over_the_data_axis():
    """Four devices each compute a quarter of the batch and sum their gradients.

    Members on devices of their own exchange nothing.
    """
    mesh = make_mesh(1, jax.devices())
    assert dict(mesh.shape) == {"member": 1, "data": 4} and dict(
        make_mesh(6, jax.devices()).shape
    ) == {"member": 2, "data": 2}
    work = loop(0)
    program = (
        ScannedStep(work.step, mesh=mesh)
        .program(
            device_put_global(work.state, mesh, COPIES),
            device_put_global(work.data, mesh, COPIES),
            1,
        )
        .as_text()
    )
    assert (
        "all-reduce" in program and "f32[2,3]" in program and "f32[8," not in program
    )  # each device has two of the eight images
    apart = make_mesh(4, jax.devices())
    loops = [loop(i) for i in range(4)]
    states = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(one.state for one in loops))
    data = {"target": device_put_global(jnp.arange(4.0), apart, MEMBERS)}
    data = {**device_put_global({"images": IMAGES, "limit": jnp.float32(9)}, apart, COPIES), **data}
    step = jax.vmap(
        work.step,
        in_axes=(0, {"images": None, "target": 0, "limit": None}),
        spmd_axis_name="member",
    )
    program = (
        ScannedStep(step, mesh=apart, members=True)
        .program(device_put_global(states, apart, MEMBERS), data, 1)
        .as_text()
    )
    assert "all-reduce" not in program and "num_partitions=4" in program


def test_a_batch_that_the_devices_do_not_divide_is_computed_whole():
    with jax.set_mesh(make_mesh(1, jax.devices())):
        assert jax.jit(shard_batch)(jnp.arange(6)).tolist() == list(range(6))


def test_a_diverged_member_leaves_and_the_others_continue():
    loops = [loop(0), loop(1, limit=0.5), loop(2)]
    saved = {i: [] for i in range(3)}
    every_hooks = [
        Hooks(
            save=lambda state, lines, i=i: saved[i].append(int(state.step)),
            log_every=2,
            save_every=2,
        )
        for i in saved
    ]
    first, broken, last = fit_ensemble(loops, every_hooks)
    assert isinstance(broken, DivergedError) and "became nan at step" in str(broken)
    same(first[0], fit(loop(0))[0])
    same(last[0], fit(loop(2))[0])
    assert saved[0] == saved[2] == [2, 4, 6, 8, 10] and len(saved[1]) < 5
    every = fit_ensemble([loop(i, limit=-1) for i in range(2)], [Hooks()] * 2)
    assert all(isinstance(outcome, DivergedError) for outcome in every)


def test_members_resume_from_the_newest_step_that_all_of_them_have():
    kept = [{}, {}]

    def hooks(i, steps):
        return Hooks(
            save=lambda state, lines: kept[i].update({int(state.step): (state, list(lines))}),
            saved=lambda: sorted(set(kept[i]) & steps),
            restore=lambda state, step: kept[i][step],
            start=lambda step, lines: begun.append(step),
            log_every=4,
            save_every=4,
        )

    begun = []
    whole = fit_ensemble([loop(0), loop(1)], [hooks(0, set()), hooks(1, set())])
    resumed = fit_ensemble([loop(0), loop(1)], [hooks(0, {4, 8}), hooks(1, {4})])
    assert begun == [0, 0, 4, 4]
    for (one, lines), (other, more) in zip(whole, resumed, strict=True):
        assert jax.tree.all(jax.tree.map(jnp.array_equal, one.variables, other.variables))
        assert [line["loss"] for line in lines] == [line["loss"] for line in more]


def test_data_shared_by_all_members_are_not_stacked():
    from d3jax.training.ensemble import _stack_data

    stacked, axes = _stack_data([loop(i).data for i in range(3)])
    assert stacked["images"] is IMAGES and axes == {"images": None, "target": 0, "limit": 0}
    assert stacked["target"].tolist() == [0, 1, 2]


def test_checkpoints_are_at_least_save_seconds_apart():
    saved = []
    hooks = Hooks(
        save=lambda state, lines: saved.append(int(state.step)), save_every=1, save_seconds=3600
    )
    fit(loop(0), hooks)
    assert saved == []


def test_memory_is_reported_and_a_profile_written(tmp_path):
    said = []
    fit(loop(0), Hooks(say=said.append, log_every=3, profile=str(tmp_path / "trace")))
    assert re.fullmatch(r"needs [\d.]+ MiB of the [\d.]+ GiB of memory on cpu", said[0])
    assert said[1].startswith("profile: ")
    assert list(tmp_path.glob("trace/**/*.xplane.pb"))


def test_members_at_different_steps_continue_in_groups():
    """Two members have a checkpoint of step 8 only, and one of step 4 only.

    A member that diverged in an earlier run leaves such checkpoints.
    """
    kept, begun = [{}, {}, {}], []

    def hooks(i, steps):
        return Hooks(
            save=lambda state, lines: kept[i].update({int(state.step): (state, list(lines))}),
            saved=lambda: [step for step in kept[i] if step in steps],
            restore=lambda state, step: kept[i][step],
            start=lambda step, lines: begun.append((i, step)),
            save_every=4,
        )

    loops = [loop(i) for i in range(3)]
    whole = fit_ensemble(loops, [hooks(i, ()) for i in range(3)])
    begun.clear()
    again = fit_ensemble(loops, [hooks(0, (8,)), hooks(1, (4,)), hooks(2, (8,))])
    assert begun == [(0, 8), (2, 8), (1, 4)]
    for (one, _), (other, _) in zip(whole, again, strict=True):
        same(one, other)


def test_a_streamed_loop_is_refused_as_a_member():
    with pytest.raises(ValueError, match="runs alone"):
        fit_ensemble([loop(0), loop(1)._replace(feed=lambda first: iter(()))], [Hooks()] * 2)


def test_out_of_memory_errors_name_what_to_lower(monkeypatch):
    def full(self, state, data, n):
        raise jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes."
        )

    monkeypatch.setattr(ScannedStep, "__call__", full)
    with pytest.raises(OutOfMemoryError, match="lower the batch size"):
        fit(loop(0))


def test_a_split_batch_is_not_gathered_for_a_weight_gradient():
    """On a mesh, each device multiplies its own images, and only sums are exchanged."""
    mesh = make_mesh(1, jax.devices())
    x, g = (jax.random.normal(jax.random.key(i), (8, 6, 6, 5)) for i in range(2))
    alone = weight_gradient(x, g, size=3, stride=1)
    with jax.set_mesh(mesh):
        program = jax.jit(functools.partial(weight_gradient, size=3, stride=1))
        split = [
            device_put_global(array, mesh, jax.sharding.PartitionSpec("data")) for array in (x, g)
        ]
        compiled = program.lower(*split).compile()
        together = compiled(*split)
    assert "all-gather" not in compiled.as_text() and "all-reduce" in compiled.as_text()
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)


def test_a_program_that_needs_more_memory_than_there_is_is_refused(monkeypatch):
    monkeypatch.setattr(memory, "main_memory", lambda: 1000)
    with pytest.raises(
        OutOfMemoryError, match=r"needs .* of memory, cpu has 0.0 MiB: lower the batch"
    ):
        fit(loop(0), Hooks())
