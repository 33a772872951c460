"""Tests of unlearning: ascent on suspects, descent on trusted images, and pauses.

Ascent pauses ("rests") while the accuracy on a batch of suspects is below chance.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from d3jax.core.errors import ConfigError, DivergedError
from d3jax.core.images import as_float
from d3jax.core.types import Split, Variables
from d3jax.metrics.attack_success import predict
from d3jax.training import Hooks, fit
from d3jax.training.unlearn import parts_of, unlearn_loop

KEY = jax.random.key(11)


def ascended(model, victim, dataset, steps=60, lr=0.5, log_every=1, **options):
    labels = np.asarray(dataset.train.labels)
    suspects, trusted = np.flatnonzero(labels == 2)[:24], np.flatnonzero(labels != 2)
    loop = unlearn_loop(
        KEY, model, victim.variables, dataset.train, suspects, trusted,
        tx=optax.sgd(lr, momentum=0.9), steps=steps, batch_size=12, **options,
    )  # fmt: skip
    state, lines = fit(loop, Hooks(log_every=log_every))

    def right(rows):
        return float(
            (
                np.asarray(predict(model, state.variables, dataset.train.images[rows]))
                == labels[rows]
            ).mean()
        )

    return state, lines, right(suspects), right(trusted)


def test_ascent_unlearns_the_suspects_and_ends_below_chance(model, victim, dataset):
    state, lines, suspects, _ = ascended(model, victim, dataset)
    assert suspects < 0.5 and lines[-1]["resting"] == 1 and lines[0]["resting"] == 0, (
        suspects,
        lines[-1],
    )
    first = next(i for i, line in enumerate(lines) if line["resting"])
    assert lines[first]["suspects_accuracy"] < 1 / 4
    assert int(state.step) == first + 1 == len(lines) < 60  # the loop ends there
    again, *_ = ascended(model, victim, dataset, log_every=60)
    jax.tree.map(
        np.testing.assert_array_equal, state.variables, again.variables
    )  # later steps change nothing
    with pytest.raises(DivergedError):  # the cross-entropy has no upper bound
        ascended(model, victim, dataset, bounded=False)


def test_one_step_of_ascent_raises_the_loss_of_the_suspects(model, victim, dataset):
    state, *_ = ascended(model, victim, dataset, steps=1, lr=0.01, batch_norm="frozen")
    jax.tree.map(
        np.testing.assert_array_equal, state.variables.batch_stats, victim.variables.batch_stats
    )
    rows = np.flatnonzero(np.asarray(dataset.train.labels) == 2)[:24]

    def loss(params, mine):
        logits = model.apply(
            Variables(params, victim.variables.batch_stats),
            as_float(jnp.asarray(dataset.train.images[mine])),
            train=False,
        ).logits
        return optax.softmax_cross_entropy_with_integer_labels(
            logits, jnp.full(len(mine), 2)
        ).mean()

    before, after = (float(loss(v.params, rows)) for v in (victim.variables, state.variables))
    gradient = jax.grad(loss)(victim.variables.params, rows)
    moved = jax.tree.map(
        lambda a, b: np.asarray(a - b), state.variables.params, victim.variables.params
    )
    along = sum(
        float((np.asarray(g) * m).sum())
        for g, m in zip(jax.tree.leaves(gradient), jax.tree.leaves(moved), strict=True)
    )
    assert after > before and along > 0


@pytest.mark.parametrize("descent", ["turns", "together"])
def test_descent_keeps_the_accuracy_on_trusted_images(descent, model, victim, dataset):
    *_, suspects, trusted = ascended(model, victim, dataset, steps=60, descent=descent)
    *_, alone = ascended(model, victim, dataset, steps=60)
    assert suspects < 0.4 and trusted > 0.8 and trusted > alone + 0.05, (suspects, trusted, alone)


def test_descent_together_is_one_sgd_step_on_the_sum_of_both_losses(model, victim, dataset):
    """A quarter of the batch are suspects.

    The whole batch is normalised by its own statistics, which update the running ones.
    """
    labels = np.asarray(dataset.train.labels)
    suspects, trusted = (
        np.flatnonzero(labels == 2)[:3],
        np.flatnonzero(labels != 2)[:9],
    )  # as many as a batch has
    loop = unlearn_loop(
        KEY, model, victim.variables, dataset.train, suspects, trusted,
        tx=optax.sgd(0.01), steps=1, batch_size=12, kind="uniform", descent="together",
    )  # fmt: skip
    state, (line,) = fit(loop)
    images, rows = as_float(jnp.asarray(dataset.train.images)), np.concatenate([suspects, trusted])

    def loss(params):
        outputs = model.apply(
            Variables(params, victim.variables.batch_stats), images[rows], train=True
        )
        logs = jax.nn.log_softmax(outputs.logits)
        even = -(logs[:3].mean(-1) + np.log(4)).mean()
        return even - logs[np.arange(3, 12), labels[trusted]].mean(), outputs

    (_, outputs), gradient = jax.value_and_grad(loss, has_aux=True)(victim.variables.params)
    wanted = jax.tree.map(lambda p, g: p - 0.01 * g, victim.variables.params, gradient)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), state.variables.params, wanted
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        state.variables.batch_stats,
        outputs.batch_stats,
    )
    ce = -np.asarray(jax.nn.log_softmax(outputs.logits))[np.arange(3), 2].mean()
    assert line["loss"] == pytest.approx(ce, rel=1e-4) and line["resting"] == 0


@pytest.mark.parametrize(("suspects", "parts"), [(50, (32, 96)), (32, (32, 96)), (3, (3, 125))])
def test_suspects_and_trusted_images_together_fill_the_batch_size(suspects, parts):
    assert parts_of(128, "together", 0.25, suspects) == parts
    assert parts_of(128, "turns", 0.25, suspects) == (128, 128) and parts_of(
        128, "none", 0.25, suspects
    ) == (128, 0)
    with pytest.raises(ConfigError, match="128 has no room for trusted images"):
        parts_of(128, "together", 1.0, 128)


def resting_twice(model, victim, dataset, trusted, descent):
    """Return the states before and after a step that rests, as the step before it did.

    Earlier steps unlearned, because the suspects were predicted correctly at first.
    """
    rows = np.flatnonzero(np.asarray(dataset.train.labels) == 2)[:24]
    loop = unlearn_loop(
        KEY, model, victim.variables, dataset.train, rows, trusted,
        tx=optax.sgd(0.05, momentum=0.9), steps=40, batch_size=12,
        kind="uniform", descent=descent, batch_norm="frozen",
    )  # fmt: skip
    step, state, before = jax.jit(loop.step), loop.state, {"resting": 0}
    for _ in range(40):
        after, metrics = step(state, loop.data)
        if metrics["resting"] and before["resting"]:
            assert state.carry.moves > 0
            return state, after
        state, before = after, metrics
    raise AssertionError("the suspects never rested twice")


def test_descent_in_turns_keeps_the_momentum_of_suspects_while_they_rest(model, victim, dataset):
    trusted = np.flatnonzero(np.asarray(dataset.train.labels) != 2)
    state, after = resting_twice(model, victim, dataset, trusted, "turns")
    jax.tree.map(np.testing.assert_array_equal, after.opt_state[0], state.opt_state[0])


def test_descent_together_decays_the_momentum_while_suspects_rest(model, victim, dataset):
    """Both kinds share one momentum, to which only the trusted images' gradient is added."""
    labels = np.asarray(dataset.train.labels)
    trusted = np.flatnonzero(labels != 2)[:9]  # as many as a batch has
    state, after = resting_twice(model, victim, dataset, trusted, "together")
    images = as_float(jnp.asarray(dataset.train.images[trusted]))

    def loss(params):
        logits = model.apply(
            Variables(params, state.variables.batch_stats), images, train=False
        ).logits
        return -jax.nn.log_softmax(logits)[np.arange(9), labels[trusted]].mean()

    was, now = (optax.tree.get(s.opt_state, "trace") for s in (state, after))
    wanted = jax.tree.map(lambda v, g: 0.9 * v + g, was, jax.grad(loss)(state.variables.params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), now, wanted)


