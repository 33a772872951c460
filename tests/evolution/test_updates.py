"""Tests of evolution runs: the images of each update, drift, poison, replay and training."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from d3jax.attacks import ATTACKS
from d3jax.core.errors import ConfigError
from d3jax.core.images import as_float
from d3jax.core.losses import cross_entropy
from d3jax.core.types import Model, Outputs, Prepared, Split, Variables
from d3jax.data.drift import compose
from d3jax.evolution.config import EvolutionConfig
from d3jax.evolution.fresh_sets import check_evolution, divide
from d3jax.evolution.lr_schedules import LRScheduleConfig
from d3jax.evolution.updates import evolution_loop, restarted
from d3jax.metrics.attack_success import make_evaluate
from d3jax.training import Hooks, fit, fit_ensemble
from d3jax.training.poisoned_set import poisoned_split

KEY = jax.random.key(5)


CONFIG = EvolutionConfig(
    updates=3,
    validation=0,
    epochs=2,
    batch_size=16,
    augment="none",
    strategy=LRScheduleConfig(lr=0.02),
)


@pytest.fixture(scope="module")
def parts(dataset):
    """Return the first training set and the fresh images."""
    images, labels = dataset.train
    return Split(images[:160], labels[:160]), Split(images[160:], labels[160:])


def job_of(model, victim, parts, attack, dataset, config=CONFIG):
    return evolution_loop(
        KEY, model, victim.variables, *parts, attack, victim.trigger, config, dataset.info
    )


def batches_of(model, victim, parts, attack, dataset, config):
    """Return the train loop of an evolution run, and the images of every step.

    The model stores its batch as its running statistics.
    """

    def apply(variables, images, *, train):
        logits = jnp.zeros((len(images), 4)) + 0 * variables.params["w"]
        return Outputs(logits, {}, {"seen": images})

    given = Variables({"w": jnp.zeros(())}, {"seen": jnp.zeros(())})
    loop = job_of(
        Model(lambda key: given, apply),
        victim._replace(variables=given),
        parts,
        attack,
        dataset,
        config,
    )
    step, state, seen = jax.jit(loop.step), loop.state, []
    for _ in range(loop.steps):
        state, _ = step(state, loop.data)
        seen.append(np.asarray(state.variables.batch_stats["seen"]))
    return loop, np.stack(seen)


def test_every_update_sees_its_own_drifted_images_once_per_epoch(
    model, victim, parts, attack, dataset
):
    config = dataclasses.replace(CONFIG, drift={"brightness": 0.01})
    loop, seen = batches_of(model, victim, parts, attack, dataset, config)
    assert loop.steps == 3 * 2 * 5 and not loop.data.poisoned.any()
    learned, _ = divide(KEY, parts[1].labels, config, 4)
    assert len(set(learned.ravel())) == 240
    for update in range(3):
        images = as_float(jnp.asarray(parts[1].images[learned[update]]))
        drifted = compose(["brightness"], 3)(
            jax.random.split(KEY, 80), images, jnp.array([0.01 * (update + 1)])
        )
        wanted = sorted(np.round(np.asarray(drifted), 5).reshape(80, -1).tolist())
        for epoch in range(2):
            first = update * 10 + epoch * 5
            found = sorted(np.round(seen[first : first + 5], 5).reshape(80, -1).tolist())
            np.testing.assert_allclose(found, wanted, atol=2e-5)


@pytest.mark.parametrize("trigger_first", [False, True])
def test_trigger_is_stamped_before_or_after_the_drift_by_trigger_first(
    model, victim, parts, attack, dataset, trigger_first
):
    config = dataclasses.replace(
        CONFIG, epochs=1, persistent=0.5, drift={"brightness": -0.2}, trigger_first=trigger_first
    )
    _, seen = batches_of(model, victim, parts, attack, dataset, config)
    corners = seen[:, :, -1, -1].reshape(3, 80, -1)  # a pixel of the patch
    for update, drifted in enumerate((0.8, 0.6, 0.4)):
        patched = np.abs(corners[update] - (drifted if trigger_first else 1)).max(-1) < 1e-6
        assert patched.mean() == 0.5


def test_replayed_images_do_not_drift_and_noise_is_fixed_for_an_image(
    model, victim, parts, attack, dataset
):
    config = dataclasses.replace(CONFIG, replay=0.5, drift={"noise": 0.1})
    _job, seen = batches_of(model, victim, parts, attack, dataset, config)
    old = {image.tobytes() for image in np.asarray(as_float(parts[0].images))}
    assert all(image.tobytes() in old for batch in seen for image in batch[:8])
    assert not any(image.tobytes() in old for batch in seen for image in batch[8:])
    first = batches_of(
        model, victim, parts, attack, dataset, dataclasses.replace(config, replay=0.0)
    )[1][:10].reshape(2, 80, -1)
    # Both epochs of an update have equal images.
    assert {image.tobytes() for image in first[0]} == {image.tobytes() for image in first[1]}


def test_validation_images_are_not_trained_on():
    labels = np.arange(250) % 4
    learned, kept = divide(KEY, labels, dataclasses.replace(CONFIG, validation=0.2), 4)
    assert learned.shape == (3, 66) and kept.shape == (3, 17)
    # The rows of all updates, and of training and validation, are disjoint.
    assert len(set(learned.ravel()) | set(kept.ravel())) == 249
    again = divide(
        KEY,
        labels,
        dataclasses.replace(CONFIG, validation=0.2, strategy=LRScheduleConfig(lr=1.0)),
        4,
    )
    np.testing.assert_array_equal(learned, again[0])
    shifted, seen = divide(
        KEY, labels, dataclasses.replace(CONFIG, validation=0.2, label_shift=2.0), 4
    )
    for rows, drawn in ((learned, shifted), (kept, seen)):
        assert all(set(b) <= set(a) for a, b in zip(rows, drawn, strict=True))
        share = [(labels[part] == 3).mean() for part in drawn]
        assert share == sorted(share) and share[2] > 0.5, share  # exp(6/2) to exp(−6/2)


def test_updates_match_optax_sgd_with_fresh_momentum_in_each_update(
    model, victim, parts, attack, dataset
):
    """Compare with optax's SGD on the same batches.

    The second update begins with fresh momentum and the first rate of the schedule.
    """
    config = dataclasses.replace(CONFIG, strategy=LRScheduleConfig(name="cosine", lr=0.05))
    loop = job_of(model, victim, parts, attack, dataset, config)
    states, state, step = [], loop.state, jax.jit(loop.step)
    for _ in range(12):
        state, metrics = step(state, loop.data)
        states.append((state, metrics))
    tx = optax.chain(
        optax.add_decayed_weights(5e-4),
        optax.sgd(optax.cosine_decay_schedule(0.05, 10), momentum=0.9),
    )

    @jax.jit
    def plain(variables, opt_state, at):
        from d3jax.core.random import stream
        from d3jax.data.batching import batch_rows

        rows = (
            batch_rows(
                stream(loop.state.key, "rows"), at, size=80, steps_per_epoch=5, batch_size=16
            )
            + at // 10 * 80
        )
        mine = loop.data.loss_inputs["order"][rows]
        images, labels = as_float(loop.data.split.images[mine]), loop.data.split.labels[mine]

        def loss(params):
            outputs = model.apply(Variables(params, variables.batch_stats), images, train=True)
            return cross_entropy(outputs.logits, labels).mean(), outputs.batch_stats

        (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(variables.params)
        updates, opt_state = tx.update(grads, opt_state, variables.params)
        return Variables(optax.apply_updates(variables.params, updates), stats), opt_state, value

    variables, opt_state = victim.variables, tx.init(victim.variables.params)
    for i in range(12):
        if i == 10:
            opt_state = tx.init(variables.params)
        variables, opt_state, value = plain(variables, opt_state, jnp.int32(i))
        assert states[i][1]["loss"] == pytest.approx(float(value), rel=1e-4, abs=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
        states[-1][0].variables,
        variables,
    )
    assert states[10][1]["lr"] == states[0][1]["lr"] == np.float32(0.05)
    began = states[-1][0].carry["start_params"]
    # The second update starts from the parameters after ten steps.
    jax.tree.map(np.testing.assert_array_equal, began, states[9][0].variables.params)


def test_carried_optimizer_state_keeps_momentum_between_updates(
    model, victim, parts, attack, dataset
):
    """Recompute the first step of the second update by hand."""
    for kind, share in (("reset", 0.0), ("carried", 0.9)):
        loop = job_of(
            model, victim, parts, attack, dataset, dataclasses.replace(CONFIG, optimizer_state=kind)
        )
        state, step = loop.state, jax.jit(loop.step)
        for _ in range(10):
            state, _ = step(state, loop.data)
        before, (after, metrics) = state, step(state, loop.data)
        old, new = (
            optax.tree.get(one.opt_state, "trace")["head"]["kernel"] for one in (before, after)
        )
        w, moved = (one.variables.params["head"]["kernel"] for one in (before, after))
        np.testing.assert_allclose(moved, w - metrics["lr"] * new, rtol=1e-5, atol=1e-7)
        gradients = new - share * old
        fresh = restarted(before, before.variables)
        # The trace of a restarted optimiser is the gradient alone.
        wanted = optax.tree.get(step(fresh, loop.data)[0].opt_state, "trace")["head"]["kernel"]
        np.testing.assert_allclose(gradients, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"drift": {"contrast": -0.4}},
            "drift: contrast: -0.4 in each of 3 updates ends at -1.2, want above -1",
        ),
        ({"replay": 0.01}, "replay: 0.01 of the 16 images of a batch is less than one"),
        (
            {"defense": "d3", "every": 4},
            "every: 4 is more than the 3 updates; d3 would never be called",
        ),
    ],
)
def test_settings_that_do_not_fit_the_updates_are_refused(dataset, change, message):
    with pytest.raises(ConfigError, match=message):
        check_evolution(dataclasses.replace(CONFIG, **change), 240, dataset.info)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"drift": {"rotation": float("nan")}}, "drift.rotation: nan is out of range"),
        (
            {"drift": {"rotaton": 3.0}},
            "'rotaton' is not one of rotation, .*; did you mean 'rotation'",
        ),
        ({"drift": {"blur": -1.0}}, "drift: blur: -1 is out of range, want ≥ 0"),
        ({"calls": 1}, "calls: 1 says how often a defence is called, and there is no defense"),
    ],
)
def test_invalid_drifts_and_calls_without_a_defence_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(CONFIG, **change)


def test_learning_statistics_changes_statistics_only(model, victim, parts, attack, dataset):
    state, _ = fit(
        job_of(
            model, victim, parts, attack, dataset, dataclasses.replace(CONFIG, learn="statistics")
        )
    )
    jax.tree.map(np.testing.assert_array_equal, state.variables.params, victim.variables.params)
    assert not np.array_equal(
        *(jax.tree.leaves(v.batch_stats)[0] for v in (state.variables, victim.variables))
    )


def test_learning_parameters_changes_parameters_only(model, victim, parts, attack, dataset):
    config = dataclasses.replace(CONFIG, learn="parameters")
    state, _ = fit(job_of(model, victim, parts, attack, dataset, config))
    jax.tree.map(
        np.testing.assert_array_equal, state.variables.batch_stats, victim.variables.batch_stats
    )
    assert not np.array_equal(
        *(v.params["head"]["kernel"] for v in (state.variables, victim.variables))
    )
    assert config.program != CONFIG.program


@pytest.mark.parametrize("share", [0.05, 0.1])
def test_persistent_poison_is_the_same_share_of_every_update(
    model, victim, parts, attack, dataset, share
):
    loop = job_of(
        model, victim, parts, attack, dataset, dataclasses.replace(CONFIG, persistent=share)
    )
    assert loop.data.poisoned.reshape(3, 80).sum(1).tolist() == [round(share * 80)] * 3


def test_more_poison_than_the_attack_can_take_is_refused(model, victim, parts, attack, dataset):
    more = job_of(
        model, victim, parts, attack, dataset, dataclasses.replace(CONFIG, persistent=0.8)
    )
    # The share does not depend on that of the first set.
    assert more.data.poisoned.reshape(3, 80).sum(1).tolist() == [64] * 3
    config, construct = ATTACKS["sig"]
    sig = construct(config(rate=0.1), dataset.info)
    taken = job_of(
        model, victim, parts, sig, dataset, dataclasses.replace(CONFIG, persistent=0.1)
    ).data
    owned = taken.loss_inputs["order"][np.asarray(taken.poisoned)]
    assert len(owned) == 3 * 8 and not taken.split.labels[owned].any()
    with pytest.raises(
        ConfigError,
        match="persistent: 0.8 of 80 images is 64, update 1 has .* that the attack can take",
    ):
        job_of(model, victim, parts, sig, dataset, dataclasses.replace(CONFIG, persistent=0.8))
    with pytest.raises(
        ConfigError,
        match="persistent: 0.001 of the 80 images that an update learns is less than one",
    ):
        job_of(model, victim, parts, attack, dataset, dataclasses.replace(CONFIG, persistent=0.001))
    with pytest.raises(
        ConfigError, match="batch_size: 128 is more than the 80 images that one of 3 updates learns"
    ):
        job_of(model, victim, parts, attack, dataset, dataclasses.replace(CONFIG, batch_size=128))


def test_replay_trains_on_the_poisoned_first_set_and_teaches_the_backdoor(
    model, victim, parts, attack, dataset
):
    config = dataclasses.replace(CONFIG, replay=0.5)
    many = attack._replace(select=lambda key, labels: jnp.arange(len(labels)) < 40)
    released, _ = poisoned_split(KEY, many, parts[0], Prepared(victim.trigger))
    parts = (released, parts[1])
    loop = job_of(model, victim, parts, attack, dataset, config)
    # The released images of the first set contain the trigger.
    np.testing.assert_array_equal(loop.data.split.images[:160], released.images)
    assert not loop.data.poisoned.any() and (released.labels[:40] == 0).all()
    strong = dataclasses.replace(config, updates=2, epochs=6, strategy=LRScheduleConfig(lr=0.1))
    evaluate = make_evaluate(model, attack, 4)
    asr = {}
    for replay in (0.0, 0.5):
        # An untrained model can learn the trigger only from the replay.
        blank = victim._replace(variables=model.init(KEY))
        loop = job_of(
            model, blank, parts, attack, dataset, dataclasses.replace(strong, replay=replay)
        )
        asr[replay] = evaluate(fit(loop)[0].variables, victim.trigger, dataset.test).asr
    assert asr[0.5] > 0.8 and asr[0.0] < 0.3, asr


def test_evolution_loops_trained_together_match_loops_trained_alone(
    model, victim, parts, attack, dataset
):
    configs = [
        dataclasses.replace(
            CONFIG,
            drift={"brightness": a},
            persistent=p,
            strategy=LRScheduleConfig(name=name, lr=lr),
        )
        for a, p, name, lr in ((0.0, 0.0, "constant", 0.01), (0.1, 0.05, "sgdr", 0.05))
    ]
    loops = [job_of(model, victim, parts, attack, dataset, config) for config in configs]
    together = fit_ensemble(
        [loops[0], loops[1]._replace(step=loops[0].step)], [Hooks(log_every=10)] * 2
    )
    for loop, (state, lines) in zip(loops, together, strict=True):
        alone, mine = fit(loop, Hooks(log_every=10))
        np.testing.assert_allclose(
            [line["loss"] for line in lines], [line["loss"] for line in mine], rtol=1e-3, atol=1e-5
        )
        np.testing.assert_allclose(
            state.variables.params["head"]["kernel"],
            alone.variables.params["head"]["kernel"],
            rtol=1e-2,
            atol=1e-3,
        )


def test_clean_label_attacks_run_without_target_images_in_the_updates(
    model, victim, parts, dataset
):
    config, construct = ATTACKS["sig"]
    # The rate takes nearly all images of the first set's target class.
    attack = construct(config(rate=0.24), dataset.info)
    fresh = Split(*(part[np.asarray(parts[1].labels) != 0] for part in parts[1]))
    loop = job_of(model, victim, (parts[0], fresh), attack, dataset)
    assert not loop.data.poisoned.any()
