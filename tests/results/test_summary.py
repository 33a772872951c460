"""Tests of summaries over seeds, and of the texts on outcomes, headlines and detections."""

from __future__ import annotations

import math

import pytest

from d3jax.results import summary as report
from d3jax.results.outcomes import verdict

from ..helpers.report_runs import row


def test_summary_has_the_hand_computed_numbers():
    rows = [
        row(seed=0, acc=0.90, asr=1.0),
        row(seed=1, acc=0.94, asr=0.9),
        row("ft", 0, acc=0.88, asr=0.6, der=0.5, published="Table 1"),
        row("ft", 1, acc=0.90, asr=0.1, der=0.7, published="none"),
    ]
    none, ft = report.summarise(rows)
    assert [none["defense"], ft["defense"]] == ["none", "ft"]
    assert none["acc"] == pytest.approx(0.92) and none["acc_std"] == pytest.approx(
        0.04 / math.sqrt(2)
    )
    assert none["der"] is None and none["acc_change"] is None and none["n"] == 2
    assert ft["asr"] == pytest.approx(0.35) and ft["asr_std"] == pytest.approx(0.5 / math.sqrt(2))
    assert ft["acc_change"] == pytest.approx(-0.03) and ft["asr_change"] == pytest.approx(-0.6)
    assert ft["der"] == pytest.approx(0.6) and ft["der_std"] == pytest.approx(0.2 / math.sqrt(2))
    assert (ft["kept"], ft["asr_worst"], ft["published"], ft["seconds"]) == (1, 0.6, "Table 1", 2.5)


def test_summary_compares_seed_with_seed_and_leaves_failures_out():
    nothing = {"acc": None, "asr": None, "ra": None}
    failed = row("ft", 0, **nothing, status="failed: nan")
    rows = [row(seed=0, acc=0.5), row(seed=1, acc=0.9), failed, row("ft", 1, acc=0.8, asr=0.0)]
    ft = report.summarise(rows)[1]
    assert ft["acc_change"] == pytest.approx(-0.1), (
        "the change must be against seed 1 alone, the only one that has both"
    )
    assert (ft["n"], ft["failed"], ft["status"], ft["acc_std"]) == (1, 1, "failed: nan", None)


def test_summary_keeps_datasets_and_attacks_apart_in_order():
    rows = [row(attack="sig"), row(), row(dataset="cifar10"), row(attack="sig", seed=1)]
    keys = [(line["dataset"], line["attack"], line["n"]) for line in report.summarise(rows)]
    assert keys == [("digits", "sig", 2), ("digits", "badnets", 1), ("cifar10", "badnets", 1)]


@pytest.mark.parametrize(
    ("asrs", "acc", "words"),
    [
        ((0.0, 0.09), 0.9, "removed"),
        ((0.0, 0.12), 0.9, "weakened"),  # a mean of 6 % does not hide the seed above 10 %
        ((0.0, 0.7), 0.9, "kept on 1 of 2 seeds"),
        ((0.5, 0.7), 0.9, "kept"),
        ((0.0, 0.0), 0.7, "removed, large ACC loss"),
    ],
)
def test_verdict_depends_on_the_asr_of_every_seed_and_on_the_acc_loss(asrs, acc, words):
    rows = [
        line
        for seed, asr in enumerate(asrs)
        for line in (row(seed=seed), row("ft", seed, acc=acc, asr=asr))
    ]
    assert verdict(report.summarise(rows)[1]) == words


@pytest.mark.parametrize(
    ("acc", "asr", "ra", "words"),
    [
        (0.9, 0.05, 0.72, "removed"),
        (0.9, 0.05, 0.71, "disabled: still misclassified"),
        (0.9, 0.05, None, "removed"),
        (0.9, 0.3, 0.1, "weakened"),
        (0.15, 0.0, 0.15, "model lost"),
        (0.79, 0.0, 0.1, "disabled: still misclassified, large ACC loss"),
    ],
)
def test_verdict_is_disabled_at_low_ra_and_model_lost_at_chance_accuracy(acc, asr, ra, words):
    rows = [row(), row("ft", acc=acc, asr=asr, ra=ra)]
    rows = [one | {"classes": 10} for one in rows]
    assert verdict(report.summarise(rows)[1]) == words


@pytest.mark.parametrize(
    ("asr", "moved", "words"),
    [
        (0.0, [0.5, 0.9], "moved to class cat, dog"),
        (0.0, [0.5, 0.4], "moved to class cat on 1 of 2 seeds"),
        (0.3, [0.9, 0.9], "moved to class cat, dog"),
        (0.6, [0.9, 0.9], "kept"),
        (0.0, [0.4, None], "disabled: still misclassified"),
    ],
)
def test_verdict_is_moved_if_the_trigger_leads_to_one_other_class(asr, moved, words):
    rows = [row(seed=seed) for seed in range(2)]
    for seed, (share, name) in enumerate(zip(moved, ("cat", "dog"), strict=True)):
        rows.append(row("ft", seed, asr=asr, ra=0.1) | {"moved_asr": share, "moved_to": name})
    assert verdict(report.summarise(rows)[1]) == words


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (0.2, 0.0, "no backdoor to remove"),  # no backdoor worked before the defence
        (0.2, 0.6, "makes the backdoor work"),
        (0.6, 0.3, "weakened"),
        (None, 0.3, "weakened"),
        (0.6, 0.6, "kept"),
    ],
)
def test_verdict_depends_on_the_asr_before_the_defence(before, after, words):
    assert verdict(report.summarise([row(asr=before), row("ft", asr=after)])[1]) == words


