"""ABL and DLP: check values, what they keep, that they never see the flags, and both in a study."""

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from d3jax.attacks import BadNetsConfig, badnets
from d3jax.config.loading import loads
from d3jax.config.recipes import OptimConfig, TrainConfig
from d3jax.core.errors import AttackError, ConfigError
from d3jax.data import SyntheticConfig, synthetic
from d3jax.defenses import ABLConfig, DLPConfig, abl, dlp
from d3jax.defenses.training_time.abl import bounded_loss
from d3jax.defenses.training_time.dlp import first_of, guessed_rows, labelled_rows, unlearn
from d3jax.defenses.training_time.suspicion import (
    Judged,
    UnlearnConfig,
    behind,
    found_of,
    found_shapes,
    judge,
    suspect,
    unlearning_loop,
)
from d3jax.metrics.attack_success import make_evaluate, predict
from d3jax.metrics.sample_scores import precision_recall, ranking, scores_of
from d3jax.report.sections.training_time import Filter, kept_clean
from d3jax.results.tables import read_csv
from d3jax.runtime import checkpoint
from d3jax.runtime.progress import Progress
from d3jax.study import rows as study_rows
from d3jax.study import run as study
from d3jax.study.nodes import training_time as untrusted
from d3jax.training import Hooks, fit
from d3jax.training.optim import make_schedule
from d3jax.training.poisoned_set import poisoned_split
from d3jax.training.semi_supervised import SemiConfig

from .small import register, small_model
from .test_lineages import Breaking

KEY = jax.random.key(21)
RECIPE = TrainConfig(
    steps=20, batch_size=32, augment="none", optimizer=OptimConfig(lr=0.05, schedule="constant")
)


@pytest.fixture(scope="module", autouse=True)
def small():
    register()


def test_abls_check_value():
    for kind in ("flooding", "lga"):
        assert float(bounded_loss(jnp.float32(0.6047), kind, 0.5)) == pytest.approx(
            0.6047, abs=1e-6
        )
    assert float(bounded_loss(jnp.float32(0.3), "flooding", 0.5)) == pytest.approx(0.7)
    assert float(bounded_loss(jnp.float32(0.3), "lga", 0.5)) == pytest.approx(-0.3)
    slope = jax.grad(lambda x: bounded_loss(x, "flooding", 0.5))
    assert slope(0.6) == 1 and slope(0.4) == -1


def test_presets():
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
    assert DLPConfig(stages="12", kept=0.3).kept == 0.3  # what stage 3 would refuse


def test_an_unlearning_s_schedule_goes_by_steps(model, poisoned):
    _, split, _ = poisoned
    judged = judge(model, model.init(KEY), split, "entropy", 0.1)
    optimizer = OptimConfig(lr=1e-3, momentum=0.0, weight_decay=0.0, schedule="drop")
    config = UnlearnConfig(optimizer=optimizer, steps=9, batch_size=20, bounded=False)
    loop = unlearning_loop(KEY, model, model.init(KEY), split, judged, config)
    step, state = jax.jit(loop.step), loop.state
    for factor in (
        1,
        1,
        1,
        1,
        1,
        1,
        0.1,
        0.1,
        0.1,
    ):  # against the same step by an optimiser that begins
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


def test_what_a_file_leaves_out_is_the_presets():
    text = "defenses: [{name: abl, preset: backdoorbench, isolate: {epochs: 3}, unlearn: {optimizer: {lr: 0.1}}}, "
    text += "{name: dlp, stages: 12, semi: {method: fixmatch, optimizer: {lr: 0.5}}}]"
    found, other = (choice.config for choice in loads(text, registries=study.REGISTRIES).defenses)
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
def test_trusted_are_the_half_that_is_least_suspected(trusted, model, poisoned):
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


def test_a_class_with_too_few_images_is_trusted_whole_but_for_suspects(
    model, poisoned, monkeypatch
):
    labels, scores = (
        np.array([0] * 12 + [1] * 4),
        np.arange(16.0)[::-1],
    )  # the fewer the class, the lower its scores
    split = poisoned[1]._replace(images=poisoned[1].images[:16], labels=labels)
    monkeypatch.setattr(
        sys.modules["d3jax.defenses.training_time.suspicion"],
        "scores_of",
        lambda *given: dict.fromkeys(("entropy", "cross_entropy"), scores),
    )
    assert judge(model, None, split, "entropy", 0.1).trusted.tolist() == [0, 1, 2, 3, 4, 12, 13, 14]


