"""Tests of attacks that prepare triggers or images before training, or train their trigger."""

import dataclasses
import importlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax.attacks import ATTACKS
from d3jax.attacks.trojannn import strongest
from d3jax.config.recipes import OptimConfig, TrainConfig
from d3jax.core.errors import AttackError
from d3jax.core.images import as_float
from d3jax.core.random import stream
from d3jax.core.types import Prepared, Variables
from d3jax.metrics.attack_success import make_evaluate
from d3jax.training import Hooks, cross_entropy, fit, train_backdoored, victim_loop
from d3jax.training.victim import prepare, trigger_of

SETTINGS = {
    # The small model hardly tells an image's own trigger from a borrowed one. With as many borrowed
    # triggers as own ones, ASR ends at 0.7.
    "input_aware": {
        "rate": 0.2,
        "cross_ratio": 0.25,
        "width": 4,
        "mask_steps": 80,
        "mask_batch": 32,
        "density": 0.05,
    },
    "lf": {"steps": 60, "batch_size": 64, "amplitude": 120, "lr": 0.3},
    "trojannn": {"steps": 60, "size": 4, "margin": 1},
    "lc": {"rate": 0.2, "steps": 12, "eps": 80.0, "step": 16.0},
    "ssba": {"rate": 0.2, "width": 8, "bits": 2, "steps": 300, "batch_size": 32, "lr": 3e-3},
}


SLOW = ("input_aware", "ssba", "lc")


TRAIN = TrainConfig(steps=250, batch_size=64, augment="none", optimizer=OptimConfig(lr=0.05))


KEY = jax.random.key(0)


LC = importlib.import_module("d3jax.attacks.lc")  # `d3jax.attacks.lc` is the constructor


def build(name, dataset):
    cls, construct = ATTACKS[name]
    return construct(cls(**SETTINGS[name]), dataset.info)


@pytest.fixture(scope="module")
def clean(model, dataset):
    return fit(victim_loop(KEY, model, dataset, None, TRAIN))[0].variables


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in SETTINGS]
)
def test_attacks_with_a_preparation_reach_a_high_asr_and_keep_accuracy(name, model, dataset):
    """`train_backdoored` prepares the attack itself, from the key and the settings."""
    attack = build(name, dataset)
    victim = train_backdoored(KEY, model, dataset, attack, TRAIN)
    counts = make_evaluate(model, attack, 4)(victim.variables, victim.trigger, dataset.test)
    assert counts.acc > 0.85 and counts.asr > 0.8
    same = jax.tree.all(
        jax.tree.map(jnp.array_equal, victim.trigger, attack.init(stream(KEY, "trigger")))
    )
    assert same == (name == "lc")  # LC prepares images and keeps its trigger


def test_lf_finds_a_smooth_pattern_that_lowers_the_loss_of_the_target(model, dataset, clean):
    attack = build("lf", dataset)
    prepared, _ = prepare(KEY, model, clean, dataset, attack)

    def distance(trigger):
        images = attack.stamp(trigger, as_float(jnp.asarray(dataset.test.images)))
        return float(
            cross_entropy(
                model.apply(clean, images, train=False).logits, jnp.zeros(len(images), int)
            ).mean()
        )

    assert distance(prepared.trigger) < 0.9 * distance(attack.init(stream(KEY, "trigger")))
    pattern = np.asarray(prepared.trigger["pattern"], int)
    assert pattern.min() == 0 and pattern.max() == 120
    # Neighbouring values of noise would differ by up to 120.
    assert max(np.abs(np.diff(pattern, axis=axis)).max() for axis in (0, 1)) < 60


def test_trojannn_raises_the_activation_of_the_strongest_neurons(model, dataset, clean):
    attack = build("trojannn", dataset)
    _, lines = prepare(KEY, model, clean, dataset, attack, Hooks(log_every=20))
    assert lines[-1]["activation"] > lines[0]["activation"] + 0.1
    kernel = jnp.array([[0.0, 1.0], [-3.0, 1.0], [1.0, 1.0]])
    assert strongest({"head": {"kernel": kernel}}, 2).tolist() == [1, 2]
    with pytest.raises(AttackError, match="not at head/kernel"):
        strongest({"classifier": {"kernel": kernel}}, 2)
    with pytest.raises(AttackError, match=r"5 asked for, head/kernel has the shape \[3, 2\]"):
        strongest({"head": {"kernel": kernel}}, 5)