def test_verdict_is_not_weakened_if_the_mean_asr_rises():
    rows = [
        row(seed=0, asr=0.6),
        row(seed=1, asr=0.1),
        row("ft", 0, asr=0.45),
        row("ft", 1, asr=0.35),
    ]
    assert verdict(report.summarise(rows)[1]) == "not weakened"


def test_headline_names_the_best_the_worst_and_failed_defences():
    rows = [
        row(acc=0.92, asr=0.994),
        row("ft", acc=0.918, asr=0.87, der=0.56),
        row("d3-code", acc=0.912, asr=0.0, der=0.99),
        row("nc", acc=None, asr=None, status="failed: no label stands out"),
    ]
    assert report.headline(report.summarise(rows)) == (
        "d3-code is the better defence: ASR changes from 99.4 % to 0.0 % and ACC falls by "
        "0.8 points. "
        "ft is the worse one: ASR is 87.0 % and ACC falls by 0.2 points "
        "(outcome “kept”). "
        "nc (failed: no label stands out) gave no result."
    )


def test_headline_names_failures_and_works_without_trigger_defence_or_victim():
    lost = report.headline(report.summarise([row(), row("ft", asr=0.9), row("d3", asr=0.6)]))
    assert lost.startswith(
        "No defence removes the backdoor. d3 is the better defence: ASR changes from 100.0 %"
    )
    assert "(outcome “kept”)" in lost and "ft is the worse one" in lost
    weak = report.headline(report.summarise([row(asr=0.08), row("ft", asr=0.0)]))
    assert "does not work even without a defence (ASR 8.0 %)" in weak
    assert (
        report.headline(report.summarise([row()]))
        == "ASR is 100.0 % and ACC is 90.0 %. No defence was run."
    )
    assert (
        report.headline(report.summarise([row(asr=None)]))
        == "ACC is 90.0 %. Without a trigger, ASR is undefined."
    )
    assert (
        report.headline(report.summarise([row("ft", asr=0.02)]))
        == "With ft, ASR is 2.0 % and ACC is 90.0 %."
    )


def detection_row(targets, flagged):
    """Return a row of detections.csv; `targets` and `flagged` are lists of class numbers."""
    return {
        "attack": "badnets", "seed": 0, "detection": "nc", "flagged": bool(flagged),
        "flagged_classes": ", ".join(f"c{i}" for i in flagged), "n_flagged": len(flagged),
        "targets": ", ".join(f"c{i}" for i in targets), "n_targets": len(targets),
        "n_found": len(set(targets) & set(flagged)), "right": targets == flagged,
        "statistic": 1.0, "threshold": 2.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("targets", "flagged", "words"),
    [
        ([1], [1], "nc flags c1 (statistic 1.00, threshold 2.00). It finds the target."),
        ([1], [1, 2], "threshold 2.00). It finds the target, and it also raises false alarms."),
        ([1], [], "flags no class (statistic 1.00, threshold 2.00). It misses the target (c1)."),
        ([0, 1, 2], [1], "It finds 1 of 3 targets (c0, c1, c2)."),
        ([0, 1], [1, 0], "It finds every target."),
        ([], [], "There is no backdoor, so this is right."),
        ([], [2], "There is no backdoor, so this is a false alarm."),
    ],
)
def test_detection_text_compares_the_flagged_classes_with_the_targets(targets, flagged, words):
    (found,) = report.detections([detection_row(targets, flagged)])
    assert found["text"].endswith(words)


def test_detection_text_says_if_the_targets_are_unknown():
    row = detection_row([], [2]) | {"right": None, "n_targets": None, "n_found": None}
    assert report.detections([row])[0]["text"].endswith("It is not known whether this is right.")


def test_summary_describes_a_trigger_search_and_includes_its_time():
    searched = {
        "target": 0,
        "chosen": "flagged with index 4.00",
        "trigger_success": 0.97,
        "search_seconds": 30.0,
    }
    rows = [row(), row("mcl", asr=0.0, seconds=10.0) | searched]
    mine = report.summarise(rows)[1]
    assert (
        mine["seconds"] == 40.0
        and mine["searched"] == "class 0 flagged with index 4.00, inverted-trigger ASR 97 %"
    )
    nothing = {
        "target": -1,
        "chosen": "none flagged",
        "trigger_success": None,
        "search_seconds": 30.0,
    }
    mine = report.summarise([row(), row("mcl", asr=1.0) | nothing])[1]
    assert verdict(mine) == "not repaired: no class flagged" and mine["searched"] == "none flagged"