def test_the_mixture_suspects_as_many_as_it_says(model, poisoned, monkeypatch):
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
    ]  # at most the ratio


def test_a_second_loops_lines_count_on():
    lines = behind(
        [{"step": 5, "seconds": 2.0, "loss": 1.0}], [{"step": 3, "seconds": 0.5, "loss": 0.5}]
    )
    assert lines[1] == {"step": 8, "seconds": 2.5, "loss": 0.5} and behind([], lines) == lines


def test_who_keeps_a_label():
    labels = np.array([0] * 6 + [1] * 3 + [2])
    scores, ties = np.arange(10.0), np.zeros(10)
    suspects = np.array([0, 9])
    assert labelled_rows(scores, ties, labels, suspects, 4, 0.0).tolist() == [1, 2, 3, 4]
    one_of_each = labelled_rows(
        scores, ties, labels, suspects, 4, 0.01
    )  # but of the last, which has suspects alone
    assert one_of_each.tolist() == [1, 2, 3, 6]
    assert labelled_rows(scores, ties, labels, suspects, 5, 0.5).tolist() == [1, 2, 3, 4, 6]
    assert labelled_rows(scores, ties, labels, suspects, 2, 0.5).tolist() == [
        1,
        6,
    ]  # where there are too few, the best of each
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
    later = np.where(
        np.arange(10) == 3, 20, scores
    )  # of a class larger than the mean, 10 / 3, no more than of the mean
    assert labelled_rows(later, ties, labels, suspects, 7, 0.9).tolist() == [1, 2, 4, 5, 6, 7, 8]
    found = found_of(10, {"entropy": scores.astype(np.float32)}, suspects=suspects)
    assert found["suspects"].sum() == 2 and found["entropy"][3] == 3 and not found["labelled"].any()


def test_who_is_learned_from_without_a_label():
    scores, ties = np.array([0.0, 5, 1, 4, 4, 2, 3, 9]), np.array([0.0, 0, 0, 2, 1, 0, 0, 0])
    labelled, suspects = np.array([0, 2]), np.array([5])
    rows = lambda dropped: guessed_rows(scores, ties, labelled, suspects, dropped).tolist()
    assert rows(0) == [1, 3, 4, 5, 6, 7]
    assert rows(1) == [1, 3, 4, 6, 7]  # a suspect goes first, though it ranks before all others
    assert rows(4) == [4, 6]  # then 7, 1, and of two equal scores the one with the higher tie
    assert rows(6) == rows(7) == []


@pytest.fixture(scope="module")
def dataset():
    """Noisier than the others' set: images that are learned as fast as a trigger cannot be told from it."""
    return synthetic(
        SyntheticConfig(size=12, channels=3, classes=4, train=400, test=130, noise=0.3)
    )


@pytest.fixture(scope="module")
def model(dataset):
    return small_model(dataset.info)


@pytest.fixture(scope="module")
def poisoned(dataset):
    """A set with many poisoned images, and the attack."""
    attack = badnets(BadNetsConfig(rate=0.15), dataset.info)
    return attack, *poisoned_split(KEY, attack, dataset.train)


def defend(defense, model, split, **options):
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
        defend(dlp(dataclasses.replace(DLP, stages="1"), dataset.info), model, split).variables,
        dataset,
    )
    assert begun.asr > 0.9
    found = defend(dlp(DLP, dataset.info), model, split)
    counts = judged(model, attack, found.variables, dataset)
    assert counts.acc > 0.95 and counts.asr < 0.1, (counts.acc, counts.asr)
    suspects, labelled = found.found["suspects"], found.found["labelled"]
    assert suspects.sum() == 20 and labelled.sum() == 200 and not (suspects & labelled).any()
    assert (
        flags[suspects].mean() > 0.8 and flags[labelled].mean() < 0.05
    )  # 15 % of all are poisoned


