"""Tests of the detectors' scores against NumPy and SciPy in float64, on random numbers.

The functions at the top are written from the papers, without the code under test.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.linalg import block_diag, expm, solve
from scipy.stats import gamma, multivariate_normal
from sklearn.metrics.pairwise import rbf_kernel

from d3jax.core.types import DataInfo, Model, Outputs, Split, Variables
from d3jax.defenses import activation_clustering, beatrix, spectral, strip
from d3jax.defenses.input_detection.badexpert import cleanness
from d3jax.defenses.model_detection.mmbd import Margins, judge_margins, margins_of
from d3jax.defenses.sample_detection import scan, spectre
from d3jax.defenses.sample_detection.activation_clustering import clusters
from d3jax.defenses.sample_detection.beatrix import infected
from d3jax.defenses.sample_detection.common import deviation_index
from d3jax.defenses.sample_detection.gradient_groups import suspected
from d3jax.defenses.sample_detection.outlyingness import (
    adjusted_outlyingness,
    medcouple,
    upper_threshold,
    whiskers,
)
from d3jax.inversion.outliers import detect
from d3jax.metrics.detection import detection_rates

K = 3
INFO = DataInfo("small", (3, 3, 2), tuple("abc"), (0.4, 0.55), (0.2, 0.3))
KEY = jax.random.key(0)
SEEDS = pytest.mark.parametrize("seed", [0, 1, 2])


def close(found, wanted, share=1e-5):
    """Require that numbers differ by at most `share` of the largest wanted one."""
    wanted = np.asarray(wanted, float)
    scale = np.abs(wanted).max()
    assert scale > 0
    np.testing.assert_allclose(np.asarray(found, float), wanted, rtol=0, atol=share * scale)


def generator(seed):
    return np.random.default_rng(seed)


# A model of which NumPy can compute all: a 1×1 convolution, whose maps [3, 3, 4] have both signs,
# their 36 numbers as penultimate features, and a linear layer.
FILTERS = generator(10).normal(size=(2, 4))
HEAD = generator(11).normal(size=(36, K))
VARIABLES = Variables({"filters": jnp.float32(FILTERS), "head": jnp.float32(HEAD)}, {})


def apply(variables, images, *, train, edit=None):
    edit = edit or {}
    maps = (images - 0.5) @ variables.params["filters"]
    maps = edit.get("maps", lambda x: x)(maps)
    flat = edit.get("penultimate", lambda x: x)(maps.reshape(len(maps), -1))
    return Outputs(flat @ variables.params["head"], {"maps": maps, "penultimate": flat}, {})


def activations():
    shapes = {"maps": (3, 3, 4), "penultimate": (36,)}
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}


MODEL = Model(lambda key: VARIABLES, apply, activations)


def maps_of(images):
    return (images / 255 - 0.5) @ FILTERS


def logits_of(images):
    return maps_of(images).reshape(len(images), -1) @ HEAD


def drawn(rng, count):
    """Return uint8 images of the model and random labels."""
    images = rng.integers(0, 256, (count, 3, 3, 2)).astype(np.uint8)
    return Split(images, rng.integers(0, K, count).astype(np.int32))


def mad_index(values):
    """Return (value − median) / (1.4826 · MAD), with its sign."""
    middle = np.median(values)
    return (values - middle) / (1.4826 * np.median(np.abs(values - middle)))


# Spectral signatures


def signatures(features, projected):
    """Return squared projections on the top eigenvector of the covariance."""
    centred = features - features.mean(axis=0)
    top = np.linalg.eigh(centred.T @ centred)[1][:, -1]
    return ((centred if projected == "centred" else features) @ top) ** 2


@SEEDS
@pytest.mark.parametrize("projected", ["centred", "uncentred"])
def test_spectral_signatures_are_squared_projections_above_a_percentile(seed, projected):
    samples = drawn(generator(seed), 120)
    found = spectral(projected=projected).build(INFO).score(KEY, MODEL, VARIABLES, samples)
    for label in range(K):
        rows = np.flatnonzero(samples.labels == label)
        wanted = signatures(maps_of(samples.images[rows]).reshape(len(rows), -1), projected)
        close(found.scores[rows], wanted)
        np.testing.assert_array_equal(found.flagged[rows], wanted > np.percentile(wanted, 85))


# Activation clustering


def two_means(features, components):
    """Return the best division of whitened principal components in two, by trial of all.

    It is that of independent components, which are a rotation of these. Return also how near each
    row is to the smaller cluster.
    """
    left = np.linalg.svd(features - features.mean(axis=0), full_matrices=False)[0]
    white, size, best = left[:, :components], len(features), (np.inf, None, None)
    for bits in range(1, 2 ** (size - 1)):
        mask = (bits >> np.arange(size)) & 1 == 1
        centres = [white[one].mean(axis=0) for one in (mask, ~mask)]
        apart = [np.linalg.norm(white - centre, axis=1) for centre in centres]
        loss = (apart[0][mask] ** 2).sum() + (apart[1][~mask] ** 2).sum()
        if loss < best[0]:
            best = loss, mask, apart
    _, mask, (own, other) = best
    if mask.sum() > size / 2:
        mask, own, other = ~mask, other, own
    return mask, other / (own + other)


@SEEDS
@pytest.mark.parametrize("components", [2, 3])
def test_activation_clusters_are_the_two_means_of_whitened_features(seed, components):
    features = generator(seed).normal(size=(11, 6))
    features[:3] += 4 * generator(seed + 5).normal(size=6)
    mask, nearness = two_means(features, components)
    smaller, near = clusters(features, components, seed=1)
    np.testing.assert_array_equal(smaller, mask)
    close(near, nearness)


@pytest.mark.parametrize("counts", [(2, 3, 5), (4, 1, 3)])
def test_a_small_activation_cluster_is_flagged_and_scored_by_its_share(rng, counts):
    labels = np.repeat(np.arange(K), 11).astype(np.int32)
    images = rng.integers(110, 146, (33, 3, 3, 2))
    for label, count in enumerate(counts):
        images[11 * label : 11 * label + count] += rng.choice([-90, 90], (3, 3, 2))
    images = images.astype(np.uint8)
    detector = activation_clustering(components=2).build(INFO)
    found = detector.score(KEY, MODEL, VARIABLES, Split(images, labels))
    for label, count in enumerate(counts):
        rows = np.arange(11 * label, 11 * label + 11)
        mask, nearness = two_means(maps_of(images[rows]).reshape(11, -1), 2)
        assert mask.sum() == count
        np.testing.assert_array_equal(found.flagged[rows], mask & (count / 11 < 0.35))
        close(found.scores[rows], (1 - 2 * count / 11) * nearness)


# SCAn


def posterior(rows, identity, variation):
    """Return E[u | x_1 … x_n] for x_i = u + e_i, by conditioning the joint normal distribution."""
    size = len(rows)
    joint = np.tile(identity, (size, size)) + block_diag(*[variation] * size)
    return np.tile(identity, size) @ solve(joint, rows.ravel())


def expectation_maximisation(features, labels):
    """Return S_u and S_e at the fixed point of the EM, which begins with the classes' means."""
    identities = np.stack([features[labels == k].mean(axis=0) for k in range(labels.max() + 1)])
    for _ in range(60):
        identity = np.cov(identities[labels].T, bias=True)
        variation = np.cov((features - identities[labels]).T, bias=True)
        identities = np.stack(
            [posterior(features[labels == k], identity, variation) for k in range(len(identities))]
        )
    return identity, variation