@pytest.mark.parametrize("descent", ["turns", "together"])
def test_suspects_that_are_never_predicted_correctly_change_nothing(
    descent, model, victim, dataset
):
    """Two choices of such suspects lead to the same model.

    Batch normalisation is frozen, because suspects would otherwise be in the batch's statistics.
    """
    labels = np.asarray(dataset.train.labels)
    trusted = np.flatnonzero(labels != 2)
    found = []
    for rows in (np.flatnonzero(labels == 2)[:24], np.flatnonzero(labels == 3)[:24]):
        given = labels.copy()
        given[rows] = (
            np.asarray(predict(model, victim.variables, dataset.train.images[rows])) + 1
        ) % 4
        split = Split(dataset.train.images, given)
        rest = np.setdiff1d(trusted, np.flatnonzero(labels == 3)[:24])
        options = {
            "tx": optax.sgd(0.05, momentum=0.9),
            "steps": 3,
            "batch_size": 12,
            "descent": descent,
            "batch_norm": "frozen",
        }
        state, _ = fit(unlearn_loop(KEY, model, victim.variables, split, rows, rest, **options))
        assert state.carry.resting and state.carry.moves == 0
        found.append(state.variables)
    jax.tree.map(np.testing.assert_array_equal, *found)
    assert any(
        (a != b).any()
        for a, b in zip(*map(jax.tree.leaves, (found[0], victim.variables)), strict=True)
    )


def test_uniform_unlearning_moves_towards_an_even_prediction(model, victim, dataset):
    state, lines, *_ = ascended(
        model, victim, dataset, steps=60, lr=0.01, kind="uniform", bounded=False
    )
    rows = np.flatnonzero(np.asarray(dataset.train.labels) == 2)[:24]
    logits = model.apply(
        state.variables, as_float(jnp.asarray(dataset.train.images[rows])), train=False
    ).logits
    before = model.apply(
        victim.variables, as_float(jnp.asarray(dataset.train.images[rows])), train=False
    ).logits
    sure = [float(jax.nn.softmax(x).max(-1).mean()) for x in (before, logits)]
    assert sure[1] < sure[0] - 0.3, sure
    assert np.isfinite(lines[-1]["loss"])
