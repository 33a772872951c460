"""The leaderboard of several runs, as an HTML page and as Markdown, without jax."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..core.records import Row
from ..results.compare import Board
from ..results.ranking import Place, Ranking
from ..results.summary import RATES, points, spread
from .rendering import render, seconds

COLUMNS = ("Attack", "Defence", "Outcome", "ACC", "ASR", "RA", "DER", "Seeds", "Failed", "Time (s)")
"""The first columns of a board's Markdown table; `Published` and `Runs` follow."""
OTHERS = ("evolution", "detection")
"""Kinds of rows that are listed but not ranked."""


def leaderboard_html(boards: Sequence[Board], runs: Sequence[str]) -> str:
    """Return the leaderboard of several runs as an HTML page that needs no other file.

    A click on the header of a column sorts its table.
    """
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
    """Return the leaderboard of several runs as Markdown: a heading and two tables per board."""
    parts = ["# Leaderboard", _counts(boards, runs), f"Runs: {', '.join(map(_escaped, runs))}."]
    for board in boards:
        parts += [f"## {_escaped(board.label)}", *_ranking_markdown(board.ranking)]
        parts.append(_table([*COLUMNS, "Published", "Runs"], map(_markdown_row, board.rows)))
    parts.append(
        "Rates are in percent: mean ± sample standard deviation over seeds. DER compares with the "
        "backdoored model (none) of the same seed. A result that appears in several runs counts "
        "once."
    )
    return "\n\n".join(parts) + "\n"


def place_text(place: Place) -> str:
    """Return a defence's rank in a leaderboard as text, with "=" after a tied rank."""
    return f"{place.rank}{'=' if place.tied else ''}"


def ranking_note(ranking: Ranking) -> str:
    """Return sentences on the attacks that a leaderboard ranks over, and what it leaves out."""
    if not ranking.places:
        start = "There is no ranking, because no attack has a DER for every defence."
    else:
        count = len(ranking.cases)
        start = f"Ranked over {_count(count, 'attack')} for which every ranked defence has a DER: "
        start += f"{', '.join(ranking.cases)}."
    if ranking.without:
        start += " Left out: " + "; ".join(f"{k} ({v})" for k, v in ranking.without.items()) + "."
    return start


def _counts(boards: Sequence[Board], runs: Sequence[str]) -> str:
    rows = [row for board in boards for row in board.rows]
    attacks = {row["attack"] for row in rows}
    parts = [
        _count(len(runs), "run"),
        _count(len(boards), "board") + " (one per net and data set)",
        _count(len(attacks), "attack"),
        _count(len({row["defense"] for row in rows if row["kind"] == "defense"}), "defence"),
    ]
    if evolutions := len({row["defense"] for row in rows if row["kind"] == "evolution"}):
        parts.append(_count(evolutions, "evolution run") + ", not ranked")
    commits = dict.fromkeys(one for row in rows for one in row["commits"].split(", ") if one)
    if len(commits) > 1:
        parts.append(f"{len(commits)} versions of d3jax (commits {', '.join(commits)})")
    if failed := sum(row["failed"] for row in rows):
        parts.append(_count(failed, "result") + " failed or not finished")
    return " · ".join(parts)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _glance(board: Board) -> Mapping[str, Mapping[str, Row]]:
    """Return the rows of a leaderboard as {defence: {attack case: row}}, ordered by rank.

    "none" comes first, then the ranked defences by rank, then the other defences.
    """
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
    """Return `text` escaped for a Markdown table cell, on one line."""
    for sign in "\\`*_|<>[]":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split("\n"))
