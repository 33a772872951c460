"""Tests of the training-time defences' formulas against NumPy in float64.

The NumPy functions are written from the papers, without the code under test. Central differences
of the same functions check the gradients.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from d3jax.core.types import Batch, DataInfo, Model, Outputs, Variables
from d3jax.defenses.training_time import cbd, consistency, d_st, nab, pdb, removal, splitting
from d3jax.defenses.training_time.abl import bounded_loss
from d3jax.defenses.training_time.stamped import Stamp, put_on, stamped
from d3jax.metrics.sample_scores import symmetric_cross_entropy
from d3jax.training.simclr import nt_xent
from d3jax.training.step import TrainData, init_state, make_train_step

K = 5
INFO = DataInfo("tiny", (8, 8, 3), tuple("abcde"), (0.49, 0.48, 0.45), (0.2, 0.3, 0.4))


def slope(formula, x, width=1e-5):
    """Return the gradient of a NumPy function at `x` by central differences in float64."""
    grad = np.zeros(np.shape(x))
    for at in np.ndindex(grad.shape):
        move = np.zeros(grad.shape)
        move[at] = width
        grad[at] = (formula(x + move) - formula(x - move)) / (2 * width)
    return grad


def close(found, wanted, share=1e-5):
    """Require that arrays differ by at most `share` of the largest wanted entry."""
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(np.asarray(found, float), wanted, rtol=0, atol=share * scale)


def agree(function, formula, x):
    """Require that a JAX function and a NumPy one have the same value and gradient at `x`."""
    value, grad = jax.value_and_grad(function)(jnp.float32(x))
    close(value, formula(x))
    close(grad, slope(formula, x), 1e-4)


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def ce(logits, labels):
    return np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(labels)), labels]


def log_shares(vectors, temperature):
    """Return the log-softmax of each row's cosines with all other rows, divided by τ."""
    cosines = unit(vectors) @ unit(vectors).T / temperature
    np.fill_diagonal(cosines, -1e9)
    return cosines - np.log(np.exp(cosines).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
def test_nt_xent(rng, temperature):
    rows, other = np.arange(14), np.roll(np.arange(14), 7)
    agree(
        lambda x: nt_xent(x[:7], x[7:], temperature)[0],
        lambda x: -log_shares(x, temperature)[rows, other].mean(),
        rng.normal(size=(14, 4)),
    )


def test_matched_share_is_that_of_views_nearest_to_their_other_view(rng):
    views = np.tile(rng.normal(size=(16, 3)), (2, 1)) + rng.normal(size=(32, 3))
    share = (log_shares(views, 1.0).argmax(axis=1) == np.roll(np.arange(32), 16)).mean()
    assert 0 < share < 1
    close(nt_xent(jnp.float32(views[:16]), jnp.float32(views[16:]), 0.5)[1], share)


@pytest.mark.parametrize("scale", [0.5, 4.0])
def test_symmetric_cross_entropy_reads_ln_0_of_the_label_as_ln_1e_minus_4(rng, scale):
    logits, labels = scale * rng.normal(size=(6, K)), rng.integers(0, K, 6)

    def sce(logits):
        return 0.1 * ce(logits, labels) - np.log(1e-4) * (1 - np.exp(-ce(logits, labels)))

    close(symmetric_cross_entropy(jnp.float32(logits), labels), sce(logits))
    agree(lambda x: symmetric_cross_entropy(x, labels).sum(), lambda x: sce(x).sum(), logits)


def weights(biased, own):
    """Return CBD's weights ℓ_b / (ℓ_b + ℓ_c + 1e-8), scaled to mean 1 in the batch."""
    share = biased / (biased + own + 1e-8)
    return share / share.mean()


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-8])
def test_cbds_weights(rng, scale):
    biased, own = scale * rng.exponential(size=9), rng.exponential(size=9)
    for one, other in ((biased, own), (biased, scale * own)):
        close(cbd.sample_weights(jnp.float32(one), jnp.float32(other)), weights(one, other))


def apply(variables, images, *, train):
    """Apply a linear model whose running statistic is added to the logits in eval mode."""
    flat, shift = images.reshape(len(images), -1), variables.batch_stats["shift"]
    logits = flat @ variables.params["w"] + (0 if train else shift)
    return Outputs(logits, {"penultimate": flat}, {"shift": shift + train})


