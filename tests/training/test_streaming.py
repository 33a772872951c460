"""Tests of training on images that stay on the host, against images on the device."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax.config.recipes import LoopConfig, OptimConfig, TrainConfig
from d3jax.core.errors import ConfigError
from d3jax.core.types import Dataset, Split
from d3jax.runtime.progress import Progress
from d3jax.study import context
from d3jax.training import Hooks, fit, streaming, victim_loop

CONFIG = TrainConfig(steps=30, batch_size=32, optimizer=OptimConfig(lr=0.05))


@pytest.fixture(scope="module")
def resident(dataset, model, attack):
    return fit(victim_loop(jax.random.key(3), model, dataset, attack, CONFIG))[0]


@pytest.mark.parametrize(("devices", "steps_per_call"), [(0, 1), (0, 4), (4, 1)])
def test_streamed_training_equals_training_on_resident_images(
    dataset, model, attack, resident, devices, steps_per_call
):
    """The 400 images make epochs of 12 batches."""
    loop = victim_loop(jax.random.key(3), model, dataset, attack, CONFIG, streamed=True)
    hooks = Hooks(
        log_every=10, steps_per_call=steps_per_call, devices=tuple(jax.devices()[:devices])
    )
    state, lines = fit(loop, hooks)
    chex.assert_trees_all_close(state.variables, resident.variables, rtol=2e-4, atol=2e-5)
    assert [line["step"] for line in lines] == [10, 20, 30]


def test_a_stream_resumes_bit_exactly_in_the_middle_of_an_epoch(dataset, model, attack):
    loop = victim_loop(jax.random.key(3), model, dataset, attack, CONFIG, streamed=True)
    kept = {}

    def keep(state, lines):
        return kept.update({int(state.step): (jax.tree.map(jnp.copy, state), list(lines))})

    hooks = Hooks(save=keep, save_every=17)
    whole, _ = fit(loop, hooks)
    again, _ = fit(loop, Hooks(saved=lambda: [17], restore=lambda state, step: kept[step]))
    chex.assert_trees_all_equal(whole.variables, again.variables)


def test_the_feed_of_a_later_step_continues_with_the_same_rows(dataset, model, attack):
    loop = victim_loop(jax.random.key(3), model, dataset, attack, CONFIG, streamed=True)
    numbered = Dataset(
        dataset.train._replace(images=np.arange(400, dtype=np.uint8).reshape(-1, 1, 1, 1)),
        *dataset[1:],
    )
    feed = victim_loop(
        jax.random.key(3),
        model,
        dataset._replace(train=numbered.train),
        attack,
        CONFIG,
        streamed=True,
    ).feed
    first = [np.asarray(batch.images).ravel() for batch in feed(0)]
    later = [np.asarray(batch.images).ravel() for batch in feed(12)]
    assert len(first) == 30 and all(
        np.array_equal(a, b) for a, b in zip(first[12:], later, strict=True)
    )
    labels = np.concatenate([batch.labels for batch in list(loop.feed(0))[:12]])
    assert len(labels) == 384 and np.bincount(labels, minlength=4).min() > 80


def test_images_that_need_over_half_of_the_free_memory_are_streamed(dataset, monkeypatch, capsys):
    def decide(**settings):
        return context._is_streamed(LoopConfig(**settings), dataset, Progress())

    assert not decide() and decide(placement="stream") and not decide(placement="device")
    monkeypatch.setattr(context, "memory_free", lambda: dataset.train.images.nbytes * 3)
    assert not decide()
    monkeypatch.setattr(context, "memory_free", lambda: dataset.train.images.nbytes)
    assert decide() and capsys.readouterr().out.startswith("streaming: 0.00 GiB of training images")


def test_without_grain_there_is_one_clear_error(dataset, model, attack, monkeypatch):
    monkeypatch.setattr(streaming.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install -e .\.\[stream\]"):
        victim_loop(jax.random.key(3), model, dataset, attack, CONFIG, streamed=True)
    assert isinstance(dataset.train, Split)