def test_behind_stage_2_the_backdoor_is_gone_and_the_task_still_there(model, dataset, poisoned):
    attack, split, _ = poisoned
    found = defend(dlp(dataclasses.replace(DLP, stages="12"), dataset.info), model, split)
    counts = judged(model, attack, found.variables, dataset)
    assert counts.acc > 0.7 and counts.asr < 0.2, (counts.acc, counts.asr)
    assert found.found["suspects"].sum() == 20 and not found.found["labelled"].any()


@pytest.mark.parametrize(
    "change",
    [
        {"score": "mixture", "ratio": 0.2},
        {"semi": SemiConfig(method="fixmatch", statistics="plain", steps=150, batch_size=32)},
    ],
)
def test_other_slots_run_to_the_end(change, model, dataset, poisoned):
    attack, split, flags = poisoned
    found = defend(dlp(dataclasses.replace(DLP, **change), dataset.info), model, split)
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
        begun = fit(abl(config, dataset.info).begin(KEY, model, split))[0].variables
        ends[gamma] = scores_of(model, begun, split)["cross_entropy"].mean()
    assert ends[0.0] < 0.1 and ends[0.5] > 0.3, (
        ends
    )  # without a threshold it is plain cross-entropy


def test_a_clean_set_stays_learnable(model, dataset):
    """There is nothing to find; what is suspected for nothing, and what loses its label, must not cost the task."""
    found = defend(dlp(DLP, dataset.info), model, dataset.train)
    right = np.asarray(predict(model, found.variables, dataset.test.images)) == dataset.test.labels
    assert right.mean() > 0.95 and found.found["suspects"].sum() == 20
    labelled = np.bincount(np.asarray(dataset.train.labels)[found.found["labelled"]], minlength=4)
    assert labelled.sum() == 200 and labelled.min() >= 40, labelled  # two fifths of every 100


def test_the_first_of_every_class():
    labels, ranked = np.array([0, 1, 0, 1, 2, 0]), np.array([5, 4, 3, 2, 1, 0])
    assert first_of(ranked, labels, np.array([2, 1, 0])).tolist() == [5, 2, 3]
    assert first_of(ranked, labels, np.array([0, 9])).tolist() == [3, 1]


