"""Tests of MCR, NFT, ULRL, SFT and SEAM against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax.config.recipes import OptimConfig, ScheduleConfig
from d3jax.core.random import stream
from d3jax.core.types import Batch, Model, Outputs
from d3jax.defenses import MCRConfig, NFTConfig, SEAMConfig, SFTConfig, ULRLConfig, make_seam
from d3jax.defenses.repair.masks import ones_for
from d3jax.defenses.repair.mcr import on_curve
from d3jax.defenses.repair.nft import least_masks, nft_loss
from d3jax.defenses.repair.seam import wrong_labels
from d3jax.defenses.repair.sft import triangles
from d3jax.defenses.repair.ulrl import redrawn, relearn_loss, suspect_rows
from d3jax.training import TrainData


def test_settings_are_the_published_ones():
    mcr = MCRConfig()
    assert (mcr.t, mcr.finetune.epochs, mcr.schedule.epochs) == (0.1, 100, 100)
    assert (mcr.finetune.batch_size, mcr.finetune.optimizer.lr) == (128, 0.01)
    nft = NFTConfig()
    assert (nft.eta, nft.first, nft.decay, nft.mix) == (0.001, 0.8, 0.5, 1.0)
    assert (nft.schedule.steps, nft.schedule.batch_size) == (1000, 128)
    assert (nft.schedule.optimizer.lr, nft.schedule.optimizer.momentum) == (0.05, 0.95)
    ulrl = ULRLConfig()
    assert (ulrl.least, ulrl.z, ulrl.rows, ulrl.weight) == (0.2, 3.5, 2, 0.7)
    assert (ulrl.relearn.epochs, ulrl.relearn.optimizer.lr) == (20, 0.005)
    sft = SFTConfig()
    assert (sft.epochs, sft.batch_size, sft.base, sft.peak, sft.last_peak) == (
        100, 128, 0.03, 2.5, 0.05,
    )  # fmt: skip
    seam = SEAMConfig()
    assert (seam.enough, seam.forget.optimizer.name, seam.forget.optimizer.lr) == (
        0.97, "adam", 1e-3,
    )  # fmt: skip


def test_the_curve_has_the_published_check_value():
    first, middle, last = ({"w": jnp.float32(x)} for x in (3.0, 5.0, 11.0))
    wanted = 0.81 * 3 + 0.18 * 5 + 0.01 * 11
    assert float(on_curve(0.1, first, middle, last)["w"]) == pytest.approx(wanted, rel=1e-6)
    straight = {"w": jnp.float32(7.0)}  # the start of the middle point: 0.9 θ₀ + 0.1 θ₁
    found = on_curve(0.1, first, straight, last)["w"]
    assert float(found) == pytest.approx(0.9 * 3 + 0.1 * 11, rel=1e-6)
    slope = jax.grad(lambda m: on_curve(0.1, first, {"w": m}, last)["w"])(jnp.float32(5.0))
    assert float(slope) == pytest.approx(0.18, rel=1e-6)


def test_the_triangles_of_sft():
    rate = triangles(SFTConfig(period=20), 100)
    found = [float(rate(jnp.int32(step))) for step in (0, 5, 10, 15, 20, 39, 40, 50, 60)]
    middle = 0.03 + (2.5 - 0.03) / 2
    wanted = [0.03, middle, 2.5, middle, 0.03, 0.03 + (2.5 - 0.03) * 0.1, 0.03, 0.05, 0.03]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_suspect_rows_are_those_that_changed_by_far_the_most():
    draws = np.random.default_rng(0)
    before = draws.normal(size=(8, 10))
    after = before + draws.uniform(0.9, 1.1, size=(8, 10))
    assert suspect_rows(before, after, 3.5, 2).tolist() == []
    after[:, [2, 7]] += 5
    after[:, 4] += 2
    assert suspect_rows(before, after, 3.5, 2).tolist() == [2, 7]
    assert suspect_rows(before, after, 3.5, 3).tolist() == [2, 4, 7]
    assert suspect_rows(before, before, 3.5, 2).tolist() == []


HEAD = jax.random.normal(jax.random.key(0), (6, 3))


def test_only_suspect_rows_are_redrawn():
    params = {"head": {"kernel": HEAD, "bias": jnp.ones(3)}}
    rows = jnp.array([False, True, False])
    head = redrawn(jax.random.key(1), params, rows)["head"]
    assert jnp.array_equal(head["kernel"][:, [0, 2]], HEAD[:, [0, 2]])
    assert jnp.abs(head["kernel"][:, 1]).max() <= (2 / 6) ** 0.5
    assert not jnp.array_equal(head["kernel"][:, 1], HEAD[:, 1])


def batch_of(size=5):
    images = np.random.default_rng(2).random((size, 6))
    return Batch(jnp.asarray(images, jnp.float32), jnp.arange(size) % 3, None)


def ce64(logits, labels):
    shifted = logits - logits.max(1, keepdims=True)
    return (np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(labels)), labels]).mean()


def test_ulrls_loss_is_that_of_float64():
    def apply(variables, images, *, train, edit=None):
        return Outputs(images @ variables.params["head"]["kernel"], {}, {})

    model = Model(lambda key: None, apply)
    kernel = np.random.default_rng(3).normal(size=(6, 3))
    rows = jnp.array([True, False, True])
    data = TrainData(None, None, {}, {"head": {"kernel": HEAD}}, {"rows": rows})
    batch = batch_of()
    params = {"head": {"kernel": jnp.asarray(kernel, jnp.float32)}}
    value, _ = relearn_loss(model, 0.7)(params, {}, batch, jax.random.key(0), data)
    old = np.asarray(HEAD, np.float64)
    cosines = (kernel * old).sum(0) / np.linalg.norm(kernel, axis=0) / np.linalg.norm(old, axis=0)
    images = np.asarray(batch.images, np.float64)
    wanted = ce64(images @ kernel, np.asarray(batch.labels)) + 0.7 * cosines[[0, 2]].sum()
    assert float(value) == pytest.approx(wanted, rel=1e-5)


def test_nfts_loss_is_that_of_float64():
    """One norm layer without statistics; share and order come from the same keys."""
    scale = jnp.arange(1.0, 7.0)

    def apply(variables, images, *, train, edit=None):
        norm = variables.params["norm"]
        return Outputs((images * norm["scale"] + norm["bias"]) @ HEAD, {}, {})

    model = Model(lambda key: None, apply)
    masks, key = {"norm": jnp.linspace(0.5, 1, 6)}, jax.random.key(4)
    reference = {"norm": {"scale": scale, "bias": jnp.ones(6)}}
    data = TrainData(None, None, {}, reference, {"eta": jnp.float32(0.01)})
    batch = batch_of()
    value, _ = nft_loss(model, 1.0)(masks, {}, batch, key, data)
    share = float(jax.random.beta(stream(key, "share"), 1.0, 1.0))
    order = np.asarray(jax.random.permutation(stream(key, "order"), 5))
    images, labels = np.asarray(batch.images, np.float64), np.asarray(batch.labels)
    mixed = share * images + (1 - share) * images[order]
    m = np.asarray(masks["norm"], np.float64)
    logits = (mixed * np.asarray(scale) * m + 1) @ np.asarray(HEAD, np.float64)
    wanted = share * ce64(logits, labels) + (1 - share) * ce64(logits, labels[order])
    assert float(value) == pytest.approx(wanted + 0.01 * (1 - m).sum(), rel=1e-5)


def test_the_least_masks_fall_from_layer_to_layer(fixture):
    masks = ones_for(fixture.model, fixture.variables.params)
    low = least_masks(fixture.model, masks, NFTConfig())
    assert float(low["BatchNorm_0"][0]) == pytest.approx(0.8)
    assert float(low["BatchNorm_1"][0]) == pytest.approx(0.8 * np.exp(-0.5))


def test_wrong_labels_are_never_the_true_ones():
    labels = np.arange(1000) % 4
    wrong = wrong_labels(jax.random.key(0), labels, 4)
    assert not (wrong == labels).any()
    assert np.bincount((wrong - labels) % 4)[1:].min() > 270


def test_seam_forgets_until_chance_and_recovers(fixture):
    adam = OptimConfig(name="adam", lr=0.01, weight_decay=0.0, schedule="constant")
    part = {"epochs": 60, "batch_size": 25, "augment": "none", "optimizer": adam}
    config = SEAMConfig(share=0.5, forget=ScheduleConfig(**part), recover=ScheduleConfig(**part))
    given = (jax.random.key(0), fixture.model, fixture.variables, fixture.reserved)
    found = make_seam(config, fixture.dataset.info).repair(*given)
    accuracies = found.trace["accuracy"]
    assert accuracies[0] < 0.9 and len(accuracies) < 60  # it begins low and ends early
    assert fixture.evaluate(fixture.model, found.variables).acc > 0.85
