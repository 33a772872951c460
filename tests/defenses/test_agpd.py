"""Tests of AGPD: gradients, gaps, suspected classes and growing groups on hand-made numbers."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import cosine as cosine_distance

from d3jax import testing
from d3jax.core.errors import ConfigError
from d3jax.core.images import as_float
from d3jax.core.types import DataInfo, Split
from d3jax.defenses import AGPDConfig, agpd
from d3jax.defenses.sample_detection.agpd import Gradients, clean_means
from d3jax.defenses.sample_detection.gradient_groups import (
    cosine,
    grow,
    outliers,
    rates_of,
    spread_of,
    stop_of,
    suspected,
)

INFO = DataInfo("x", (32, 32, 3), tuple("abcd"), (0.5,) * 3, (0.5,) * 3)


def two_groups(rng, clean=60, poisoned=12):
    """Return gradients [n, 5] of two groups near the first and the second axis, clean first."""
    axes = np.repeat(np.eye(5)[:2], (clean, poisoned), axis=0)
    return axes + 0.1 * rng.normal(size=axes.shape)


def test_settings_are_those_of_backdoorbench():
    config = AGPDConfig()
    assert (config.clean, config.gap, config.layers) == (100, 0.3, ())


def test_gradients_are_those_of_the_logit_of_the_label_averaged_over_places(fixture):
    """The logits are linear in the output of the last convolution, so differences are exact."""
    model, variables = fixture.model, fixture.variables
    few, rows = Split(*(part[:5] for part in fixture.samples)), np.arange(5)
    found = Gradients(model, variables, ("conv0", "conv1"), 5)(few, rows)
    assert found["conv0"].shape == (5, 8) and found["conv1"].shape == (5, 16)
    images = as_float(jnp.asarray(few.images))

    def logits(channel, step):
        edit = {"conv1": lambda x: x.at[..., channel].add(step)}
        return np.asarray(model.apply(variables, images, train=False, edit=edit).logits)

    places = np.prod(model.activations()["conv1"].shape[:2])
    for channel in (0, 7):
        # Adding a step to all places changes the logit by the sum of the gradients.
        change = (logits(channel, 0.5) - logits(channel, -0.5))[rows, np.asarray(few.labels)]
        np.testing.assert_allclose(found["conv1"][:, channel], change / places, atol=1e-5)


def test_gradients_do_not_depend_on_the_batch_size(fixture):
    rows = np.array([3, 8, 11, 20, 31])
    whole, cut = (
        Gradients(fixture.model, fixture.variables, ("conv0",), size)(fixture.samples, rows)
        for size in (5, 3)
    )
    np.testing.assert_allclose(whole["conv0"], cut["conv0"], rtol=1e-4, atol=1e-6)


def test_clean_means_are_over_the_correctly_classified_images_of_a_class(fixture):
    labels = np.array(fixture.reserved.labels)
    wrong = np.flatnonzero(labels == 1)[:9]
    labels[wrong] = 2  # these are classified as 1, so they count for no class
    reserved = fixture.reserved._replace(labels=labels)
    gradients = Gradients(fixture.model, fixture.variables, ("conv0",), 50)
    key = jax.random.key(0)
    found = clean_means(key, fixture.model, fixture.variables, reserved, gradients, 1000)
    assert sorted(found) == [0, 1, 2, 3]
    right = np.setdiff1d(np.flatnonzero(labels == 2), wrong)
    wanted = gradients(reserved, right)["conv0"].mean(0)
    np.testing.assert_allclose(found[2]["conv0"], wanted, rtol=1e-5, atol=1e-7)
    one = clean_means(key, fixture.model, fixture.variables, reserved, gradients, 0)
    assert np.abs(one[2]["conv0"] - wanted).max() > 1e-6  # at least one image is drawn
    only = reserved._replace(labels=np.full_like(labels, 3))
    few = clean_means(key, fixture.model, fixture.variables, only, gradients, 5)
    assert sorted(few) == [3]


def test_cosines_rates_and_the_gap_equal_the_formulas(rng):
    gradients, clean = two_groups(rng), np.array([1.0, 0.1, 0, 0, 0])
    cosines = np.array([1 - cosine_distance(row, clean) for row in gradients])
    np.testing.assert_allclose(cosine(gradients, clean), cosines, atol=1e-12)
    assert cosine(np.zeros((1, 5)), clean).tolist() == [0]
    found = spread_of(gradients, clean)
    assert found.seed == int(np.argmin(cosines)) >= 60
    total = 0.0
    for i, row in enumerate(gradients):
        to_seed = 1 - cosine_distance(row, gradients[found.seed])
        total += (cosines[i] - to_seed) ** 2 if i != found.seed else 0
        rate = (1 - to_seed) / ((1 - to_seed) + (1 - cosines[i]))
        np.testing.assert_allclose(found.rates[i], rate, atol=1e-9)
    np.testing.assert_allclose(found.gap, np.sqrt(total / 72), atol=1e-12)


def test_equal_gradients_have_no_gap_and_a_rate_of_a_half():
    same, clean = np.ones((4, 3)), np.array([1.0, 1, 1])
    found = spread_of(same, clean)
    assert found.gap == pytest.approx(0, abs=1e-12)
    assert rates_of(np.array([[1.0, 0]]), np.array([2.0, 0]), np.array([3.0, 0])).tolist() == [0.5]


def test_the_outlier_index_is_one_sided():
    index = outliers(np.array([1.0, 1.1, 0.9, 1.05, 5.0]))
    # median 1.05, deviations .05, .05, .15, 0, 3.95, so MAD .05
    np.testing.assert_allclose(index, [0, 0.674, 0, 0, 53.285], rtol=2e-3, atol=1e-3)


def test_an_outlying_gap_tells_layer_and_classes():
    gaps = np.full((6, 5), 0.2) + 0.01 * np.arange(5)
    gaps[1, 3], gaps[2, 4] = 0.5, 0.9
    layer, classes = suspected(gaps, 0.3)
    assert (layer, classes.tolist()) == (2, [False] * 4 + [True])


def test_without_an_outlier_late_layers_tell_classes_with_a_large_gap():
    gaps = np.tile([0.1, 0.2, 0.35, 0.5], (6, 1))
    gaps[:] = [0.1, 0.15, 0.2, 0.25]
    gaps[0], gaps[3], gaps[5] = [0.6, 0.7, 0.8, 0.9], [0.2, 0.25, 0.31, 0.4], [0.5, 0.6, 0.7, 0.8]
    layer, classes = suspected(gaps, 0.3)
    assert (layer, classes.tolist()) == (3, [False, False, True, True])
    layer, classes = suspected(gaps * 0.5, 0.3)
    assert not classes.any()
    assert suspected(np.array([[0.1, 0.4, 0.5]]), 0.3)[1].tolist() == [False, True, True]


def test_the_window_with_the_lowest_mean_and_deviation_stops_the_growth():
    changes = [0.5, 0.1] * 6 + [0.2] * 10 + [0.9] * 5
    assert stop_of(changes) == 12
    scores = [
        np.mean(changes[i : i + 10]) + 5 * np.std(changes[i : i + 10])
        for i in range(len(changes) - 9)
    ]
    assert stop_of(changes) == int(np.argmin(scores))
    assert stop_of([0.3, 0.1]) == stop_of([]) == 0


def grown_by_hand(gradients, clean, seed, tau):
    """Return the groups that join round by round, and the changes of the rates' histograms."""
    group, groups, changes, before = [seed], [[seed]], [], None
    while len(group) < len(gradients):
        centre = gradients[group].mean(0)
        rest = [i for i in range(len(gradients)) if i not in group]
        rates = []
        for i in rest:
            far, near = cosine_distance(gradients[i], centre), cosine_distance(gradients[i], clean)
            rates.append(far / (far + near))
        rates = np.array(rates)
        low, high = rates.min(), rates.max()
        joins = (rates - low) <= tau * (high - low)
        kept = rates[~joins]
        first = rates if before is None else before
        p, q = (np.histogram(one, 99, (0, 1))[0] for one in (first, kept if len(kept) else first))
        p, q = p / p.sum(), q / q.sum()
        middle = (p + q) / 2
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = [np.nansum(one * np.log(one / middle)) for one in (p, q)]
        changes.append(np.sqrt(max(sum(terms) / 2, 0)) if len(kept) else 1.0)
        before, new = kept, [i for i, yes in zip(rest, joins, strict=True) if yes]
        groups.append(new)
        group = group + new
    return groups, changes


