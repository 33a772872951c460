"""The leaderboard of several runs as a page and as Markdown. No jax in here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..core.records import Row
from ..results.compare import Board
from ..results.ranking import Place, Ranking
from ..results.summary import RATES, points, spread
from .rendering import render, seconds

COLUMNS = ("Attack", "Defence", "Outcome", "ACC", "ASR", "RA", "DER", "Seeds", "Failed", "Time (s)")
"""Columns of the Markdown table of a board; `Published` and `Runs` follow."""
OTHERS = ("evolution", "detection")
"""Kinds of rows that are listed and not ranked."""


def leaderboard_html(boards: Sequence[Board], runs: Sequence[str]) -> str:
    """Return the page: one file that needs no other; its tables sort when a header is clicked."""
    return render(
        "compare.html.j2",
        boards=boards,
        runs=runs,
        rates=RATES,
        counts=_counts(boards, runs),
        glances=[_glance(board) for board in boards],
        place_of=place_text,
        note_of=ranking_note,
        points=points,
        spread=spread,
    )


def leaderboard_markdown(boards: Sequence[Board], runs: Sequence[str]) -> str:
    """Return the leaderboard as Markdown, with a heading and two tables for each board."""
    parts = ["# Leaderboard", _counts(boards, runs), f"Runs: {', '.join(map(_escaped, runs))}."]
    for board in boards:
        parts += [f"## {_escaped(board.label)}", *_ranking_markdown(board.ranking)]
        parts.append(_table([*COLUMNS, "Published", "Runs"], map(_markdown_row, board.rows)))
    parts.append(
        "Numbers are in percent, mean ± sample standard deviation over seeds. DER compares with the "
        "backdoored model (none) of the same seed. A result that several runs have counts once."
    )
    return "\n\n".join(parts) + "\n"


def place_text(place: Place) -> str:
    """Return a rank, with = where others share it."""
    return f"{place.rank}{'=' if place.tied else ''}"


def ranking_note(ranking: Ranking) -> str:
    """Return over what a ranking is, and what was left out of it."""
    if not ranking.places:
        start = "No ranking: no attack has a DER of every defence."
    else:
        count = len(ranking.cases)
        start = f"Over {_count(count, 'attack')} for which every ranked defence has a DER: "
        start += f"{', '.join(ranking.cases)}."
    if ranking.without:
        start += " Left out: " + "; ".join(f"{k} ({v})" for k, v in ranking.without.items()) + "."
    return start


def _counts(boards: Sequence[Board], runs: Sequence[str]) -> str:
    rows = [row for board in boards for row in board.rows]
    attacks = {row["attack"] for row in rows}
    parts = [
        _count(len(runs), "run"),
        _count(len(boards), "board") + " (net and data set)",
        _count(len(attacks), "attack"),
        _count(len({row["defense"] for row in rows if row["kind"] == "defense"}), "defence"),
    ]
    if evolutions := len({row["defense"] for row in rows if row["kind"] == "evolution"}):
        parts.append(_count(evolutions, "evolution") + ", not ranked")
    commits = dict.fromkeys(one for row in rows for one in row["commits"].split(", ") if one)
    if len(commits) > 1:
        parts.append(f"{len(commits)} versions of d3jax (commits {', '.join(commits)})")
    if failed := sum(row["failed"] for row in rows):
        parts.append(_count(failed, "result") + " failed or not finished")
    return " · ".join(parts)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _glance(board: Board) -> Mapping[str, Mapping[str, Row]]:
    """Rows by defence and case: the ranked ones by rank, then the others."""
    order = [place.defense for place in board.ranking.places]
    found: dict[str, dict[str, Row]] = {name: {} for name in order}
    for row in board.rows:
        if row["kind"] not in OTHERS:
            found.setdefault(row["defense"], {})[row["case"]] = row
    none = {"none": found.pop("none")} if "none" in found else {}
    return none | found


def _ranking_markdown(ranking: Ranking) -> list[str]:
    head = ["Rank", "Defence", "DER", "± over attacks", "ASR", "worst ASR", "ACC", "removed"]
    rows = [
        [
            place_text(one),
            one.defense,
            points(one.der),
            points(one.spread),
            points(one.asr),
            points(one.asr_worst),
            points(one.acc),
            f"{one.removed} of {len(ranking.cases)}",
        ]
        for one in ranking.places
    ]
    table = [_table(head, rows)] if rows else []
    return [*table, _escaped(ranking_note(ranking))]


def _markdown_row(row: Row) -> list[str]:
    kind = f" ({row['kind']})" if row["kind"] in OTHERS else ""
    rates = [spread(row, rate) for rate in RATES]
    counts = [str(row["seeds"]), str(row["failed"] or "")]
    names = [row["case"], row["defense"] + kind, row["outcome"]]
    return [
        *names,
        *rates,
        *counts,
        seconds(row["seconds"]),
        row["published"] or "",
        row["runs"],
    ]


def _table(head: Sequence[str], rows) -> str:
    lines = [head, ["---"] * len(head), *(list(map(_escaped, row)) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escaped(text: str) -> str:
    """Text as Markdown: nothing in it is markup, ends a cell or a line."""
    for sign in "\\`*_|<>[]":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split("\n"))
