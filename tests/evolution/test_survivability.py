"""Tests of survivability, the number of updates that a backdoor survives."""

import jax

from d3jax.evolution.survivability import survivability, survival_columns


def test_survivability_is_undefined_where_the_backdoor_never_worked():
    lines = [{"update": update, "watch_asr": asr} for update, asr in ((1, 0.2), (2, 0.05))]
    found = survival_columns(lines, 0.3)
    assert (found["survived_0.5"], found["survived_0.5_censored"], found["survived_0.1"]) == (
        None,
        None,
        1,
    )
    assert (
        survival_columns(lines, 0.5)["survived_0.5"] == 0
        and survival_columns([{"update": 1}], 0.3) == {}
    )


KEY = jax.random.key(5)


def test_survivability_counts_updates_until_the_first_fall():
    assert survivability([0.9, 0.8, 0.4, 0.9]) == (2, False)  # a later rise does not count
    assert survivability([0.3, 0.9]) == (0, False)
    assert survivability([0.9, 0.5, 0.7]) == (3, True)  # a value at the threshold is not below it
    assert survivability([0.95, 0.85], 0.9) == (1, False) and survivability([0.05], 0.1) == (
        0,
        False,
    )
    assert survivability([]) == (0, True)