def gain(rows, second, identity, variation):
    """Return the mean gain of log-likelihood of two groups' means over one posterior mean."""
    centres = np.where(second[:, None], rows[second].mean(axis=0), rows[~second].mean(axis=0))
    ln = multivariate_normal(np.zeros(rows.shape[1]), variation).logpdf
    return (ln(rows - centres) - ln(rows - posterior(rows, identity, variation))).mean()


def positive_definite(rng, size):
    return np.cov(rng.normal(size=(size, 4 * size)))


@SEEDS
@pytest.mark.parametrize("rows", [1, 6])
def test_scans_identity_is_the_posterior_mean(seed, rows):
    rng = generator(seed)
    pair, x = [positive_definite(rng, 3) for _ in range(2)], rng.normal(size=(rows, 3))
    found = scan.identity_of(rows, x.mean(axis=0), scan.Covariances(*pair))
    close(found, posterior(x, *pair))


@SEEDS
def test_scans_covariances_are_the_fixed_point_of_the_em(seed):
    rng = generator(seed)
    labels = rng.permutation(np.repeat(np.arange(4), (9, 12, 6, 10)))
    features = 4 * rng.normal(size=(4, 3))[labels] + rng.normal(size=(37, 3))
    features -= features.mean(axis=0)
    identity, variation = expectation_maximisation(features, labels)
    found = scan.estimate(features, labels)
    close(found.identity, identity)
    close(found.variation, variation)


