"""Tests of ABL and DLP: check values, presets, selected rows and the removal of a backdoor."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from d3jax.attacks import BadNetsConfig, make_badnets
from d3jax.config.recipes import OptimConfig, TrainConfig
from d3jax.core.errors import ConfigError
from d3jax.data import SyntheticConfig, make_synthetic
from d3jax.defenses import ABLConfig, DLPConfig, make_abl, make_dlp
from d3jax.defenses.training_time.abl import bounded_loss
from d3jax.defenses.training_time.dlp import unlearn
from d3jax.defenses.training_time.dlp_rows import first_of, guessed_rows, labelled_rows
from d3jax.defenses.training_time.suspicion import (
    Judged,
    UnlearnConfig,
    appended,
    found_of,
    judge,
    suspect,
    unlearning_loop,
)
from d3jax.metrics.attack_success import make_evaluate, predict
from d3jax.metrics.sample_scores import ranking, scores_of
from d3jax.training import Hooks, fit
from d3jax.training.optim import make_schedule
from d3jax.training.poisoned_set import poisoned_split
from d3jax.training.semi_supervised import SemiConfig

from ..helpers import studies
from ..helpers.small import small_model

KEY = jax.random.key(21)


RECIPE = TrainConfig(
    steps=20, batch_size=32, augment="none", optimizer=OptimConfig(lr=0.05, schedule="constant")
)


def test_abl_bounded_loss_matches_its_check_values():
    for kind in ("flooding", "lga"):
        assert float(bounded_loss(jnp.float32(0.6047), kind, 0.5)) == pytest.approx(
            0.6047, abs=1e-6
        )
    assert float(bounded_loss(jnp.float32(0.3), "flooding", 0.5)) == pytest.approx(0.7)
    assert float(bounded_loss(jnp.float32(0.3), "lga", 0.5)) == pytest.approx(-0.3)
    slope = jax.grad(lambda x: bounded_loss(x, "flooding", 0.5))
    assert slope(0.6) == 1 and slope(0.4) == -1


def test_abl_and_dlp_presets_have_the_published_settings():
    authors, bench = ABLConfig(), ABLConfig(preset="backdoorbench")
    assert (authors.isolate.epochs, authors.isolate.optimizer.lr, authors.ratio, authors.gamma) == (
        10,
        0.1,
        0.01,
        0.5,
    )
    assert (bench.isolate.epochs, bench.isolate.batch_size, bench.unlearn.steps) == (20, 256, 40)
    assert (
        authors.finetune.optimizer.lr,
        authors.unlearn.optimizer.lr,
        authors.finetune.augment,
    ) == (0.1, 5e-4, "cutout")
    assert (bench.finetune.optimizer.lr, bench.unlearn.optimizer.lr, bench.finetune.augment) == (
        0.01,
        1e-4,
        "auto",
    )
    assert authors.unlearn == UnlearnConfig(bounded=False)
    rate = make_schedule(authors.finetune.optimizer.schedule, steps=60 * 390, steps_per_epoch=390)
    assert [round(float(rate(epoch * 390)), 3) for epoch in (0, 39, 40, 59)] == [1, 1, 0.1, 0.1]
    dlps = DLPConfig()
    assert (dlps.score, dlps.rescore, dlps.ratio, dlps.trials) == ("entropy", "symmetric", 0.01, 2)
    assert (dlps.kept, dlps.least, dlps.dropped, dlps.supervised.epochs) == (0.5, 0.4, 0.2, 20)
    assert dlps.supervised.optimizer == OptimConfig(
        lr=0.01, nesterov=True, weight_decay=1e-4, schedule="constant"
    )
    assert (dlps.unlearn.kind, dlps.unlearn.descent, dlps.unlearn.steps) == (
        "uniform",
        "together",
        100,
    )
    assert (dlps.unlearn.optimizer.lr, dlps.unlearn.bounded, dlps.unlearn.batch_norm) == (
        5e-3,
        True,
        "train",
    )
    assert (dlps.semi.method, dlps.semi.statistics, dlps.semi.epochs, dlps.semi.weight) == (
        "mixmatch",
        "plain",
        20,
        1.0,
    )
    assert DLPConfig(stages="12", kept=0.3).kept == 0.3  # refused only if stage 3 runs


def test_unlearning_schedule_counts_steps_and_not_epochs(model, poisoned):
    _, split, _ = poisoned
    judged = judge(model, model.init(KEY), split, "entropy", 0.1)
    optimizer = OptimConfig(lr=1e-3, momentum=0.0, weight_decay=0.0, schedule="drop")
    config = UnlearnConfig(optimizer=optimizer, steps=9, batch_size=20, bounded=False)
    loop = unlearning_loop(KEY, model, model.init(KEY), split, judged, config)
    step, state = jax.jit(loop.step), loop.state
    # The factor is relative to the same step by an optimiser in its initial state.
    for factor in (1, 1, 1, 1, 1, 1, 0.1, 0.1, 0.1):
        after, _ = step(state, loop.data)
        fresh, _ = step(dataclasses.replace(state, opt_state=loop.state.opt_state), loop.data)
        moved = [
            jax.tree.map(jnp.subtract, one.variables.params, state.variables.params)
            for one in (after, fresh)
        ]
        assert float(optax.tree.norm(moved[0]) / optax.tree.norm(moved[1])) == pytest.approx(
            factor, rel=1e-2
        )
        state = after


def test_settings_missing_from_a_file_are_the_presets():
    text = (
        "defenses: [{name: abl, preset: backdoorbench, isolate: {epochs: 3}, "
        "unlearn: {optimizer: {lr: 0.1}}}, "
    )
    text += "{name: dlp, stages: 12, semi: {method: fixmatch, optimizer: {lr: 0.5}}}]"
    found, other = (choice.config for choice in studies.read(text).defenses)
    preset = ABLConfig(preset="backdoorbench")
    assert (
        found.isolate == dataclasses.replace(preset.isolate, epochs=3)
        and found.finetune == preset.finetune
    )
    assert found.unlearn.steps == 40 and found.unlearn.optimizer == dataclasses.replace(
        preset.unlearn.optimizer, lr=0.1
    )
    assert other.stages == "12" and other.semi.optimizer == OptimConfig(
        lr=0.5, nesterov=True, schedule="cosine"
    )


@pytest.mark.parametrize("trusted", ["class", "all"])
def test_trusted_rows_are_the_least_suspected_half(trusted, model, poisoned):
    _, split, _ = poisoned
    judged = judge(model, model.init(KEY), split, "entropy", 0.1, trusted)
    assert (
        len(judged.suspects) == 40
        and len(judged.trusted) == 200
        and not set(judged.suspects) & set(judged.trusted)
    )
    entropy, mine = judged.scores["entropy"], np.isin(np.arange(400), judged.trusted)
    assert entropy[judged.suspects].max() <= np.sort(entropy)[40]
    groups = (
        [split.labels == label for label in range(4)]
        if trusted == "class"
        else [np.ones(400, bool)]
    )
    for group in groups:
        assert entropy[group & mine].min() >= entropy[group & ~mine].max()
    assert np.ptp(np.bincount(split.labels[mine])) <= 1 or trusted == "all"


def test_small_classes_are_trusted_except_suspects(model, poisoned, monkeypatch):
    # The smaller class has the lower scores.
    labels, scores = np.array([0] * 12 + [1] * 4), np.arange(16.0)[::-1]
    split = poisoned[1]._replace(images=poisoned[1].images[:16], labels=labels)
    monkeypatch.setattr(
        sys.modules["d3jax.defenses.training_time.suspicion"],
        "scores_of",
        lambda *given: dict.fromkeys(("entropy", "cross_entropy"), scores),
    )
    assert judge(model, None, split, "entropy", 0.1).trusted.tolist() == [0, 1, 2, 3, 4, 12, 13, 14]


def test_mixture_suspects_rows_of_low_posterior_up_to_the_ratio(model, poisoned, monkeypatch):
    _, split, _ = poisoned
    posterior = np.where(np.arange(400) < 7, 0.1, 0.9).astype(np.float32)
    scores = dict.fromkeys(("entropy", "cross_entropy"), np.arange(400.0)) | {"mixture": posterior}
    monkeypatch.setattr(
        sys.modules["d3jax.defenses.training_time.suspicion"], "scores_of", lambda *given: scores
    )
    assert judge(model, model.init(KEY), split, "mixture", 0.1).suspects.tolist() == list(range(7))
    assert judge(model, model.init(KEY), split, "mixture", 0.01).suspects.tolist() == [
        0,
        1,
        2,
        3,
    ]  # 1 % of 400 rows


def test_records_of_a_second_loop_continue_the_steps_of_the_first():
    lines = appended(
        [{"step": 5, "seconds": 2.0, "loss": 1.0}], [{"step": 3, "seconds": 0.5, "loss": 0.5}]
    )
    assert lines[1] == {"step": 8, "seconds": 2.5, "loss": 0.5} and appended([], lines) == lines


def test_labelled_rows_exclude_suspects():
    labels = np.array([0] * 6 + [1] * 3 + [2])
    scores, ties = np.arange(10.0), np.zeros(10)
    suspects = np.array([0, 9])
    assert labelled_rows(scores, ties, labels, suspects, 4, 0.0).tolist() == [1, 2, 3, 4]
    # One of each class, except of class 2, whose images are all suspects.
    one_of_each = labelled_rows(scores, ties, labels, suspects, 4, 0.01)
    assert one_of_each.tolist() == [1, 2, 3, 6]
    assert labelled_rows(scores, ties, labels, suspects, 5, 0.5).tolist() == [1, 2, 3, 4, 6]
    # Two rows are fewer than the classes' shares, so each class has its best row.
    assert labelled_rows(scores, ties, labels, suspects, 2, 0.5).tolist() == [1, 6]
    assert labelled_rows(scores, ties, labels, suspects, 99, 0.1).tolist() == [
        1,
        2,
        3,
        4,
        5,
        6,
        7,
        8,
    ]
    assert labelled_rows(np.zeros(10), -scores, labels, suspects, 4, 0.0).tolist() == [5, 6, 7, 8]
    # Class 0 is larger than the mean class (10 / 3 images), so its share is that of the mean class.
    later = np.where(np.arange(10) == 3, 20, scores)
    assert labelled_rows(later, ties, labels, suspects, 7, 0.9).tolist() == [1, 2, 4, 5, 6, 7, 8]
    found = found_of(10, {"entropy": scores.astype(np.float32)}, suspects=suspects)
    assert found["suspects"].sum() == 2 and found["entropy"][3] == 3 and not found["labelled"].any()


def test_guessed_rows_drop_suspects_and_the_highest_scores():
    scores, ties = np.array([0.0, 5, 1, 4, 4, 2, 3, 9]), np.array([0.0, 0, 0, 2, 1, 0, 0, 0])
    labelled, suspects = np.array([0, 2]), np.array([5])

    def rows(dropped):
        return guessed_rows(scores, ties, labelled, suspects, dropped).tolist()

    assert rows(0) == [1, 3, 4, 5, 6, 7]
    assert rows(1) == [1, 3, 4, 6, 7]  # suspects are dropped first, whatever their scores
    assert rows(4) == [4, 6]  # then 7, 1, and of two equal scores that with the higher tie
    assert rows(6) == rows(7) == []


@pytest.fixture(scope="module")
def dataset():
    """Return a noisier data set than the shared one.

    Scores cannot separate poisoned images from clean ones that are learned as fast as the trigger.
    """
    return make_synthetic(
        SyntheticConfig(size=12, channels=3, classes=4, train=400, test=130, noise=0.3)
    )


@pytest.fixture(scope="module")
def model(dataset):
    return small_model(dataset.info)


@pytest.fixture(scope="module")
def poisoned(dataset):
    """Return the attack, a training set with 15 % poisoned images, and its poison flags [N]."""
    attack = make_badnets(BadNetsConfig(rate=0.15), dataset.info)
    return attack, *poisoned_split(KEY, attack, dataset.train)


def defend(defense, model, split, **options):
    """Return the result of a training-time defence, with its first stage run before."""
    begun = fit(defense.begin(KEY, model, split))[0].variables
    return defense.train(KEY, model, split, begun, **options)


def judged(model, attack, variables, dataset):
    trigger = attack.init(jax.random.fold_in(KEY, 0))
    return make_evaluate(model, attack, 4)(variables, trigger, dataset.test)


DLP = DLPConfig(
    supervised=RECIPE,
    ratio=0.05,
    unlearn=dataclasses.replace(
        DLPConfig().unlearn,
        optimizer=OptimConfig(lr=0.005, schedule="constant"),
        steps=50,
        batch_size=20,
    ),
    semi=dataclasses.replace(DLPConfig().semi, steps=150, batch_size=32),
)


ABL = ABLConfig(
    isolate=RECIPE,
    ratio=0.05,
    finetune=dataclasses.replace(RECIPE, steps=30),
    unlearn=UnlearnConfig(
        optimizer=OptimConfig(lr=0.1, weight_decay=0, schedule="constant"), steps=60, batch_size=20
    ),
)


def test_dlp_learns_the_task_of_a_poisoned_set_without_the_backdoor(model, dataset, poisoned):
    attack, split, flags = poisoned
    begun = judged(
        model,
        attack,
        defend(
            make_dlp(dataclasses.replace(DLP, stages="1"), dataset.info), model, split
        ).variables,
        dataset,
    )
    assert begun.asr > 0.9
    found = defend(make_dlp(DLP, dataset.info), model, split)
    counts = judged(model, attack, found.variables, dataset)
    assert counts.acc > 0.95 and counts.asr < 0.1, (counts.acc, counts.asr)
    suspects, labelled = found.found["suspects"], found.found["labelled"]
    assert suspects.sum() == 20 and labelled.sum() == 200 and not (suspects & labelled).any()
    # Of all rows, 15 % are poisoned.
    assert flags[suspects].mean() > 0.8 and flags[labelled].mean() < 0.05


def test_after_stage_2_the_backdoor_is_removed_and_the_task_kept(model, dataset, poisoned):
    attack, split, _ = poisoned
    found = defend(make_dlp(dataclasses.replace(DLP, stages="12"), dataset.info), model, split)
    counts = judged(model, attack, found.variables, dataset)
    assert counts.acc > 0.7 and counts.asr < 0.2, (counts.acc, counts.asr)
    assert found.found["suspects"].sum() == 20 and not found.found["labelled"].any()


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"score": "mixture", "ratio": 0.2},
        {"semi": SemiConfig(method="fixmatch", statistics="plain", steps=150, batch_size=32)},
    ],
)
def test_dlp_removes_the_backdoor_with_other_scores_and_methods(change, model, dataset, poisoned):
    attack, split, flags = poisoned
    found = defend(make_dlp(dataclasses.replace(DLP, **change), dataset.info), model, split)
    counts = judged(model, attack, found.variables, dataset)
    assert counts.acc > 0.8 and counts.asr < 0.3, (counts.acc, counts.asr)
    assert 0 < found.found["suspects"].sum() <= 80 and flags[found.found["suspects"]].mean() > 0.5


def test_isolation_by_local_gradient_ascent_keeps_the_loss_up(model, dataset, poisoned):
    _, split, _ = poisoned
    ends = {}
    for loss, gamma in (("lga", 0.5), ("lga", 0.0)):
        config = dataclasses.replace(
            ABL, loss=loss, gamma=gamma, isolate=dataclasses.replace(RECIPE, steps=60)
        )
        begun = fit(make_abl(config, dataset.info).begin(KEY, model, split))[0].variables
        ends[gamma] = scores_of(model, begun, split)["cross_entropy"].mean()
    # With a threshold of 0, the loss is plain cross-entropy.
    assert ends[0.0] < 0.1 and ends[0.5] > 0.3, ends


def test_dlp_learns_a_clean_set_despite_false_suspects(model, dataset):
    """Neither false suspects nor lost labels may cost clean accuracy."""
    found = defend(make_dlp(DLP, dataset.info), model, dataset.train)
    right = np.asarray(predict(model, found.variables, dataset.test.images)) == dataset.test.labels
    assert right.mean() > 0.95 and found.found["suspects"].sum() == 20
    labelled = np.bincount(np.asarray(dataset.train.labels)[found.found["labelled"]], minlength=4)
    assert labelled.sum() == 200 and labelled.min() >= 40, (
        labelled
    )  # two fifths of each class of 100


def test_first_of_takes_a_quota_of_every_class():
    labels, ranked = np.array([0, 1, 0, 1, 2, 0]), np.array([5, 4, 3, 2, 1, 0])
    assert first_of(ranked, labels, np.array([2, 1, 0])).tolist() == [5, 2, 3]
    assert first_of(ranked, labels, np.array([0, 9])).tolist() == [3, 1]


def test_trials_find_the_poisoned_class_where_another_has_the_lowest_scores(
    model, dataset, poisoned, monkeypatch
):
    """Class 2 is ranked first, as an easy class would be."""
    _, split, flags = poisoned
    begun = fit(make_dlp(DLP, dataset.info).begin(KEY, model, split))[0].variables
    judged, said = judge(model, begun, split, "entropy", 0.05), []
    labels = np.asarray(split.labels)
    easy = judged.ranked[np.argsort(labels[judged.ranked] != 2, kind="stable")]
    judged = suspect(judged.scores, easy, labels, easy[:20], "class")
    own, found, begins = sys.modules["d3jax.defenses.training_time.dlp"], {}, []
    true = own.unlearning_loop
    monkeypatch.setattr(own, "unlearning_loop", lambda *given: begins.append(given) or true(*given))
    for trials in (0, 1, 2):
        config = dataclasses.replace(DLP, trials=trials)
        done = unlearn(config, KEY, model, split, begun, judged, Hooks(say=said.append))
        after = done.judged
        found[trials] = flags[after.suspects].mean()
        assert len(after.suspects) == 20 and not set(after.suspects) & set(after.trusted)
        assert done.lines[-1]["step"] == 50 * (trials + 1)
        np.testing.assert_array_equal(
            done.scores["entropy"], scores_of(model, done.variables, split, ["entropy"])["entropy"]
        )
    assert found[0] == 0 and found[1] > 0.5 and found[2] > 0.8, found
    # Every trial and every final unlearning starts from the model after stage 1.
    assert len(begins) == 6 and all(given[2] is begun for given in begins)
    sizes = np.bincount(labels)
    assert np.bincount(labels[begins[1][4].suspects]).tolist() == (sizes * 20 // 400).tolist()
    assert [line.split(":")[0] for line in said if "steps unlearned" in line] == [
        "unlearn",
        "trial-1",
        "unlearn",
        "trial-1",
        "trial-2",
        "unlearn",
    ]


def test_highest_scores_and_suspects_are_not_trained_on(model, dataset, poisoned, monkeypatch):
    _, split, _ = poisoned
    own, given = sys.modules["d3jax.defenses.training_time.dlp"], {}
    true = own.semi_supervised_loop
    monkeypatch.setattr(
        own,
        "semi_supervised_loop",
        lambda *args: given.update(labelled=args[4], others=args[5]) or true(*args),
    )
    found = defend(make_dlp(DLP, dataset.info), model, split).found
    last = ranking(found["rescored"], found["rescored_entropy"])
    last = last[~np.isin(last, np.flatnonzero(found["suspects"] | found["labelled"]))]
    np.testing.assert_array_equal(given["labelled"], np.flatnonzero(found["labelled"]))
    # Of the 80 dropped rows, 20 are the suspects.
    np.testing.assert_array_equal(given["others"], np.sort(last[: 200 - 80]))


def test_abl_fine_tunes_on_the_other_rows_and_unlearns_the_isolated_ones(
    model, dataset, poisoned, monkeypatch
):
    attack, split, flags = poisoned
    own, given = sys.modules["d3jax.defenses.training_time.abl"], []
    true = own.training_loop
    monkeypatch.setattr(own, "training_loop", lambda *args: given.append(args[2]) or true(*args))
    found = defend(make_abl(ABL, dataset.info), model, split)
    rest = np.flatnonzero(found.found["labelled"])
    np.testing.assert_array_equal(given[-1].images, split.images[rest])  # the fine-tuning set
    np.testing.assert_array_equal(given[-1].labels, split.labels[rest])
    counts = judged(model, attack, found.variables, dataset)
    assert flags[found.found["suspects"]].mean() > 0.5 and counts.asr < 0.2 and counts.acc > 0.5, (
        counts.acc,
        counts.asr,
    )
    assert (found.found["labelled"] ^ found.found["suspects"]).all()


def test_classes_without_labelled_images_are_reported(model, dataset, poisoned, monkeypatch):
    _, split, _ = poisoned
    rows, said = np.flatnonzero(split.labels == 3), []
    scores = dict.fromkeys(("entropy", "symmetric"), np.zeros(400, np.float32))
    monkeypatch.setattr(
        sys.modules["d3jax.defenses.training_time.dlp"],
        "judge",
        lambda *given: Judged(scores, np.arange(400), rows, np.arange(200)),
    )
    # The sizes are those of other tests, so that no program is compiled twice.
    config = dataclasses.replace(DLP, stages="13")
    found = defend(make_dlp(config, dataset.info), model, split, hooks=Hooks(say=said.append)).found
    assert (
        "no image of the classes [3] keeps its label" in said
        and not (found["labelled"] & found["suspects"]).any()
    )


@pytest.mark.parametrize(
    ("make", "size", "message"),
    [
        (
            lambda info: make_abl(ABLConfig(), info),
            100,
            "isolate.batch_size: 128 is more than the 100 images$",
        ),
        (
            lambda info: make_abl(ABLConfig(), info),
            128,
            "finetune.batch_size: 128 is more than the 127 images that are not isolated",
        ),
        (
            lambda info: make_dlp(DLPConfig(), info),
            120,
            "supervised.batch_size: 128 is more than the 120 images",
        ),
        (
            lambda info: make_dlp(dataclasses.replace(DLP, kept=0.05, least=0), info),
            400,
            "semi.batch_size: 32 .* 20 images that keep",
        ),
        (
            lambda info: make_dlp(dataclasses.replace(DLP, kept=0.75), info),
            400,
            (
                "semi.batch_size: 32 is more than the 20 images that lose their labels "
                "and are not dropped"
            ),
        ),
        (
            lambda info: DLPConfig(kept=0.8),
            400,
            "kept: 0.8 and dropped: 0.2 leave no images to learn from without their labels",
        ),
        (
            lambda info: make_abl(ABLConfig(ratio=1e-3), info),
            400,
            "ratio: 0.001 of the 400 images is less than one",
        ),
        (
            lambda info: make_dlp(DLPConfig(ratio=1e-3), info),
            400,
            "ratio: 0.001 of the 400 images is less than one",
        ),
        (
            lambda info: DLPConfig(kept=0.05),
            400,
            "least: 0.4 of every class cannot keep its labels if only kept: 0.05 of all images do",
        ),
    ],
)
def test_settings_that_leave_too_few_images_are_refused(dataset, make, size, message):
    with pytest.raises(ConfigError, match=message):
        make(dataset.info).check(None, None, size, 0)
