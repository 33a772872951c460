"""Tests of MCL's loss, settings and repair, and of Neural Cleanse's unlearning."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from d3jax.config.loading import loads
from d3jax.config.recipes import OptimConfig
from d3jax.core.errors import ConfigError
from d3jax.core.images import as_float
from d3jax.core.types import Batch, Split, Variables
from d3jax.defenses import FinetuneConfig, MCLConfig, NCConfig, ScheduleConfig, make_mcl, make_nc
from d3jax.defenses.repair.mcl import contrast, cosine, features_of, mcl_loss
from d3jax.defenses.repair.target import Found
from d3jax.inversion import InversionConfig, Trigger, stamp
from d3jax.metrics.attack_success import make_evaluate
from d3jax.study.run import REGISTRIES
from d3jax.training import TrainData, make_schedule


@pytest.fixture(scope="module")
def reserved(dataset):
    return Split(dataset.train.images[:128], dataset.train.labels[:128])


@pytest.fixture(scope="module")
def found(attack, dataset):
    """Return the attacker's own trigger as the result of a perfect inversion."""
    zeros, ones = (jnp.full((1, *dataset.info.shape), value) for value in (0.0, 1.0))
    trigger = attack.init(jax.random.key(0))
    pattern, kept = attack.stamp(trigger, zeros)[0], attack.stamp(trigger, ones)[0]
    return Found(0, "given", Trigger((1 - (kept - pattern)).max(-1, keepdims=True), pattern), 1.0)


def test_mcl_presets_are_the_authors_recipe_and_d3jaxs_own():
    code, ours = MCLConfig(), MCLConfig(preset="ours")
    assert (
        code.tau,
        code.clean_weight,
        code.batch_norm,
        code.inversion.preset,
        code.detection.preset,
    ) == (
        0.5,
        0,
        "train",
        "pixel",
        "nc",
    )
    assert (code.schedule.epochs, code.schedule.batch_size, code.schedule.augment) == (
        20,
        64,
        "none",
    )
    assert code.schedule.optimizer == OptimConfig(
        lr=0.1, momentum=0.9, weight_decay=1e-4, schedule="multistep"
    )
    assert (ours.clean_weight, ours.batch_norm, ours.schedule) == (
        1.0,
        "mixed",
        FinetuneConfig().schedule,
    )
    assert code.drop_last and not ours.drop_last
    rate = make_schedule("multistep", steps=20 * 39, steps_per_epoch=39)
    rates = [0.1 * float(rate(step)) for step in (0, 38, 39, 10 * 39 - 1, 10 * 39, 20 * 39 - 1)]
    np.testing.assert_allclose(rates, [0.1, 0.1, 0.01, 0.01, 0.001, 0.001], rtol=1e-6)


def test_settings_missing_from_a_file_are_the_presets():
    text = (
        "defenses: [{name: mcl, schedule: {epochs: 3}}, "
        "{name: mcl, preset: ours, schedule: {steps: 50, optimizer: {lr: 0.1}}}]"
    )
    code, ours = (choice.config.schedule for choice in loads(text, registries=REGISTRIES).defenses)
    assert code == dataclasses.replace(MCLConfig().schedule, epochs=3)
    assert (ours.steps, ours.batch_size, ours.augment) == (50, 256, "auto")
    assert ours.optimizer == dataclasses.replace(FinetuneConfig().schedule.optimizer, lr=0.1)


def features(seed, scale=1.0):
    return scale * jax.random.normal(jax.random.key(seed), (16, 24))