@SEEDS
def test_scans_division_is_a_fixed_point_of_lda_with_its_gain_of_likelihood(seed):
    rng = generator(seed)
    pair, x = [positive_definite(rng, 2) for _ in range(2)], rng.normal(size=(15, 2))
    found = scan.divide(x, scan.Covariances(*pair), rng)
    first, second = x[~found.second].mean(axis=0), x[found.second].mean(axis=0)
    direction = np.linalg.solve(pair[1], second - first)
    np.testing.assert_array_equal(found.second, x @ direction > (first + second) / 2 @ direction)
    close(found.gain, gain(x, found.second, *pair))


@SEEDS
def test_scans_score_at_the_centre_of_the_suspicious_group_is_the_two_sided_index(seed):
    rng = generator(seed)
    centres, shifts = 6 * rng.normal(size=(5, 2)), rng.normal(size=(5, 2))
    shifts *= np.array([9, 11, 13, 16, 25])[:, None] / np.linalg.norm(shifts, axis=1)[:, None]
    known, labels = np.repeat(np.arange(5), 8), np.repeat(np.arange(5), 24)
    trusted = centres[known] + rng.normal(size=(40, 2))
    odd = np.arange(120) % 24 >= 15  # nine samples of every class are at one point
    features = centres[labels] + np.where(odd[:, None], shifts[labels], rng.normal(size=(120, 2)))
    features, trusted = features - trusted.mean(axis=0), trusted - trusted.mean(axis=0)
    pair, gains = expectation_maximisation(trusted, known), []
    for k in range(5):
        rows = np.concatenate([features[labels == k], trusted[known == k]])
        gains.append(gain(rows, np.append(odd[labels == k], np.zeros(8, bool)), *pair))
    index = np.abs(mad_index(np.array(gains) / max(gains)))
    limit = np.sort(index)[-3:-1].mean()
    found = scan.judge((features, labels), (trusted, known), limit, rng)
    close(found.scores[odd], index[labels[odd]])
    np.testing.assert_array_equal(found.flagged, odd & (index[labels] > limit))


# SPECTRE


def whitener(rows):
    """Return the map to mean 0 and covariance I of some rows, by Cholesky's factor."""
    mean, factor = rows.mean(axis=0), np.linalg.cholesky(np.atleast_2d(np.cov(rows.T, bias=True)))
    return lambda x: np.linalg.solve(factor, (x - mean).T).T


def quantum(white, alpha, exponential=expm):
    """Return xᵀMx for M ∝ exp(α (Σ − I) / (‖Σ‖ − 1)) of trace 1, and tr(Σ M)."""
    sigma, unit = white.T @ white / len(white), np.eye(white.shape[1])
    weights = exponential(alpha * (sigma - unit) / (np.linalg.norm(sigma, 2) - 1))
    weights /= np.trace(weights)
    return np.einsum("ni,ij,nj->n", white, weights, white), np.trace(sigma @ weights)


def kept_of(scores, dropped):
    return np.sort(np.argsort(scores)[: len(scores) - dropped])


def robustly_white(features, dropped):
    """Whiten features by those that are left without the `dropped` ones of the largest norm."""
    kept = np.arange(len(features))
    for _ in range(100):
        white = whitener(features[kept])(features)
        kept, before = kept_of((white**2).sum(axis=1), dropped), kept
        if np.array_equal(kept, before):
            break
    return white


