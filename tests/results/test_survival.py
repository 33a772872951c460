"""Tests of the comparison of evolution runs: baseline, survivability, headlines and means."""

import numpy as np
import pytest

from d3jax.report.plots.evolution import series
from d3jax.report.sections.evolution import headlines
from d3jax.results.artifacts import EvolutionEntry
from d3jax.results.survival import compare, ratio, survived


def test_baseline_is_the_constant_rate_with_the_best_clean_validation_accuracy():
    """The ASR and the test accuracy do not decide. Schedules are compared with the baseline."""
    ended, evolved = [], []
    for attack, asr in (("badnets", 0.9), ("clean", None)):
        for label, acc, valid, counted in (
            ("low", 0.80, 0.70, 8),
            ("high", 0.78, 0.75, 4),
            ("smart", 0.775, 0.7, 0),
            ("wild", 0.5, 0.9, 1),
        ):
            for seed in (0, 1):
                for update in (0, 1, 2):
                    one = {
                        "attack": attack,
                        "evolution": label,
                        "seed": seed,
                        "update": update,
                        "acc": acc,
                        "asr": asr,
                        "stale_acc": acc,
                    }
                    # The order is reversed under attack, to show that the clean models decide.
                    evolved.append(
                        one
                        | {"valid_acc": (valid if asr is None else 1 - valid) if update else None}
                    )
                row = {"attack": attack, "defense": label, "seed": seed}
                for tau in ("0.9", "0.5", "0.1"):
                    row |= (
                        {
                            f"survived_{tau}": counted + seed,
                            f"survived_{tau}_censored": label == "low",
                        }
                        if asr
                        else {}
                    )
                ended.append(row)

    low, high = entry("low", 0.01, 0.01), entry("high", 0.1, 0.1)
    smart, wild = entry("smart", 0.3, 0.1, constant=False), entry("wild", 0.9, 0.1, group="b")
    entries = [low, high, smart, wild]
    found = {(row["attack"], row["evolution"]): row for row in compare(ended, evolved, entries)}
    assert {one.label: found["badnets", one.label]["baseline"] for one in entries} == {
        "low": "high", "high": "high", "smart": "high", "wild": None
    }  # fmt: skip
    smart, low = found["badnets", "smart"], found["badnets", "low"]
    assert (
        smart["survived_0.5"] == 0.5 and smart["speedup"] == 4.5 / 0.5 and smart["counts"] is True
    )
    assert low["survived_0.5"] == 8.5 and low["censored_0.5"] == 2 and survived(low, 0.5) == "≥ 8.5"
    assert (
        smart["lr_mean"] == pytest.approx(0.2)
        and smart["lr_max"] == np.float32(0.3)
        and smart["asr_last"] == 0.9
    )
    assert headlines(list(found.values())) == {
        "badnets": "The backdoor survives 4.5 of 2 updates (ASR ≥ 50 %) with high. "
        "It survives the fewest updates with smart: 0.5."
    }  # fmt: skip
    assert (
        survived(found["clean", "low"], 0.5) == "–" and found["clean", "smart"]["speedup"] is None
    )
    assert (
        (smart["speedup_bound"], low["speedup_bound"]) == (None, "≤")
        and ratio(low) == "≤ 0.5×"
        and ratio(smart) == "9.0×"
    )
    scaled = [*entries[:2], entry("smart", 0.015, 0.005, constant=False, scaled=True), entries[3]]
    held = {
        row["evolution"]: row
        for row in compare(ended, evolved, scaled)
        if row["attack"] == "badnets"
    }
    assert (
        held["smart"]["baseline"] == "high" and held["smart"]["speedup"] == 8.5 / 0.5
    )  # against the constant rate that equals its mean rate
    assert [held[one.label]["equal_mean"] for one in entries] == [None, None, "low", None]
    assert [held[one.label]["constant"] for one in entries] == [True, True, False, True]
    assert smart["acc_std"] == 0 and smart["asr_last_std"] == 0
    fewer = [row for row in evolved if (row["evolution"], row["seed"]) != ("smart", 1)]
    assert (
        next(row for row in compare(ended, fewer, entries) if row["evolution"] == "smart")["counts"]
        is None
    )  # a seed is missing
    lost = [row for row in evolved if (row["evolution"], row["seed"]) != ("high", 1)]
    lost = [
        row | {"valid_acc": 0.0} if row["evolution"] == "low" and row["seed"] else row
        for row in lost
    ]
    assert _baselines(ended, lost, entries)["smart"] == "high"  # chosen on the seeds that both have
    dead = [
        row | dict.fromkeys((name for name in row if name.startswith("survived")), None)
        for row in ended
    ]
    assert all(row["survived_0.5"] is None for row in compare(dead, evolved, entries))
    alone = {
        row["evolution"]: row
        for row in compare(ended, [row for row in evolved if row["attack"] == "badnets"], entries)
    }
    assert (
        alone["smart"]["baseline"] == "low" and alone["smart"]["counts"] is False
    )  # its ACC is 2.5 points below


def test_no_baseline_is_chosen_while_a_candidate_has_no_numbers():
    evolved = [
        {"attack": "badnets", "evolution": "low", "seed": 0, "update": update, "acc": 0.9}
        | {"asr": 0.5, "stale_acc": 0.9, "valid_acc": 0.9}
        for update in (0, 1)
    ]
    entries = [entry("low", 0.01), entry("high", 0.1)]
    assert _baselines([], evolved, entries) == {"low": None}


def test_a_headline_names_one_of_equal_runs_and_prefers_one_that_counts():
    row = {"attack": "badnets", "updates": 4, "baseline": "slow", "censored_0.5": 0, "seeds": 1}
    lines = [
        row | {"evolution": name, "survived_0.5": survived, "counts": counts}
        for name, survived, counts in (("slow", 3, True), ("wild", 1, False), ("smart", 1, True))
    ]
    assert headlines(lines) == {
        "badnets": "The backdoor survives 3 of 4 updates (ASR ≥ 50 %) with slow. "
        "It survives the fewest updates with smart and 1 more: 1."
    }


def entry(label, *rates, group="a", constant=True, scaled=False):
    rates = np.array(rates, np.float32).tolist()
    return EvolutionEntry(label, group, constant, scaled, rates)


def _baselines(ended, evolved, entries):
    return {
        row["evolution"]: row["baseline"]
        for row in compare(ended, evolved, entries)
        if row["attack"] == "badnets"
    }


def test_evolution_curves_are_means_and_deviations_over_seeds():
    evolved = [
        {"evolution": "a", "update": t, "seed": seed, "asr": v}
        for seed, v in ((0, 0.2), (1, 0.6))
        for t in (0, 1)
    ]
    at, mean, deviation = series(evolved, "a", "asr")
    assert (
        at.tolist() == [0, 1]
        and mean == pytest.approx([0.4, 0.4])
        and deviation == pytest.approx([0.8 / 8**0.5] * 2)
    )