def variables_of(weight, shift):
    return Variables({"w": jnp.float32(weight)}, {"shift": jnp.float32(shift)[None]})


LINEAR = Model(lambda key: variables_of(np.zeros((12, K)), np.zeros(K)), apply)


def drawn(rng):
    """Return the weights of the linear model, images, and labels, in float64."""
    return rng.normal(size=(12, K)), rng.uniform(size=(8, 3, 2, 2)), rng.integers(0, K, 8)


def step_agrees(loss, batch, factors, weight, inputs=()):
    """Require that a step of plain SGD in train mode minimises the mean of `factors` · CE."""
    flat, labels = np.float64(batch.images).reshape(8, 12), batch.labels
    start, data = variables_of(weight, np.ones(K)), TrainData(None, None, None, None, inputs)
    key, tx = jax.random.key(0), optax.sgd(1.0)
    step = make_train_step(tx, loss=loss, batches=lambda key, step, data: batch)
    after = step(init_state(start, tx, key), data)[0].variables
    grad = slope(lambda w: (factors * ce(flat @ w, labels)).mean(), weight)
    value = loss(start.params, start.batch_stats, batch, key, data)[0]
    close(value, (factors * ce(flat @ weight, labels)).mean())
    close(np.float32(weight) - np.float64(after.params["w"]), grad, 1e-4)
    close(after.batch_stats["shift"], np.full((1, K), 2.0))


def test_a_step_of_cbd_weighs_by_constants_with_f_b_in_eval_mode(rng):
    (weight, images, labels), shift = drawn(rng), rng.normal(size=K)
    flat, biased = images.reshape(8, 12), rng.normal(size=(12, K))
    factors = weights(ce(flat @ biased + shift, labels), ce(flat @ weight, labels))
    batch = Batch(jnp.float32(images), jnp.int32(labels), jnp.zeros(8, bool))
    step_agrees(cbd.cbd_loss(LINEAR), batch, factors, weight, variables_of(biased, shift))


@pytest.mark.parametrize("away, sign", [(True, -1), (False, 1)])
def test_a_step_of_d_br_ascends_on_suspects_and_descends_on_trusted_images(rng, away, sign):
    weight, images, labels = drawn(rng)
    batch = removal.Turn(jnp.float32(images), jnp.int32(labels), jnp.asarray(away))
    step_agrees(removal.removal_loss(LINEAR), batch, sign, weight)


@pytest.mark.parametrize("present", [2, 4, 5])
def test_intra_class_loss_is_proportional_to_the_mean_cosine_of_two_centres(rng, present):
    # Only proportional: the function divides by M² for M classes, the spec by M (M − 1).
    labels = np.concatenate([np.arange(present), rng.integers(0, present, 9)])

    def intra(x):
        centres = unit(np.stack([x[labels == k].mean(axis=0) for k in range(present)]))
        return (centres @ centres.T)[~np.eye(present, dtype=bool)].mean()

    x = rng.normal(size=(len(labels), 4))
    value, grad = jax.value_and_grad(consistency.intra_class)(jnp.float32(x), labels, K)
    close(grad / value, slope(intra, x) / intra(x), 1e-4)


def test_separation_takes_the_lowest_and_highest_distances_and_breaks_ties(rng):
    config = consistency.SeparationConfig(clean=0.2, poisoned=0.05)
    order, ties = rng.permutation(200), [rng.permutation(200) for _ in range(2)]
    clean, poisoned = consistency.separated(np.float32(order.argsort()), ties[0], config)
    assert ({*clean}, {*poisoned}) == ({*order[:40]}, {*order[-10:]})
    draws = [consistency.separated(np.zeros(200, np.float32), one, config) for one in ties]
    for clean, poisoned in draws:
        assert (len({*clean}), len({*poisoned}), len({*clean, *poisoned})) == (40, 10, 50)
    assert {*draws[0][0]} != {*draws[1][0]}