def spectre_scores(features, poison, dimensions, alpha):
    """Return the scores of the best number of principal components, and that number."""
    centred = features - features.mean(axis=0)
    components = centred @ np.linalg.svd(centred)[2].T[:, : max(dimensions)]
    found = []
    for k in dimensions:
        scores, _ = quantum(robustly_white(components[:, :k], 2 * poison), alpha)
        kept = components[kept_of(scores, 3 * poison // 2)]
        found.append((quantum(whitener(kept)(components), alpha)[1], k, scores))
    found.sort(key=lambda one: one[0])
    assert found[-1][0] > 1.001 * found[-2][0]  # else rounding decides
    return found[-1][1:]


def test_spectres_scores_are_those_of_the_components_with_the_largest_mean():
    config, chosen = spectre.SPECTREConfig(dimensions=(1, 3, 6)), set()
    for seed, direction in itertools.product(range(3), (0, 2, 5)):
        features = generator(seed).normal(size=(150, 6))
        features[:20, direction] += 3
        features *= np.linspace(9, 1, 6)
        best, wanted = spectre_scores(features, 20, (1, 3, 6), 4.0)
        close(spectre.scores_of_class(features, 20, config), wanted)
        chosen.add(best)
    assert chosen == {1, 3, 6}


@SEEDS
@pytest.mark.parametrize("name, exponential", [("matrix", expm), ("elementwise", np.exp)])
def test_spectres_mean_entropy_is_the_trace_of_sigma_m(seed, name, exponential):
    features = generator(seed).normal(size=(40, 5)) * np.linspace(0.5, 2, 5)
    scores, mean = quantum(features, 4.0, exponential)
    found = spectre.quantum_entropy(features, 4.0, name)
    close(found.scores, scores)
    close(found.mean, mean)


# Beatrix


def gram_features(images, powers):
    """Return sign · |Fᵖ Fᵖᵀ|^{1/p} above the diagonal for p = 1 … 8, from the model's maps F."""
    features = maps_of(images).reshape(len(images), 9, 4).transpose(0, 2, 1)
    above, found = np.triu_indices(4, 1), []
    for p in range(1, 9):
        raised = features**p if powers == "activation" else features
        products = (raised @ raised.transpose(0, 2, 1))[:, *above]
        found.append(np.sign(products) * np.abs(products) ** (1 / p))
    return np.stack(found, axis=1)


def gram_bounds(clean, spread):
    """Return median ± spread · MAD of the Gram features of clean images."""
    middle = np.median(clean, axis=0)
    apart = spread * np.median(np.abs(clean - middle), axis=0)
    return middle - apart, middle + apart


def gram_deviations(grams, low, high):
    """Return the excess as a share of |bound|, over half of the entries and eight powers."""
    excess = np.maximum(low - grams, 0) / np.abs(low) + np.maximum(grams - high, 0) / np.abs(high)
    return excess.sum(axis=(1, 2)) / (4 * 4 / 2) / 8


def five_of_each_class(rng, powers, spread):
    """Draw clean images until no bound is near 0, where float32 has no five digits of a share."""
    images = drawn(rng, 300).images
    classes, found = logits_of(images).argmax(axis=1), []
    while len(found) < K:
        five = images[rng.choice(np.flatnonzero(classes == len(found)), 5, replace=False)]
        if np.abs(gram_bounds(gram_features(five, powers), spread)).min() > 0.02:
            found.append(five)
    return np.concatenate(found)[rng.permutation(5 * K)]


@SEEDS
@pytest.mark.parametrize("powers", ["activation", "none"])
@pytest.mark.parametrize("spread", [0.5, 1.0])
def test_beatrix_scores_are_deviations_from_the_predicted_class(seed, powers, spread):
    """With five clean images of a class, each of the five folds holds out one of them."""
    rng = generator(seed)
    clean, images = five_of_each_class(rng, powers, spread), drawn(rng, 40).images
    images[:8] = np.where(images[:8] > 127, 255, 0)  # with larger Gram features
    grams, own = gram_features(clean, powers), gram_features(images, powers)
    classes, predicted = (logits_of(one).argmax(axis=1) for one in (clean, images))
    held, wanted = [], np.zeros(40)
    for row in range(5 * K):
        others = (classes == classes[row]) & (np.arange(5 * K) != row)
        held.append(gram_deviations(grams[[row]], *gram_bounds(grams[others], spread))[0])
    for k in range(K):
        bounds = gram_bounds(grams[classes == k], spread)
        wanted[predicted == k] = gram_deviations(own[predicted == k], *bounds)
    samples = Split(images, rng.integers(0, K, 40).astype(np.int32))
    reserved = Split(clean, rng.integers(0, K, 5 * K).astype(np.int32))  # labels do not count
    detector = beatrix(layer="maps", powers=powers, spread=spread).build(INFO)
    found = detector.score(KEY, MODEL, VARIABLES, samples, reserved)
    close(found.scores, wanted)
    np.testing.assert_array_equal(found.flagged, wanted > np.percentile(held, 95))


def kernel_mean_distance(first, second):
    """Return the squared mean discrepancy by two Gaussian kernels of median bandwidth."""
    both = np.concatenate([first, second])
    square = ((both[:, None] - both) ** 2).sum(axis=-1)
    width = np.median(square[np.triu_indices(len(both), 1)])
    signs = np.repeat([1 / len(first), -1 / len(second)], (len(first), len(second)))
    return sum(signs @ rbf_kernel(both, gamma=1 / b) @ signs for b in (width, 2 * width))


@SEEDS
def test_beatrix_infected_classes_are_those_above_the_mad_index(seed):
    rng = generator(seed)
    features, classes = rng.normal(size=(200, 3)), rng.permutation(np.arange(200) % 5)
    suspicious = rng.random(200) < 0.4
    features[suspicious] += rng.uniform(0, 2, (5, 1))[classes[suspicious]]
    distances = []
    for k in range(5):
        pair = [features[(classes == k) & one] for one in (suspicious, ~suspicious)]
        distances.append(kernel_mean_distance(*pair))
    index = mad_index(np.array(distances))
    for k in np.flatnonzero(index > 0):
        for limit in (index[k] * (1 - 1e-5), index[k] * (1 + 1e-5)):
            found = infected(features, classes, suspicious, limit, rng)
            np.testing.assert_array_equal(found, np.flatnonzero(index > limit))


# AGPD


@SEEDS
def test_agpd_suspects_classes_by_a_one_sided_index_in_the_layer_of_the_largest(seed):
    gaps = generator(seed).uniform(0.5, 0.55, (5, 9))
    gaps[3, [1, 6]] += [0.2, 0.3]
    gaps[4, 2] = 0.01  # further from the median, but below
    index = np.stack([np.maximum(mad_index(one), 0) for one in gaps])
    layer, classes = suspected(gaps, 0.3)
    assert layer == index.max(axis=1).argmax() and index.max() > np.exp(2)
    np.testing.assert_array_equal(classes, index[layer] > np.exp(2))


# ASSET


OUTLYINGNESS = jax.jit(lambda x: (medcouple(x), jnp.stack(whiskers(x)), adjusted_outlyingness(x)))


def medcouple_of(values):
    """Return the median of ((b − m) − (m − a)) / (b − a) over a ≤ m ≤ b, for different numbers."""
    m = np.median(values)
    low, high = values[values <= m], values[values >= m]
    pairs = [((b - m) - (m - a)) / (b - a) if b > a else 0 for a in low for b in high]
    return np.median(pairs)


def whiskers_of(values):
    mc, (q1, q3) = medcouple_of(values), np.percentile(values, [25, 75])
    down, up = (-4, 3) if mc > 0 else (-3, 4)
    step = 1.5 * (q3 - q1)
    return q1 - step * np.exp(down * mc), q3 + step * np.exp(up * mc)


def outlyingness_of(values):
    (low, high), m = whiskers_of(values), np.sort(values)[(len(values) - 1) // 2]
    return np.where(values > m, (values - m) / (high - m), (m - values) / (m - low))


@SEEDS
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("count", [25, 40])
def test_assets_outlyingness_is_one_at_skewed_whiskers(seed, sign, count):
    values = sign * generator(seed).exponential(size=count)
    assert medcouple_of(values) * sign > 0.02
    found = OUTLYINGNESS(jnp.float32(values))
    wanted = medcouple_of(values), whiskers_of(values), outlyingness_of(values)
    for one, other in zip(found, wanted, strict=True):
        close(one, other)


@SEEDS
@pytest.mark.parametrize("scale", [0.1, 3.0])
def test_assets_thresholds_are_those_of_the_lower_half(seed, scale):
    losses = scale * generator(seed).exponential(size=31)
    half = losses[losses <= np.median(losses)]
    sigma = np.sqrt(half.var() + 1e-6)
    peak, level = sigma * np.sqrt(2 * np.pi), np.log(1e-6)
    given = losses.astype(np.float32)
    close(upper_threshold(given), half.mean() + sigma * np.sqrt(-2 * level * peak))
    far = half.mean() + sigma * np.sqrt(-2 * np.log(1e-6 * peak))
    close(upper_threshold(given, "density"), far)


# Triggered inputs


@SEEDS
@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_strips_score_is_minus_the_mean_entropy(seed, alpha):
    rng = generator(seed)
    reserved, images = drawn(rng, 30), drawn(rng, 12).images
    detector = strip(alpha=alpha, overlays=7, fpr=0.2).build(INFO)
    state = detector.prepare(KEY, MODEL, VARIABLES, reserved)
    overlays = np.asarray(state["overlays"])
    assert overlays.shape == (7, 3, 3, 2)

    def entropies(images):
        mean, std = np.array(INFO.mean), np.array(INFO.std)
        x, added = ((one / 255 - mean) / std for one in (images, overlays))
        mixed = (x[:, None] + alpha * added) * std + mean
        odds = np.exp(logits_of(255 * mixed.reshape(-1, 3, 3, 2))).reshape(len(x), 7, K)
        odds /= odds.sum(axis=-1, keepdims=True)
        return -(odds * np.log(odds + 1e-8)).sum(axis=-1).mean(axis=1)

    close(detector.score(MODEL, VARIABLES, state, images), -entropies(images))
    close(detector.threshold(state), -np.quantile(entropies(reserved.images), 0.2))


@SEEDS
def test_badexperts_cleanness_is_the_smaller_of_two_quotients(seed):
    x, y = generator(seed).uniform(0.02, 0.98, (2, 300))
    first, second = 2 * y / x, (1 - x) / np.maximum(0.5 - y, 1e-8)
    assert 10 < (first > second).sum() < 290
    wanted = np.minimum(first, second)
    found = cleanness(jnp.float32(x), jnp.float32(y))
    near = np.abs(0.5 - y) > 0.01  # elsewhere float32 loses digits of ½ − y
    np.testing.assert_allclose(found[near], wanted[near], rtol=1e-5)


# Models


@SEEDS
def test_mmbds_margin_is_the_logit_less_the_largest_of_another_class(seed):
    logits, wanted = generator(seed).normal(size=(30, 6)), np.arange(30) % 6
    largest = [np.delete(row, k).max() for row, k in zip(logits, wanted, strict=True)]
    found = margins_of(jnp.float32(logits), jnp.int32(wanted))
    close(found, logits[np.arange(30), wanted] - largest)


@SEEDS
@pytest.mark.parametrize("largest", [1.0, 1.5])
def test_mmbds_p_value_is_that_of_the_largest_of_k_gamma_margins(seed, largest):
    margins = generator(seed).gamma(9, 0.4, 10)
    margins[4] = largest * margins.max()
    fitted = gamma(*gamma.fit(np.delete(margins, margins.argmax())))
    below = quad(fitted.pdf, fitted.support()[0], margins.max(), epsabs=1e-12)[0]
    verdict = judge_margins(Margins(margins, np.zeros(10)), 0.05)
    close(verdict.facts["p_value"], 1 - below**10)
    close(verdict.statistic, below**10)
    close(verdict.scores, margins)


@SEEDS
@pytest.mark.parametrize("count", [10, 43])
def test_anomaly_indices_are_deviations_by_the_mad(seed, count):
    norms = generator(seed).gamma(5, 10, count)
    index = np.abs(mad_index(norms))
    found = detect(norms, median="mean", floor=0)
    close(found.index, index)
    close(found.anomaly, index[norms.argmin()])
    np.testing.assert_array_equal(found.flagged, (index > 2) & (norms < np.median(norms)))
    close(deviation_index(norms), index)


# Rates


@SEEDS
@pytest.mark.parametrize("decimals", [1, 9])
def test_rates_are_shares_of_pairs_and_of_rows_above_a_score_also_with_ties(seed, decimals):
    rng = generator(seed)
    positive = rng.random(500) < 0.3
    scores = np.round(rng.normal(size=500) + 1.5 * positive, decimals)
    flagged = scores > 1
    found = detection_rates(scores, flagged, positive)
    bad, good = scores[positive], scores[~positive]
    close(found["auroc"], ((bad[:, None] > good) + 0.5 * (bad[:, None] == good)).mean())
    for name, most in (("tpr_1", 0.01), ("tpr_5", 0.05)):
        close(found[name], max((bad >= t).mean() for t in scores if (good >= t).mean() <= most))
    close([found["recall"], found["fpr"]], [(bad > 1).mean(), (good > 1).mean()])
    close(found["precision"], positive[flagged].mean())