def test_contrastive_loss_matches_its_check_values():
    z = jax.nn.relu(features(0))
    other = jnp.where(z == 0, 1.0, 0.0)  # orthogonal to z
    assert contrast(z, z, other)[0] == pytest.approx(0.1269, abs=5e-5)  # ln(1 + e⁻²)
    c = cosine(features(1), features(2))
    np.testing.assert_allclose(
        contrast(features(2), features(1), features(2)),
        np.log1p(np.exp((1 - np.asarray(c, np.float64)) / 0.5)),
        rtol=1e-6,
    )
    near, far = cosine(z, features(1)) / 0.5, cosine(z, features(2)) / 0.5
    ratio = -jnp.log(jnp.exp(near) / (jnp.exp(near) + jnp.exp(far)))
    np.testing.assert_allclose(contrast(z, features(1), features(2)), ratio, atol=1e-6)
    nothing = jnp.zeros((2, 5))
    value, slope = jax.value_and_grad(lambda z: contrast(z, jnp.ones((2, 5)), nothing).sum())(
        nothing
    )
    assert value == pytest.approx(2 * np.log(2), rel=1e-6) and not slope.any()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_contrastive_loss_and_gradient_match_float64_numpy(scale):
    z, positive, negative = (np.asarray(features(seed, scale), np.float64) for seed in range(3))

    def unit(x):
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    near, far = ((unit(z) * unit(x)).sum(1, keepdims=True) for x in (positive, negative))
    gap = (far - near) / 0.5
    expected = np.log1p(np.exp(gap))
    weight = 1 / (1 + np.exp(-gap)) / 0.5 / len(z)
    slope = (
        weight
        * ((unit(negative) - far * unit(z)) - (unit(positive) - near * unit(z)))
        / np.linalg.norm(z, axis=1, keepdims=True)
    )
    f32 = [jnp.asarray(x, jnp.float32) for x in (z, positive, negative)]
    np.testing.assert_allclose(contrast(*f32), expected[:, 0], rtol=1e-5)
    found = jax.grad(lambda z: contrast(z, *f32[1:]).mean())(f32[0])
    np.testing.assert_allclose(found, slope, atol=1e-5 * np.abs(slope).max())


def test_contrast_compares_with_features_of_the_backdoored_model(model, victim, reserved, found):
    """The features are of the model before the repair, computed once or in every step."""
    images = as_float(jnp.asarray(reserved.images[:32]))

    def frozen(images):
        return features_of(model, victim.variables, images)

    batch = Batch(
        images, jnp.asarray(reserved.labels[:32]), jnp.zeros(32, bool), rows=jnp.arange(32)
    )
    loss_inputs = {
        "tau": jnp.float32(0.5),
        "clean_weight": jnp.float32(0),
        "trigger": found.trigger,
    }
    once = loss_inputs | {
        "positive": frozen(images),
        "negative": frozen(stamp(found.trigger, images)),
    }
    params = jax.tree.map(lambda w: w + 0.01, victim.variables.params)
    values = []
    for numbers, reference_params in ((once, None), (loss_inputs, victim.variables)):
        data = TrainData(None, None, {}, reference_params, numbers)
        loss = jax.jit(mcl_loss(MCLConfig(batch_norm="fixed"), model))
        value, (_, reported) = loss(
            params, victim.variables.batch_stats, batch, jax.random.key(0), data
        )
        z = features_of(
            model, Variables(params, victim.variables.batch_stats), stamp(found.trigger, images)
        )
        expected = contrast(z, once["positive"], once["negative"]).mean()
        assert value == pytest.approx(float(expected), rel=1e-4) and reported["contrast"] == value
        values.append(value)
    assert values[0] == pytest.approx(float(values[1]), rel=1e-5)


QUICK = ScheduleConfig(
    epochs=10,
    batch_size=32,
    augment="none",
    optimizer=OptimConfig(lr=0.1, weight_decay=1e-4, schedule="constant"),
)


@pytest.mark.parametrize("batch_norm", ["train", "fixed", "mixed"])
def test_mcl_removes_the_backdoor_and_leaves_the_head_unchanged(
    model, victim, reserved, found, attack, dataset, batch_norm
):
    before, stats = victim.variables
    defense = make_mcl(MCLConfig(target=0, batch_norm=batch_norm, schedule=QUICK), dataset.info)
    repaired = defense.repair(jax.random.key(1), model, victim.variables, reserved, target=found)
    after = repaired.variables
    jax.tree.map(np.testing.assert_array_equal, after.params["head"], before["head"])
    assert not np.array_equal(after.params["conv0"]["kernel"], before["conv0"]["kernel"])
    same = jax.tree.map(lambda a, b: bool((a == b).all()), after.batch_stats, stats)
    assert all(jax.tree.leaves(same)) == (batch_norm == "fixed")
    assert (
        repaired.trace["near"][-1] > repaired.trace["far"][-1]
        and np.isfinite(repaired.trace["loss"]).all()
    )
    evaluate = make_evaluate(model, attack, 4)
    assert (
        evaluate(after, victim.trigger, dataset.test).asr
        < 0.3
        < evaluate(victim.variables, victim.trigger, dataset.test).asr
    )