def supcon(vectors, labels, kinds, temperature, suspects):
    """Return the semi-supervised SupCon loss, times τ / 0.07 as in SupCon's published code."""
    # Positives are the own other view and, within D_c, the class. "negatives" are no anchors.
    images, labels, kinds = (np.tile(x, 2) for x in (np.arange(len(labels)), labels, kinds))
    trusted = np.where(kinds == d_st.TRUSTED, labels, -1 - images)
    positive = (trusted[:, None] == trusted) & ~np.eye(len(kinds), dtype=bool)
    logs = np.where(positive, log_shares(vectors, temperature), 0).sum(axis=1)
    anchors = (kinds != d_st.SUSPECT) | (suspects == "views")
    return -temperature / 0.07 * (logs / positive.sum(axis=1))[anchors].mean()


@pytest.mark.parametrize("suspects", ["views", "negatives"])
@pytest.mark.parametrize("temperature", [0.1, 0.5])
@pytest.mark.parametrize("kinds", ["RRTTTTTSS", "TTTTTTTTT", "RRRRRRRRR", "RTTTTSSSS"])
def test_d_sts_contrastive_loss(rng, kinds, temperature, suspects):
    codes = {"R": d_st.REST, "T": d_st.TRUSTED, "S": d_st.SUSPECT}
    kinds = np.array([codes[one] for one in kinds], np.int8)
    given = np.array([0, 1, 0, 0, 1, 1, 2, 0, 0]), kinds, temperature, suspects
    views = rng.normal(size=(18, 4))
    agree(lambda x: d_st.contrastive(x, *given), lambda x: supcon(x, *given), views)


@pytest.mark.parametrize("value", [0.2, 0.49, 0.51, 3.0])
@pytest.mark.parametrize("gamma", [0.5, 0.3])
def test_bounded_losses(value, gamma):
    flooding, lga = lambda x: np.abs(x - gamma) + gamma, lambda x: np.sign(x - gamma) * x
    agree(lambda x: bounded_loss(x, "flooding", gamma), flooding, np.float64(value))
    agree(lambda x: bounded_loss(x, "lga", gamma), lga, np.float64(value))


@pytest.mark.parametrize("shift", [0, 1, 2])
def test_stamped_model_reads_the_logit_of_the_shifted_class(rng, shift):
    weight, images, _ = drawn(rng)
    patched = images.copy()
    patched[:, :1, :1] = [2.0, -1.0]
    model = stamped(LINEAR, Stamp(1, (2.0, -1.0), shift))
    found = model.apply(variables_of(weight, np.zeros(K)), jnp.float32(images), train=False).logits
    close(found, (patched.reshape(8, 12) @ weight)[:, (np.arange(K) + shift) % K])


@pytest.mark.parametrize(
    "method, config, side, colour, shift",
    [(pdb, pdb.PDBConfig(), 7, 2.0, 1), (nab, nab.NABConfig(), 2, INFO.mean, 0)],
)
def test_default_patches_of_pdb_and_nab(rng, method, config, side, colour, shift):
    images = rng.uniform(size=(2, 8, 8, 3))
    found = put_on(method.stamp_of(config, INFO), jnp.float32(images))
    images[:, :side, :side] = colour
    close(found, images)
    assert method.stamp_of(config, INFO).shift == shift


@pytest.mark.parametrize("size, reserved, steps", [(50_000, 5_000, 292), (2_000, 100, 9)])
def test_pdbs_epoch_has_reserved_images_five_times_and_no_short_batch(size, reserved, steps):
    assert pdb.plan_of(pdb.PDBConfig(), size, reserved) == (steps, 256)
    assert 292 * pdb.PDBConfig().train.epochs == 29_200


@pytest.mark.parametrize("count", [0, 3, 1000])
def test_asds_split_keeps_seeds_and_the_lowest_others_of_each_class(rng, count):
    labels, ranked = rng.integers(0, K, 60), rng.permutation(60)
    seeds = rng.permutation(60) < 8
    lowest = [[row for row in ranked if labels[row] == k and not seeds[row]] for k in range(K)]
    wanted = {*np.flatnonzero(seeds)}.union(*(rows[:count] for rows in lowest))
    found = splitting.lowest_of_each_class(ranked, labels, seeds, count)
    assert {*np.flatnonzero(found)} == wanted


@pytest.mark.parametrize("size, share", [(40, 0.5), (40, 0.25), (7, 0.5)])
def test_split_over_all_classes_keeps_the_share_of_the_lowest_scores(rng, size, share):
    ranked = rng.permutation(size)
    found = splitting.lowest_of_all(ranked, share)
    assert {*np.flatnonzero(found)} == {*ranked[: int(share * size)]}
