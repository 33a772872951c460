"""Tests of the losses on paths and in planes between models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax.analysis.loss_landscape import (
    losses_at,
    mixed,
    path_losses,
    plane_losses,
    plane_of,
)
from d3jax.attacks import ATTACKS
from d3jax.config.recipes import OptimConfig
from d3jax.core.images import as_float
from d3jax.core.types import Split, Variables
from d3jax.defenses import FinetuneConfig, ScheduleConfig, make_finetune
from d3jax.metrics.attack_success import make_evaluate
from d3jax.training.batch_statistics import with_estimated_statistics

KEY = jax.random.key(2)


@pytest.fixture(scope="module")
def repaired(model, victim, dataset):
    reserved = Split(*(part[:100] for part in dataset.train))
    schedule = ScheduleConfig(
        steps=40, batch_size=25, augment="none", optimizer=OptimConfig(lr=0.02)
    )
    return (
        make_finetune(FinetuneConfig(schedule=schedule), dataset.info)
        .repair(KEY, model, victim.variables, reserved)
        .variables
    )


def test_losses_at_the_ends_of_a_path_are_those_of_the_models(
    model, victim, repaired, attack, dataset
):
    found = path_losses(
        model,
        attack,
        victim.trigger,
        victim.variables,
        repaired,
        [0.0, 0.5, 1.0, 2.0],
        dataset.test,
    )
    evaluate = make_evaluate(model, attack, 4)
    for i, variables in ((0, victim.variables), (2, repaired)):
        counts = evaluate(variables, victim.trigger, dataset.test)
        assert (found.acc[i], found.asr[i]) == pytest.approx((counts.acc, counts.asr), abs=1e-12)
        jax.tree.map(
            np.testing.assert_array_equal,
            mixed((victim.variables, repaired), (1.0 - i / 2, i / 2)),
            variables,
        )
    images, labels = as_float(jnp.asarray(dataset.test.images)), np.asarray(dataset.test.labels)
    logits = np.asarray(model.apply(repaired, images, train=False).logits, np.float64)
    logs = (
        logits
        - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True))
        - logits.max(1, keepdims=True)
    )
    assert found.clean_loss[2] == pytest.approx(
        -logs[np.arange(len(labels)), labels].mean(), rel=1e-4, abs=1e-6
    )
    assert all(part.shape == (4,) and np.isfinite(part).all() for part in found)


def test_points_measured_together_equal_points_measured_alone(
    model, victim, repaired, attack, dataset
):
    points = [mixed((victim.variables, repaired), (1 - t, t)) for t in (0.0, 0.5, 1.0, 1.5, 2.0)]
    alone, both = (
        losses_at(model, attack, victim.trigger, points, dataset.test, together=n) for n in (1, 2)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), alone, both)
    assert (
        len(both.acc) == 5
        and len(losses_at(model, attack, victim.trigger, [], dataset.test).acc) == 0
    )


def test_backdoor_loss_and_asr_are_nan_without_an_attack(model, victim, dataset):
    found = losses_at(model, _attack(dataset), {}, [victim.variables], dataset.test)
    assert np.isnan(found.backdoor_loss[0]) and np.isnan(found.asr[0]) and found.acc[0] > 0.9


def test_a_plane_contains_its_three_models(model, victim, repaired, attack, dataset):
    third = jax.tree.map(lambda x: x * 0.9 + 0.01, victim.variables)
    models = [victim.variables, repaired, third]
    plane = plane_of(*(variables.params for variables in models))

    def dot(a, b):
        return sum(
            float(jnp.vdot(x, y))
            for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
        )

    assert dot(plane.u, plane.u) == pytest.approx(1, abs=1e-4) and dot(
        plane.u, plane.v
    ) == pytest.approx(0, abs=1e-4)
    xs, ys = plane.places[:, 0], plane.places[:, 1]
    found = plane_losses(model, attack, victim.trigger, models, xs, ys, dataset.test)
    alone = losses_at(model, attack, victim.trigger, models, dataset.test)
    for i in range(3):
        assert found.clean_loss[i, i] == pytest.approx(alone.clean_loss[i], rel=1e-3)
        assert found.backdoor_loss[i, i] == pytest.approx(alone.backdoor_loss[i], rel=1e-3)
    with pytest.raises(ValueError, match="lie on a line"):
        plane_of(models[0].params, repaired.params, mixed(models[:2], (0.7, 0.3)).params)


@pytest.mark.slow
def test_statistics_are_estimated_without_knowing_the_momentum(model, victim, dataset):
    images = Split(*(part[:100] for part in dataset.train))
    found = with_estimated_statistics(model, victim.variables, images, batch_size=50)
    stats = victim.variables.batch_stats
    # Running statistics that see two batches repeatedly converge to the estimate, apart from the
    # effect of the order of the batches.
    for _ in range(400):
        for first in (0, 50):
            batch = as_float(jnp.asarray(images.images[first : first + 50]))
            stats = model.apply(
                Variables(victim.variables.params, stats), batch, train=True
            ).batch_stats
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0.1, atol=0.05), found.batch_stats, stats
    )
    again = path_losses(
        model,
        _attack(dataset),
        {},
        victim.variables,
        victim.variables,
        [0.0],
        dataset.test,
        "estimated",
        images,
    )
    assert again.acc[0] > 0.9


def _attack(dataset):
    """Return the control `clean`, which has no trigger."""
    config, construct = ATTACKS["clean"]
    return construct(config(), dataset.info)


def test_variances_stay_positive_beyond_the_models_and_nan_predicts_no_class(
    model, victim, repaired, attack, dataset
):
    def stats(*leaves):
        return {"mean": jnp.array([leaves[0]]), "var": jnp.array([leaves[1]])}

    far = mixed(
        [Variables({}, stats(-1.0, 4.0)), Variables({}, stats(1.0, 1.0))], (-2.0, 3.0)
    ).batch_stats
    assert far["mean"][0] == 5.0 and far["var"][0] == pytest.approx(4.0**-2)
    broken = jax.tree.map(lambda x: x * jnp.nan, victim.variables)
    found = losses_at(model, attack, victim.trigger, [broken], dataset.test)
    # A prediction from NaN logits is not class 0.
    assert found.asr[0] == 0 and found.acc[0] == 0 and np.isnan(found.clean_loss[0])
    fixed = path_losses(
        model, attack, victim.trigger, victim.variables, repaired, [1.0], dataset.test, "first"
    )
    point = repaired._replace(batch_stats=victim.variables.batch_stats)
    assert (
        fixed.clean_loss[0]
        == losses_at(model, attack, victim.trigger, [point], dataset.test).clean_loss[0]
    )