def test_trials_find_the_class_where_the_lowest_scores_are_another_s(
    model, dataset, poisoned, monkeypatch
):
    """The images of class 2 stand first, as those of an easy class would."""
    _, split, flags = poisoned
    begun = fit(dlp(DLP, dataset.info).begin(KEY, model, split))[0].variables
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
    assert len(begins) == 6 and all(
        given[2] is begun for given in begins
    )  # a trial leaves nothing but what it found
    sizes = np.bincount(labels)
    assert np.bincount(labels[begins[1][4].suspects]).tolist() == (sizes * 20 // 400).tolist()
    assert [line.split(":")[0] for line in said if "moved" in line] == [
        "unlearn",
        "trial-1",
        "unlearn",
        "trial-1",
        "trial-2",
        "unlearn",
    ]


def test_what_ranks_last_and_suspects_are_not_learned_from(model, dataset, poisoned, monkeypatch):
    _, split, _ = poisoned
    own, given = sys.modules["d3jax.defenses.training_time.dlp"], {}
    true = own.semi_supervised_loop
    monkeypatch.setattr(
        own,
        "semi_supervised_loop",
        lambda *args: given.update(labelled=args[4], others=args[5]) or true(*args),
    )
    found = defend(dlp(DLP, dataset.info), model, split).found
    last = ranking(found["rescored"], found["rescored_entropy"])
    last = last[~np.isin(last, np.flatnonzero(found["suspects"] | found["labelled"]))]
    np.testing.assert_array_equal(given["labelled"], np.flatnonzero(found["labelled"]))
    np.testing.assert_array_equal(
        given["others"], np.sort(last[: 200 - 80])
    )  # of 80 that are dropped 20 are the suspects


def test_abl_unlearns_what_it_isolated(model, dataset, poisoned, monkeypatch):
    attack, split, flags = poisoned
    own, given = sys.modules["d3jax.defenses.training_time.abl"], []
    true = own.training_loop
    monkeypatch.setattr(own, "training_loop", lambda *args: given.append(args[2]) or true(*args))
    found = defend(abl(ABL, dataset.info), model, split)
    rest = np.flatnonzero(found.found["labelled"])
    np.testing.assert_array_equal(given[-1].images, split.images[rest])  # what it fine-tunes on
    np.testing.assert_array_equal(given[-1].labels, split.labels[rest])
    counts = judged(model, attack, found.variables, dataset)
    assert flags[found.found["suspects"]].mean() > 0.5 and counts.asr < 0.2 and counts.acc > 0.5, (
        counts.acc,
        counts.asr,
    )
    assert (found.found["labelled"] ^ found.found["suspects"]).all()


def test_a_class_all_of_whose_images_are_suspects_is_said(model, dataset, poisoned, monkeypatch):
    _, split, _ = poisoned
    rows, said = np.flatnonzero(split.labels == 3), []
    scores = dict.fromkeys(("entropy", "symmetric"), np.zeros(400, np.float32))
    monkeypatch.setattr(
        sys.modules["d3jax.defenses.training_time.dlp"],
        "judge",
        lambda *given: Judged(scores, np.arange(400), rows, np.arange(200)),
    )
    config = dataclasses.replace(
        DLP, stages="13"
    )  # with sizes as above, so that nothing is compiled anew
    found = defend(dlp(config, dataset.info), model, split, hooks=Hooks(say=said.append)).found
    assert (
        "no image of [3] keeps its label" in said
        and not (found["labelled"] & found["suspects"]).any()
    )


@pytest.mark.parametrize(
    ("make", "size", "message"),
    [
        (
            lambda info: abl(ABLConfig(), info),
            100,
            "isolate.batch_size: 128 is more than the 100 images$",
        ),
        (
            lambda info: abl(ABLConfig(), info),
            128,
            "finetune.batch_size: 128 is more than the 127 images that are not isolated",
        ),
        (
            lambda info: dlp(DLPConfig(), info),
            120,
            "supervised.batch_size: 128 is more than the 120 images",
        ),
        (
            lambda info: dlp(dataclasses.replace(DLP, kept=0.05, least=0), info),
            400,
            "semi.batch_size: 32 .* 20 images that keep",
        ),
        (
            lambda info: dlp(dataclasses.replace(DLP, kept=0.75), info),
            400,
            "semi.batch_size: 32 is more than the 20 images that lose their labels and are not dropped",
        ),
        (
            lambda info: DLPConfig(kept=0.8),
            400,
            "kept: 0.8 and dropped: 0.2 leave no images to learn from without their labels",
        ),
        (
            lambda info: abl(ABLConfig(ratio=1e-3), info),
            400,
            "ratio: 0.001 of the 400 images is less than one",
        ),
        (
            lambda info: dlp(DLPConfig(ratio=1e-3), info),
            400,
            "ratio: 0.001 of the 400 images is less than one",
        ),
        (
            lambda info: DLPConfig(kept=0.05),
            400,
            "least: 0.4 of every class cannot keep its labels where kept: 0.05 of all do",
        ),
    ],
)
def test_too_few_images_are_refused(dataset, make, size, message):
    with pytest.raises(ConfigError, match=message):
        make(dataset.info).check(size)


STUDY = """
dataset: {name: synthetic, size: 12, classes: 4, train: 400, test: 130, noise: 0.3}
model: small
attacks: [{name: badnets, rate: 0.15}]
train: {steps: 100, batch_size: 64, augment: none, optimizer: {lr: 0.05}}
reserved: {count: 64}
defenses:
  - {name: abl, ratio: 0.05, isolate: {steps: 20, batch_size: 32, augment: none, optimizer: {lr: 0.05, schedule: constant}},
     finetune: {steps: 30, batch_size: 32, optimizer: {lr: 0.05}}, unlearn: {optimizer: {lr: 0.1}, steps: 60, batch_size: 20, bounded: true}}
  - {name: dlp, ratio: 0.05, supervised: {steps: 20, batch_size: 32, augment: none, optimizer: {lr: 0.05, schedule: constant}},
     unlearn: {optimizer: {lr: 0.005}, steps: 50, batch_size: 20}, semi: {steps: 100, batch_size: 32}}
  - {name: dlp, label: first, stages: "1", supervised: {steps: 20, batch_size: 32, augment: none, optimizer: {lr: 0.05, schedule: constant}}}
loop: {log_every: 5, save_every: 1000}
"""


def read(*overrides):
    return loads(STUDY, overrides, registries=study.REGISTRIES)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training") / "study"
    return folder, study.run_study(read(), folder, Progress(quiet=True))


def test_rows_of_a_study(finished):
    folder, rows = finished
    assert [row["defense"] for row in rows] == ["none", "abl-authors", "dlp", "first"]
    none, found, dlp_row, first = rows
    assert (
        none["asr"] > 0.9 and first["asr"] > 0.9 and dlp_row["asr"] < 0.1 and dlp_row["der"] > 0.9
    )
    assert (
        found["suspects"] == 20
        and dlp_row["suspects_poisoned"] > 0.5
        and dlp_row["labelled_poisoned"] < 0.1
    )
    assert first["labelled_poisoned"] is None and "suspects" not in none
    table = read_csv(folder / "filters.csv")
    scores = {(row["defense"], row["score"]): row for row in table}
    assert {"entropy", "cross_entropy", "symmetric", "mixture", "rescored", "rescored_entropy"} == {
        s for d, s in scores if d == "dlp"
    }
    assert scores["dlp", "rescored"]["auroc"] < 0.5  # unlearned, the poison is what fits worst
    assert scores["first", "entropy"] == scores["dlp", "entropy"] | {
        "defense": "first"
    }  # one first stage for both
    assert len(list((folder / "checkpoints").glob("*beginning*"))) == 2


def test_the_page_shows_learning_scores_and_filters(finished):
    folder, rows = finished
    page = (folder / "report.html").read_text()
    assert "how clean and poisoned images are learned" in page and "of the lowest 1 %" in page
    pictures = {path.name for path in (folder / "figures").iterdir()}
    assert {
        "badnets-dlp-learning.png",
        "badnets-dlp-scores.png",
        "badnets-dlp-rescored.png",
        "badnets-dlp-kept.png",
        "badnets-abl-authors-scores.png",
    } <= pictures
    assert "badnets-first-scores.png" not in pictures  # the same first stage as dlp's
    dlp_row = next(row for row in rows if row["defense"] == "dlp")
    share = 100 * dlp_row["labelled_poisoned"]
    assert (
        f"<th scope=row>dlp</th><td class=n>20</td><td class=n>{100 * dlp_row['suspects_poisoned']:.1f}</td><td class=n>{share:.2f}</td>"
        in page
    )


def test_precision_and_recall_of_the_labels_that_are_kept():
    flags, scores = np.array([False, True, False, False]), np.array([0.1, 0.2, 0.3, 0.4])
    precision, recall = kept_clean(precision_recall(scores, flags)[0], flags)
    np.testing.assert_allclose(precision, [1, 1 / 2, 2 / 3, 3 / 4])
    np.testing.assert_allclose(recall, [1 / 3, 1 / 3, 2 / 3, 1])


def test_a_rerun_says_what_the_run_said(finished):
    """Stages of several loops are logged as one, whether they were computed or found."""
    folder, _ = finished
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    stages = {json.loads(line)["stage"] for line in lines}
    assert {"badnets/seed0/dlp", "badnets/seed0/abl-authors"} <= stages and all(
        stage.count("/") == 2 for stage in stages
    )
    (folder / "figures" / "of-an-earlier-study.png").touch()
    study.run_study(read(), folder, Progress(quiet=True))
    assert sorted((folder / "metrics.jsonl").read_text().splitlines()) == sorted(lines)
    assert not (folder / "figures" / "of-an-earlier-study.png").exists()


def test_another_study_in_the_same_folder_is_said(finished, tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("seeds: [5]")
    study.run_study(read(("defenses", "[]")), tmp_path, Progress())
    assert f"{tmp_path} holds a study with other settings" in capsys.readouterr().out


def test_a_clean_set_has_no_precision():
    found = {"entropy": np.arange(20.0)}
    curves = {"entropy": (np.zeros(20), np.zeros(20))}
    (row,) = untrusted.filter_rows([Filter("clean", "dlp", 0, np.zeros(20, bool), found, curves)])
    assert row["auroc"] is None and row["precision_0.1"] is None and row["recall_0.1"] is None


def test_no_weight_knows_who_is_poisoned(finished, tmp_path, monkeypatch, model):
    """Other flags, other precision; the same models to the bit."""
    folder, rows = finished
    true = untrusted.poisoned_split
    monkeypatch.setattr(
        untrusted, "poisoned_split", lambda *given: (true(*given)[0], np.roll(true(*given)[1], 7))
    )
    monkeypatch.setattr(untrusted, "flags_of", lambda lab, case: np.arange(400) % 2 == 0)
    monkeypatch.setattr(study_rows, "flags_of", lambda lab, case: np.arange(400) % 2 == 0)
    again = study.run_study(read(), tmp_path, Progress(quiet=True))
    for before, after in zip(rows, again, strict=True):
        assert all(before[name] == after[name] for name in ("acc", "asr", "ra"))
    assert rows[1]["suspects_poisoned"] != again[1]["suspects_poisoned"]
    same_models(model, folder, tmp_path)


@pytest.mark.slow
def test_a_study_that_was_cut_off_continues(finished, tmp_path, model):
    folder, _ = finished
    often = (("loop.save_every", "10"), ("loop.save_seconds", "0"))
    cuts = 0
    while cuts < 20:  # in every stage of both: they have 4 to 20 lines each
        try:
            study.run_study(read(*often), tmp_path, Breaking(11))
            break
        except KeyboardInterrupt:
            cuts += 1
    assert 5 < cuts < 20
    assert (tmp_path / "filters.csv").read_text() == (folder / "filters.csv").read_text()
    rates = lambda where: [
        (row["acc"], row["asr"], row["ra"]) for row in read_csv(where / "results.csv")
    ]
    assert rates(tmp_path) == rates(folder)
    same_models(model, folder, tmp_path)


def same_models(model, *folders):
    like = untrusted.TrainedModel(jax.eval_shape(model.init, KEY), found_shapes(400))
    for name in ("dlp", "abl"):
        trees = [
            checkpoint.load(next(where.glob(f"checkpoints/*-{name}-*seed0-*/model")), like)[0]
            for where in folders
        ]
        jax.tree.map(np.testing.assert_array_equal, *trees)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            ("attacks", "[wanet]"),
            "attacks: wanet: defenses: abl-authors: has no poisoned set that could be released: it controls",
        ),
        (
            ("defenses.1.semi.batch_size", "300"),
            "defenses: dlp: semi.batch_size: 300 is more than the 200 images",
        ),
        (("defenses.1.stages", "21"), "stages: 21 is not one of 1, 12, 13, 123"),
        (
            ("defenses.0.unlearn", "{descent: turns, batch_size: 201}"),
            "defenses: abl-authors: unlearn.batch_size: 201 may want 201 trusted images a step, more than the 200 there are",
        ),
        (
            ("defenses.0.unlearn", "{descent: together, batch_size: 300}"),
            "defenses: abl-authors: unlearn.batch_size: 300 may want 299 trusted images a step, more than the 200 there are",
        ),
        (
            ("defenses.0.unlearn", "{descent: together, batch_size: 1}"),
            "defenses: abl-authors: unlearn.batch_size: 1 has no room for trusted images beside the suspects",
        ),
        (
            ("defenses.0.unlearn", "{descent: turns, share: 0.5}"),
            "unlearn.share: 0.5 stands beside descent: turns, which has no such setting",
        ),
        (
            ("defenses.0.unlearn", "{trusted: all}"),
            "unlearn.trusted: all stands beside descent: none, which has no such setting",
        ),
        (
            ("defenses.1.unlearn", "{descent: none}"),
            "trials: 2 stands beside unlearn.descent: none, but a trial needs trusted images",
        ),
        (
            ("defenses.1.unlearn", "{trusted: all}"),
            "trials: 2 stands beside unlearn.trusted: all, but a trial needs trusted images",
        ),
    ],
)
def test_mistakes_are_named_before_any_work(tmp_path, override, message):
    with pytest.raises((ConfigError, AttackError), match=message):
        study.check_study(read(override), tmp_path)
