"""Tests of trigger inversion: outlier test, cost schedule, search, and resumption."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax.core.errors import ConfigError
from d3jax.core.types import Split, TrainState
from d3jax.defenses.model_detection.inversion import judge_norms
from d3jax.defenses.repair.target import Search, choose, find, gather
from d3jax.inversion import (
    Inversion,
    InversionConfig,
    Trigger,
    detect,
    inversion_loop,
    invert,
    like,
    nothing,
    stamp,
    success_of,
)
from d3jax.inversion.parameters import count_of, size_of, tidy, trigger_of
from d3jax.inversion.search import HIGHEST, adapt, start
from d3jax.training import Hooks

CHECK = [50, 52, 49, 51, 5, 48, 50, 53, 47, 50]
SHORT = InversionConfig(batches=4, passes=60, patience=2, stop=6)


def some(dataset, count=96):
    return Split(dataset.train.images[:count], dataset.train.labels[:count])


def test_outlier_test_gives_the_published_values():
    found = detect(CHECK, floor=0)
    assert (found.median, found.spread) == (50, pytest.approx(1.4826))
    assert found.anomaly == pytest.approx(30.35, abs=0.005) and np.flatnonzero(
        found.flagged
    ).tolist() == [4, 8]
    mean = detect(CHECK, median="mean", floor=0)  # NumPy's median of an even number
    assert mean.anomaly == pytest.approx(20.23, abs=0.005) and np.flatnonzero(
        mean.flagged
    ).tolist() == [4]
    # GTSRB has 43 labels, the median 64.47 and MAD · 1.4826 = 13.24. The target's norm of 16.12 has
    # the index 3.65.
    norms = np.concatenate(
        [[16.12, 64.47], 64.47 + 13.24 / 1.4826 * np.repeat([-1, 1], 20), [64.47]]
    )
    assert (
        detect(norms, floor=0).anomaly == pytest.approx(3.65, abs=0.005)
        and detect(norms, floor=0).flagged.sum() == 1
    )


def test_norms_that_hardly_differ_flag_nothing():
    for norms in ([7.0] * 5, [5, 5, 5, 4.99], [0.0] * 4, [7.0] * 5 + [9.0]):
        assert not detect(norms).flagged.any(), norms
    found = detect([7.0] * 5 + [3.0])  # the spread is at least a tenth of the median
    assert found.anomaly == pytest.approx(4 / 0.7)
    assert found.flagged.tolist() == [False] * 5 + [True]


def test_triggers_without_success_are_neither_flagged_nor_in_the_median():
    norms, success = [40.0, 42.0, 41.0, 39.0, 1.0], [1, 0.9, 0.8, 0.7, 0.0]
    assert detect(norms).flagged.tolist() == [False] * 4 + [True]
    found = detect(norms, success)
    assert not found.flagged.any() and found.median == 40.0 and np.isnan(found.index[4])
    for broken in (np.nan, np.inf):
        found = detect([40.0, 42.0, 41.0, 39.0, 2.0, broken])
        assert found.flagged.tolist() == [False] * 4 + [True, False]
    few = detect([40.0, 1.0, np.nan, np.nan])
    assert not few.flagged.any() and few.anomaly == 0


def test_inversion_presets_have_the_published_settings():
    nc, fixed, pixel = (InversionConfig(preset=preset) for preset in ("nc", "fixed", "pixel"))
    assert (nc.lr, nc.b1, nc.b2, nc.batches, nc.batch_size, nc.passes) == (
        0.1,
        0.5,
        0.9,
        31,
        32,
        1000,
    )
    assert (nc.threshold, nc.patience, nc.cost, nc.up, nc.down, nc.stop) == (
        0.99,
        5,
        1e-3,
        2.0,
        2**1.5,
        25,
    )
    assert (fixed.lr, fixed.cost, fixed.patience, fixed.stop) == (0.005, 0.01, 0, 30)
    assert (pixel.lr, pixel.threshold, pixel.patience, pixel.up, pixel.down) == (
        0.1,
        0.9,
        10,
        1.5,
        1.5**1.5,
    )


def plain_schedule(rates, sizes, config):
    """Run Neural Cleanse's cost schedule for one label, pass by pass.

    Returns the cost after each pass, the pass whose trigger is kept, and the number of passes.
    """
    cost, begun, above, below, up, down, least, kept, stale, costs = (
        0.0,
        0,
        0,
        0,
        False,
        False,
        float("inf"),
        None,
        0,
        [],
    )
    for number, (rate, size) in enumerate(zip(rates, sizes, strict=True), 1):
        if rate >= config.threshold and size < least:
            least, kept, stale = size, number, 0
        elif least < float("inf"):
            stale += 1
        over = up and down and stale >= config.stop
        if cost == 0 and rate >= config.threshold:
            begun += 1
            if begun >= config.patience:
                cost, begun, above, below, up, down = config.cost, 0, 0, 0, False, False
        else:
            begun = 0
        above, below = (above + 1, 0) if rate >= config.threshold else (0, below + 1)
        if above >= config.patience:
            above, up, cost = 0, True, cost * config.up
        elif below >= config.patience:
            below, down, cost = 0, True, cost / config.down
        if cost >= HIGHEST:  # a departure: it is unbounded in Neural Cleanse
            cost, down = HIGHEST, True
        costs.append(cost)
        if over:
            break
    return costs, kept, number


@pytest.mark.parametrize("seed", range(4))
def test_cost_schedule_matches_neural_cleanse_pass_by_pass(seed):
    config, rng, passes = InversionConfig(patience=2, stop=5), np.random.default_rng(seed), 80
    level = np.clip(np.cumsum(rng.normal(0, 0.02, (3, passes)), 1) + 0.99, 0, 1)
    sizes = rng.uniform(5, 50, (3, passes)).cumsum(1)[:, ::-1] / 50
    step = jax.jit(lambda progress, raw: adapt(progress, raw, raw, config)[1])
    progress = start(jax.random.key(0), jnp.arange(3), (2, 2, 1), config).carry
    costs, active = [], []
    for number in range(passes):
        raw = jax.tree.map(lambda leaf: jnp.full_like(leaf, number + 1), progress.raw)  # noqa: B023
        rates, size = (
            jnp.asarray(level[:, number], jnp.float32),
            jnp.asarray(sizes[:, number], jnp.float32),
        )
        progress = progress._replace(turned=rates, seen=jnp.ones(3), size=size)
        progress = step(progress, raw)
        costs.append(progress.cost)
        active.append(progress.active)
    ended = 0
    for label in range(3):
        expected, kept, count = plain_schedule(
            level[label].astype(np.float32), sizes[label].astype(np.float32), config
        )
        np.testing.assert_allclose([cost[label] for cost in costs[:count]], expected, rtol=1e-5)
        assert progress.passes[label] == count and bool(progress.active[label]) == (count == passes)
        assert progress.raw["mask"][label].ravel()[0] == (
            kept or progress.raw["mask"][label].ravel()[0]
        )
        ended += count < passes
    assert any(float(cost.max()) > config.cost for cost in costs)
    assert seed or ended  # with seed 0, some label stops early


def test_a_trigger_that_cannot_shrink_ends_at_the_highest_cost():
    config = InversionConfig()
    step = jax.jit(lambda progress, raw: adapt(progress, raw, raw, config)[1])
    progress = start(jax.random.key(0), jnp.arange(1), (2, 2, 1), config).carry
    while progress.active.any() and progress.passes < config.passes:
        progress = progress._replace(turned=jnp.ones(1), seen=jnp.ones(1), size=jnp.ones(1))
        progress = step(progress, progress.raw)
    assert progress.cost == HIGHEST
    rises = np.ceil(np.log2(HIGHEST / config.cost)) + 1
    assert config.patience * rises <= progress.passes < config.patience * (rises + 2)
    assert progress.least == 1


def test_triggers_and_penalised_sizes_match_the_published_formulas():
    nc = start(jax.random.key(1), jnp.array([0, 3]), (4, 5, 3), InversionConfig()).variables.params
    trigger = trigger_of(nc, "nc")
    mask = np.tanh(np.asarray(nc["mask"], np.float64)) / (2 - 1e-7) + 0.5
    np.testing.assert_allclose(trigger.mask, mask, rtol=1e-5)
    np.testing.assert_allclose(size_of(nc, "nc"), mask.sum((1, 2, 3)), rtol=1e-5)
    x = jax.random.uniform(jax.random.key(2), (6, 4, 5, 3))
    pattern = np.tanh(np.asarray(nc["pattern"][1], np.float64)) / (2 - 1e-7) + 0.5
    np.testing.assert_allclose(
        stamp(Trigger(trigger.mask[1], trigger.pattern[1]), x),
        (1 - mask[1]) * np.asarray(x) + mask[1] * pattern,
        atol=1e-6,
    )
    pixel = {
        "more": jnp.array([0.5, 0.003, 1.7, -2.0]).reshape(1, 2, 2, 1),
        "less": jnp.array([0.0, 0.0, 0.9, 0.004]).reshape(1, 2, 2, 1),
    }
    change = trigger_of(tidy(pixel, "pixel"), "pixel").pattern
    # 0.003 is less than 1/255.
    np.testing.assert_allclose(change.ravel(), [0.5, 0, 0.1, -0.004], rtol=1e-5)
    assert count_of(tidy(pixel, "pixel"))[0] == 3

    def count(p):
        return (np.tanh(p / 10) / (2 - 1e-7) + 0.5).max(-1).sum()

    expected = count(np.asarray(pixel["more"][0], np.float64)) + count(
        np.asarray(pixel["less"][0], np.float64)
    )
    assert size_of(pixel, "pixel")[0] == pytest.approx(expected, rel=1e-6)


def test_pixel_search_keeps_triggers_that_fall_in_size_and_count():
    config = InversionConfig(preset="pixel", stop=2, patience=2)
    raw = {
        "more": jnp.array([0.5, 0.003, 1.7, -2.0]).reshape(1, 2, 2, 1),
        "less": jnp.zeros((1, 2, 2, 1)),
    }
    other = jax.tree.map(lambda x: x + 0.3, raw)
    progress = start(jax.random.key(0), jnp.arange(1), (2, 2, 1), config).carry
    # The pixel preset penalises the size from the first pass.
    assert progress.cost[0] == pytest.approx(1e-3)

    def after(progress, size, before, rate=1.0):
        return adapt(
            progress._replace(turned=jnp.full(1, rate), seen=jnp.ones(1), size=jnp.full(1, size)),
            before,
            other,
            config,
        )

    now, progress = after(progress, 5.0, raw)
    np.testing.assert_allclose(now["more"].ravel(), [0.5, 0, 1, 0])
    jax.tree.map(np.testing.assert_array_equal, progress.raw, now)
    assert (progress.least[0], progress.count[0], progress.stale[0]) == (5, 2, 0)
    now, progress = after(progress, 4.0, raw)  # smaller in size only: not kept
    jax.tree.map(np.testing.assert_array_equal, now, other)
    assert (progress.least[0], progress.stale[0], progress.cost[0]) == (5, 1, pytest.approx(1.5e-3))
    for _ in range(2):
        # The success rate of 0.8 is below the threshold.
        _, progress = after(progress, 1.0, jax.tree.map(jnp.zeros_like, raw), rate=0.8)
    assert (
        progress.count[0] == 2
        and progress.cost[0] == pytest.approx(1.5e-3 / 1.5**1.5)
        and progress.active[0]
    )
    _, progress = after(progress, 1.0, raw, rate=0.8)
    # The cost went up and down, and three passes found no smaller trigger.
    assert not progress.active[0]


def test_pixel_search_leaves_out_images_of_the_searched_class(dataset, model, victim):
    loop = {
        preset: inversion_loop(
            jax.random.key(0),
            model,
            victim.variables,
            some(dataset),
            InversionConfig(preset=preset, batches=5),
            np.array([1, 2]),
        )
        for preset in ("pixel", "nc")
    }
    seen = {}
    for preset, (step, state, data, *_) in loop.items():
        seen[preset] = jax.jit(step)(state, data)[0].carry.seen
    assert (seen["nc"] == 32).all() and (seen["pixel"] < 32).all()
    labels = np.asarray(dataset.train.labels[:96])
    step, state, data, *_ = loop["pixel"]
    for _ in range(3):  # an epoch, which has every image once
        state, _ = jax.jit(step)(state, data)
    assert state.carry.seen.tolist() == [(labels != label).sum() for label in (1, 2)]


@pytest.fixture(scope="module")
def inversion(dataset, model, victim):
    return invert(jax.random.key(3), model, victim.variables, some(dataset), SHORT)[0]


def test_the_target_of_a_backdoor_has_the_smallest_trigger(
    dataset, model, victim, attack, inversion
):
    assert int(np.argmin(inversion.norms)) == 0 and float(inversion.success[0]) > 0.9
    assert inversion.trigger.mask.shape == (4, 12, 12, 1) and inversion.trigger.pattern.shape == (
        4,
        12,
        12,
        3,
    )
    np.testing.assert_allclose(inversion.norms, inversion.trigger.mask.sum((1, 2, 3)), rtol=1e-6)
    assert (np.asarray(inversion.passes) <= SHORT.passes).all() and (
        np.asarray(inversion.passes) > 0
    ).all()
    shapes = like(4, dataset.info.shape)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), inversion) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), shapes
    )
    others = np.asarray(dataset.test.labels) != 0
    images = Split(dataset.test.images[others], dataset.test.labels[others])
    first = Trigger(*(part[:1] for part in inversion.trigger))
    share = success_of(model, victim.variables, first, [0], images, batch_size=50)
    stamped = stamp(Trigger(*(part[0] for part in first)), jnp.asarray(images.images) / 255.0)
    assert share[0] == pytest.approx(
        float((model.apply(victim.variables, stamped, train=False).logits.argmax(-1) == 0).mean())
    )


def test_labels_searched_together_match_labels_searched_alone(dataset, model, victim, inversion):
    for label in (0, 2):
        alone, _ = invert(jax.random.key(3), model, victim.variables, some(dataset), SHORT, [label])
        assert alone.passes[0] == inversion.passes[label]
        np.testing.assert_allclose(alone.trigger.mask[0], inversion.trigger.mask[label], atol=1e-4)
        np.testing.assert_allclose(alone.norms[0], inversion.norms[label], rtol=1e-4)


@pytest.mark.parametrize("preset", ["fixed", "pixel"])
def test_fixed_and_pixel_presets_find_triggers(dataset, model, victim, preset):
    config = InversionConfig(
        preset=preset, passes=60, lr=0.1, patience=0 if preset == "fixed" else 3
    )
    found, lines = invert(jax.random.key(4), model, victim.variables, some(dataset), config, [0])
    assert float(found.success[0]) > 0.85 and np.isfinite([line["loss"] for line in lines]).all()
    assert (found.trigger.mask == 0).all() if preset == "pixel" else (found.trigger.mask <= 1).all()
    expected = (
        (found.trigger.pattern != 0).any(-1).sum()
        if preset == "pixel"
        else found.trigger.mask.sum()
    )
    assert float(found.norms[0]) == pytest.approx(float(expected), rel=1e-6)


class Kept:
    """Checkpoints kept in memory; save number `breaks` raises `KeyboardInterrupt`."""

    def __init__(self, breaks=10**9):
        self.states, self.saves, self.breaks = {}, 0, breaks

    def hooks(self, name=""):
        mine = self.states.setdefault(name, {})

        def save(state: TrainState, lines):
            mine[int(state.step)] = (jax.tree.map(jnp.copy, state), list(lines))
            self.saves += 1
            if self.saves == self.breaks:
                raise KeyboardInterrupt

        return Hooks(
            save=save,
            saved=lambda: sorted(mine),
            restore=lambda state, step: mine[step],
            log_every=4,
            save_every=12,
            save_last=True,
            part=lambda inside, every: self.hooks(f"{name}/{inside}"),
        )


@pytest.mark.parametrize("breaks", [1, 13, 17])
def test_an_interrupted_search_resumes_bit_exactly(dataset, model, victim, breaks):
    whole, lines = invert(
        jax.random.key(3), model, victim.variables, some(dataset), SHORT, hooks=Kept().hooks()
    )
    kept = Kept(breaks)
    with pytest.raises(KeyboardInterrupt):
        invert(jax.random.key(3), model, victim.variables, some(dataset), SHORT, hooks=kept.hooks())
    resumed, again = invert(
        jax.random.key(3), model, victim.variables, some(dataset), SHORT, hooks=kept.hooks()
    )
    # There are three loops, and each value of `breaks` interrupts another one.
    assert len([name for name, states in kept.states.items() if states]) == 3
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)
    assert [line["step"] for line in lines] == [line["step"] for line in again]


def test_invalid_settings_are_refused(dataset, model, victim):
    with pytest.raises(ConfigError, match="batch_size 32 is more than the 20 images"):
        invert(jax.random.key(0), model, victim.variables, some(dataset, 20))
    with pytest.raises(
        ConfigError, match=r"labels \[7\]: want classes of the model, which are 0 to 3"
    ):
        invert(jax.random.key(0), model, victim.variables, some(dataset), SHORT, [7])
    with pytest.raises(ConfigError, match=r"labels \[\]: want classes"):
        invert(jax.random.key(0), model, victim.variables, some(dataset), SHORT, [])
    with pytest.raises(ConfigError, match="preset: 'cleanse' is not one of nc, fixed, pixel"):
        InversionConfig(preset="cleanse")


def norms_of(norms):
    """Return an inversion with these norms, in which the mask of class k is k everywhere."""
    count = len(norms)
    trigger = Trigger(
        jnp.arange(count, dtype=jnp.float32)[:, None, None, None] * jnp.ones((1, 2, 2, 1)),
        jnp.zeros((count, 2, 2, 3)),
    )
    return Inversion(
        jnp.arange(count),
        trigger,
        jnp.asarray(norms, jnp.float32),
        jnp.linspace(0.5, 1, count),
        jnp.zeros(count, jnp.int32),
    )


def test_repair_targets_the_flagged_class_of_the_highest_score_or_none():
    config = InversionConfig()
    search = Search("detect", config, config)

    def detected(norms):
        found = norms_of(norms)
        return gather(search, judge_norms(found), found)

    one = detected(CHECK[:8] + [50, 50])
    assert (one.target, one.trigger.mask[0, 0, 0]) == (4, 4) and one.how.startswith(
        "flagged with score"
    )
    several = detected([50, 52, 48, 51, 5, 49, 50, 51, 20, 50])
    assert (several.target, several.how) == (
        4,
        "flagged with score 9.00, the highest of 2 flagged",
    )
    none = detected([50, 52, 48, 51, 49])
    assert (
        none.target == -1
        and not none.trigger.mask.any()
        and none.how == "none flagged, the statistic is 0.40"
    )
    tied = detected([9, 3, 10, 10, 10, 10, 10])
    assert tied.target == 1  # the spread is at least a tenth of the median
    two = gather(
        Search("detect", InversionConfig(preset="pixel"), config),
        judge_norms(norms_of(CHECK)),
        nothing((2, 2, 3))._replace(labels=jnp.array([4])),
    )
    assert two.target == 4 and not two.trigger.mask.any()  # the trigger of the second inversion
    given = gather(Search(2, config, config), None, norms_of([9.0])._replace(labels=jnp.array([2])))
    assert (given.target, given.how, given.verdict) == (2, "given", None)
    assert choose(judge_norms(norms_of([50, 52, 48, 51, 49])))[0] == -1


def test_a_given_target_is_inverted_without_detection(dataset, model, victim):
    found = find(jax.random.key(3), model, victim.variables, some(dataset), Search(0, SHORT, SHORT))
    assert (found.target, found.how) == (0, "given") and found.success > 0.9