def test_lc_moves_images_away_from_their_class_within_eps(model, dataset, clean, monkeypatch):
    monkeypatch.setattr(LC, "CHUNK", 30)  # 80 images: chunks of 30, 30 and 20
    attack = build("lc", dataset)
    prepared, lines = prepare(KEY, model, clean, dataset, attack, Hooks(log_every=1))
    poisoned = np.flatnonzero(attack.select(stream(KEY, "select"), dataset.train.labels))
    before = dataset.train.images[poisoned]
    moved = np.abs(np.asarray(prepared.images, int) - before)
    assert len(lines) == 3 * 12 and moved.shape == (80, *dataset.info.shape)
    assert moved.max() == 80 and (moved.reshape(80, -1).max(1) > 40).all()

    def accuracy(images):
        return float(
            (
                model.apply(clean, as_float(jnp.asarray(images)), train=False).logits.argmax(-1)
                == 0
            ).mean()
        )

    assert accuracy(before) > 0.9 and accuracy(prepared.images) < 0.3
    loop = victim_loop(KEY, model, dataset, attack, TRAIN, prepared)
    assert jnp.array_equal(loop.data.split.images[poisoned], prepared.images)
    others = np.setdiff1d(np.arange(len(dataset.train.labels)), poisoned)
    assert jnp.array_equal(loop.data.split.images[others], dataset.train.images[others])


@pytest.mark.slow
def test_ssba_decoder_reads_the_bits_and_prepared_images_equal_the_stamp(model, dataset):
    attack = build("ssba", dataset)
    prepared, lines = prepare(KEY, model, None, dataset, attack, Hooks(log_every=50))
    assert lines[-1]["bits"] > 0.95 and lines[-1]["psnr"] > lines[2]["psnr"]
    poisoned = np.flatnonzero(attack.select(stream(KEY, "select"), dataset.train.labels))
    stamped = attack.stamp(prepared.trigger, as_float(jnp.asarray(dataset.train.images[poisoned])))
    assert float(jnp.abs(stamped - as_float(prepared.images)).max()) < 1.1 / 255


@pytest.mark.slow
def test_input_aware_masks_are_thin_and_only_its_generator_trains_with_the_model(model, dataset):
    attack = build("input_aware", dataset)
    prepared, lines = prepare(KEY, model, None, dataset, attack, Hooks(log_every=25))
    assert lines[-1]["density"] < 0.15 and lines[-1]["density"] < 0.7 * lines[0]["density"]
    loop = victim_loop(KEY, model, dataset, attack, dataclasses.replace(TRAIN, steps=5), prepared)
    state, lines = fit(loop, Hooks(log_every=1))
    assert all(np.isfinite(line["penalty"]) for line in lines)
    trigger = trigger_of(loop, state)
    chex.assert_trees_all_equal(trigger["mask"], prepared.trigger["mask"])
    for part in (0, 1):  # parameters and running statistics
        moved = jax.tree.map(
            lambda a, b: bool((a != b).any()),
            trigger["generator"][part],
            prepared.trigger["generator"][part],
        )
        assert sum(jax.tree.leaves(moved)) > len(jax.tree.leaves(moved)) / 2


@pytest.mark.slow
def test_resume_is_bit_exact_while_a_trigger_is_trained(model, dataset):
    attack = build("input_aware", dataset)
    with pytest.raises(AttackError, match="preparation is missing"):
        victim_loop(KEY, model, dataset, attack, TRAIN)
    loop = victim_loop(
        KEY, model, dataset, attack, dataclasses.replace(TRAIN, steps=8), Prepared(attack.init(KEY))
    )
    kept = {}
    hooks = Hooks(
        save=lambda state, lines: kept.setdefault(
            int(state.step), (jax.tree.map(jnp.copy, state), list(lines))
        ),
        save_every=4,
        log_every=4,
    )
    whole, _ = fit(loop, hooks)
    resumed, _ = fit(
        loop, Hooks(saved=lambda: [4], restore=lambda state, step: kept[4], log_every=4)
    )
    same = jax.tree.map(
        lambda a, b: bool(jnp.array_equal(a, b)),
        *((state.variables, state.carry, state.opt_state) for state in (whole, resumed)),
    )
    assert jax.tree.all(same)
    assert isinstance(trigger_of(loop, whole)["generator"], Variables)