def test_the_group_grows_as_computed_by_hand(rng, monkeypatch):
    gradients, clean = two_groups(rng), np.array([1.0, 0, 0, 0, 0])
    seed = spread_of(gradients, clean).seed
    groups, changes = grown_by_hand(gradients, clean, seed, 0.05)
    seen = []
    path = "d3jax.defenses.sample_detection.gradient_groups.stop_of"
    for stop in (0, 1, 4, len(groups)):
        monkeypatch.setattr(path, lambda given, stop=stop: seen.append(given) or stop)
        wanted = sorted(itertools.chain(*groups[: max(1, stop)]))
        assert np.flatnonzero(grow(gradients, clean, seed, 0.05)).tolist() == wanted
    np.testing.assert_allclose(seen[0], changes, atol=1e-5)
    monkeypatch.undo()
    wanted = sorted(itertools.chain(*groups[: max(1, stop_of(changes))]))
    assert np.flatnonzero(grow(gradients, clean, seed, 0.05)).tolist() == wanted
    assert grow(gradients[:1], clean, 0, 0.05).tolist() == [True]


def test_poisoned_samples_of_the_fixture_are_found_in_their_class(fixture):
    detector = agpd().build(fixture.dataset.info)
    found = testing.check_sample_detector(detector, fixture, auroc=0.95)
    assert found.flagged[fixture.poisoned].mean() > 0.9
    assert found.flagged[~fixture.poisoned].mean() < 0.1
    assert (found.scores >= 0).all()


def test_classes_with_small_gaps_are_not_flagged(fixture):
    detector = agpd(gap=1.5).build(fixture.dataset.info)
    found = testing.check_sample_detector(detector, fixture, auroc=0.9)
    assert not found.flagged.any()


def test_models_and_images_that_do_not_suffice_are_refused(fixture):
    info = fixture.dataset.info
    check = agpd().build(info).check
    with pytest.raises(ConfigError, match="reserved: 3 clean images are fewer than the 4 classes"):
        check(fixture.model, fixture.variables, 100, 3)
    for layer in ("conv9", "penultimate"):
        check = agpd(layers=(layer,)).build(info).check
        with pytest.raises(ConfigError, match=f"layers: '{layer}' is no activation of more than"):
            check(fixture.model, fixture.variables, 100, 50)
    blind = fixture.model._replace(activations=None)
    with pytest.raises(ConfigError, match="needs activations of more than one place"):
        agpd().build(info).check(blind, fixture.variables, 100, 50)