def test_mcl_with_clean_cross_entropy_trains_the_head_too(model, victim, reserved, found, dataset):
    for config in (
        MCLConfig(target=0, clean_weight=1.0, schedule=QUICK),
        MCLConfig(preset="ours", target=0, schedule=QUICK),
    ):
        repaired = make_mcl(config, dataset.info).repair(
            jax.random.key(1), model, victim.variables, reserved, target=found
        )
        assert not np.array_equal(
            repaired.variables.params["head"]["kernel"], victim.variables.params["head"]["kernel"]
        )
        assert repaired.trace["accuracy"][-1] > 0.9 and repaired.trace["clean_loss"][-1] < 0.5


def test_weight_decay_is_coupled():
    """The first step is θ ← θ − lr · (g + wd · θ): the decay is added before momentum."""
    from d3jax.training import make_optimizer

    config = MCLConfig().schedule.optimizer
    tx = make_optimizer(config, steps=780, steps_per_epoch=39)
    params, grads = jnp.array([2.0, -3.0]), jnp.array([0.5, 0.25])
    state = tx.init(params)
    first, state = tx.update(grads, state, params)
    np.testing.assert_allclose(first, -0.1 * (grads + 1e-4 * params), rtol=1e-6)
    second, _ = tx.update(grads, state, optax.apply_updates(params, first))
    np.testing.assert_allclose(
        second, -0.1 * (0.9 * (grads + 1e-4 * params) + grads + 1e-4 * (params + first)), rtol=1e-5
    )


def test_nc_removes_the_backdoor_by_unlearning_with_true_labels(
    model, victim, reserved, found, attack, dataset
):
    config = NCConfig(
        target=0, schedule=ScheduleConfig(epochs=20, batch_size=64, optimizer=OptimConfig(lr=0.05))
    )
    assert (NCConfig().rate, NCConfig().schedule.epochs, NCConfig().inversion.preset) == (
        0.2,
        1,
        "nc",
    )
    repaired = make_nc(config, dataset.info).repair(
        jax.random.key(1), model, victim.variables, reserved, target=found
    )
    counts = make_evaluate(model, attack, 4)(repaired.variables, victim.trigger, dataset.test)
    assert counts.asr < 0.3 and counts.acc > 0.9 and counts.ra > 0.6


def test_mcl_and_nc_return_the_same_model_if_no_class_is_flagged(model, victim, reserved, dataset):
    nothing = Found(
        -1, "none flagged", Trigger(jnp.zeros((12, 12, 1)), jnp.zeros((12, 12, 3))), 0.0
    )
    for defense in (make_mcl(MCLConfig(), dataset.info), make_nc(NCConfig(), dataset.info)):
        repaired = defense.repair(
            jax.random.key(1), model, victim.variables, reserved, target=nothing
        )
        jax.tree.map(np.testing.assert_array_equal, repaired.variables, victim.variables)
        assert repaired.trace == {}


def test_settings_that_cannot_work_are_refused(victim, dataset):
    with pytest.raises(ConfigError, match="target: 4 is not a class of synthetic, want 0 to 3"):
        make_mcl(MCLConfig(target=4), dataset.info)
    with pytest.raises(ConfigError, match="target: 'find' is no class of synthetic"):
        make_mcl(MCLConfig(target="find"), dataset.info)
    given = None, victim.variables
    with pytest.raises(ConfigError, match="head: 'classifier/.' matches none"):
        make_mcl(MCLConfig(head="classifier/*"), dataset.info).check(*given, 500)
    with pytest.raises(
        ConfigError, match="inversion.batch_size: 32 is more than the 20 reserved images"
    ):
        make_mcl(MCLConfig(target=0), dataset.info).check(*given, 20)
    with pytest.raises(ConfigError, match="batch_size: 64 is more than the 40 images"):
        make_mcl(MCLConfig(target=0), dataset.info).check(*given, 40)
    with pytest.raises(
        ConfigError, match="detection.batch_size: 32 is more than the 20 reserved images"
    ):
        make_nc(NCConfig(inversion=InversionConfig(batch_size=16)), dataset.info).check(*given, 20)
