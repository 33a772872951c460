"""The ranking of defences by their mean DER over the attacks of a leaderboard. No jax."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ..core.records import Row


class Place(NamedTuple):
    """The place of one defence in the ranking of a leaderboard, with its means over attacks.

    Fractions are in [0, 1]. `rank` is 1 for the best; ties share the better rank and are `tied`.
    `spread` is the sample standard deviation of DER over attacks (None for one attack). `removed`
    counts the attacks whose backdoor is removed on every seed. `failed` counts the runs without
    numbers over all attacks.
    """

    defense: str
    rank: int
    tied: bool
    der: float
    spread: float | None
    acc: float
    asr: float
    asr_worst: float
    removed: int
    failed: int


class Ranking(NamedTuple):
    """The ranking of a leaderboard's defences: `places`, compared `cases`, and those left out.

    `places` are sorted from the best on. `cases` are the compared attacks; all ranked defences have
    a DER under each of them. `without` maps each case or defence that was left out to the reason.
    """

    places: list[Place]
    cases: list[str]
    without: dict[str, str]


def rank(rows: Sequence[Row]) -> Ranking:
    """Rank the defences in the rows of a leaderboard by their mean DER over attacks.

    Only defences that have a DER under at least half of the attacks are compared. Their means are
    over the attacks under which all of them have a DER. Evolutions are not ranked. DERs that are
    equal to a hundredth of a percentage point are a tie.
    """
    cells = {
        (row["defense"], row["case"]): row
        for row in rows
        if row["kind"] == "defense" and row["der"] is not None
    }
    cases = list(dict.fromkeys(case for _, case in cells))
    tried = list(dict.fromkeys(row["defense"] for row in rows if row["kind"] == "defense"))
    has = {one: [case for case in cases if (one, case) in cells] for one in tried}
    compared = [one for one in tried if cases and 2 * len(has[one]) >= len(cases)]
    common = [case for case in cases if all(case in has[one] for one in compared)]
    without = {
        one: f"a DER under {len(has[one])} of {len(cases)} attacks"
        for one in tried
        if one not in compared
    }
    for case in cases:
        if missing := [one for one in compared if case not in has[one]]:
            without[case] = f"no DER of {', '.join(missing)}"
    if not common:
        return Ranking([], [], without)
    found = [_place(one, [cells[one, case] for case in common], rows) for one in compared]
    return Ranking(_ranked(found), common, without)


def _place(defense: str, cells: Sequence[Row], rows: Sequence[Row]) -> Place:
    ders = [row["der"] for row in cells]
    return Place(
        defense,
        0,
        False,
        statistics.fmean(ders),
        statistics.stdev(ders) if len(ders) > 1 else None,
        statistics.fmean(row["acc"] for row in cells),
        statistics.fmean(row["asr"] for row in cells),
        max(row["asr_worst"] for row in cells),
        sum(row["outcome"].split(",")[0] == "removed" for row in cells),
        sum(row["failed"] for row in rows if row["defense"] == defense),
    )


def _ranked(places: Sequence[Place]) -> list[Place]:
    """Sort the places of defences by DER, best first, and set their ranks and ties."""
    shown = {one.defense: round(one.der, 4) for one in places}
    values: Mapping[float, int] = {
        value: sum(other > value for other in shown.values()) for value in shown.values()
    }
    return [
        one._replace(
            rank=1 + values[shown[one.defense]],
            tied=list(shown.values()).count(shown[one.defense]) > 1,
        )
        for one in sorted(places, key=lambda one: -shown[one.defense])
    ]
