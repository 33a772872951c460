"""Leaderboards, which compare defences over several run folders. No jax.

A **board** is one net on one data set, and its **cases** are attacks at a poison rate. Each case
has a row for the backdoored model and for every defence, over the seeds of all runs. These rules
decide which runs share a row:

- Each net, data set and number of classes has its own board. Nets and data sets differ if any of
  their settings differ, such as width and depth. Each poison rate is its own case.
- Two runs share a case if their config.yaml agree on everything that determines the backdoored
  model. That is all settings except the seeds, the lists of defences, evolutions and detections,
  `reserved`, `measured`, and settings that affect no number.
- Two runs share a defence's row if `reserved`, `measured` and the defence's own entry agree too.
  Otherwise each has its own row, with the name of its run.
- **Duplicates** are rows of one board, case, defence and seed with the same settings and equal
  numbers (ACC, ASR, RA, DER and their counts). They are one result, such as a model from a shared
  cache, and count once. A failed or unfinished run does not count if another run has the result.
- If numbers differ although the settings agree (another version of d3jax, another device), nothing
  is pooled. Each run then has its own row, with its name.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any, NamedTuple

from ..core.records import Row
from .compared_runs import Run, known_rows
from .outcomes import verdict
from .ranking import Ranking, rank
from .summary import RATES, summarise

COUNTED = (*RATES, "n_clean", "n_triggered")
"""Columns in which duplicates have equal values."""
NETS = {
    "preact_resnet18": ("PreActResNet18", 64),
    "resnet": ("ResNet", None),
    "vgg19_bn": ("VGG19-BN", 64),
    "wide_resnet": ("WideResNet", None),
    "vit": ("ViT", None),
    "convnext": ("ConvNeXt", None),
}
"""Display names of nets, and the width of the published net if there is only one."""
COLUMNS = (
    *("board", "case", "defense", "kind", "dataset", "model", "net", "classes"),
    *("attack", "poison_rate", "rank", "seeds", "failed"),
    *(column for rate in RATES for column in (rate, f"{rate}_std")),
    *("published", "seconds", "outcome", "duplicates", "runs", "commits"),
)
"""The columns of leaderboard.csv: a row for each (case, defence). Fractions are in [0, 1]."""


class Board(NamedTuple):
    """The leaderboard of one net on one data set: its `label`, `rows` and `ranking` of defences.

    Its rows have `COLUMNS` and the columns of `summarise`.
    """

    label: str
    rows: list[Row]
    ranking: Ranking


def leaderboard(runs: Sequence[Run]) -> list[Board]:
    """Return the leaderboards (`Board`) of several runs, one for each net and data set.

    Boards are in order of first appearance. Boards whose labels are equal, but whose settings
    differ, have the names of their runs in the label.
    """
    rows = [row for run in runs for row in known_rows(run)]
    for row in rows:
        row["_board"] = _board_of(row)
    kept = _by(rows, "_board", "_data")
    labels = [group[0]["_board"] for group in kept.values()]
    boards = []
    for label, group in zip(labels, kept.values(), strict=True):
        apart = f" [{_runs(group)}]" if labels.count(label) > 1 else ""
        boards.append(_board(label + apart, group))
    return boards


def net_name(model: str, net: str) -> str:
    """Return the display name of a net with its settings, such as "VGG19-BN width=16 (narrow)".

    The note "(narrow)" or "(wide)" compares the width with that of the published net.
    """
    name, published = NETS.get(model, (model, None))
    width = dict(part.split("=", 1) for part in net.split() if "=" in part).get("width", "")
    note = ""
    if published and width.isdigit() and int(width) != published:
        note = "(narrow)" if int(width) < published else "(wide)"
    return " ".join(filter(None, (name, net, note)))


def case_name(row: Row) -> str:
    """Return the attack of a row with its poison rate as text, such as "badnets (10 %)"."""
    rate = row["poison_rate"]
    return row["attack"] if rate is None else f"{row['attack']} ({100 * rate:.3g}\u00a0%)"


def _board_of(row: Row) -> str:
    classes = f", {row['classes']} classes" if row["classes"] else ""
    return f"{net_name(row['model'], row['net'])} on {row['dataset']}{classes}"


def _runs(rows: Sequence[Row]) -> str:
    return ", ".join(dict.fromkeys(row["_run"] for row in rows))


def _board(label: str, rows: Sequence[Row]) -> Board:
    found = []
    for case in _by(_named_defenses(_named_cases(rows)), "case").values():
        found += _case_rows(case)
    ranking = rank(found)
    places = {one.defense: one.rank for one in ranking.places}
    for row in found:
        row["board"] = label
        row["rank"] = places.get(row["defense"]) if row["kind"] == "defense" else None
    return Board(label, found, ranking)


def _by(rows: Iterable[Row], *names: str) -> dict[Hashable, list[Row]]:
    groups: dict[Hashable, list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return groups


def _named_cases(rows: Sequence[Row]) -> list[Row]:
    """Add the column `case` (attack and poison rate as text) to the rows of a leaderboard.

    The rows are returned grouped by attack and poison rate. The case contains the names of the runs
    if runs trained different models for it.
    """
    several = len({row["_train"] for row in rows}) > 1
    found = []
    for same in _by(rows, "attack", "poison_rate").values():
        cases = _apart(same, "_victim", victims_only=True)
        for case in cases:
            runs = f" [{_runs(case)}]" if several or len(cases) > 1 else ""
            found += [row | {"case": case_name(row) + runs} for row in case]
    return found


def _named_defenses(rows: Sequence[Row]) -> list[Row]:
    """Add the run's name to each `defense` label that means different settings in two runs.

    The rows of a board are returned sorted by case, with the backdoored model first.
    """
    found = []
    for label, same in _by(rows, "defense").items():
        parts = [same] if label == ("none",) else _apart(same, "_defense")
        for part in parts:
            runs = f" [{_runs(part)}]" if len(parts) > 1 else ""
            found += [row | {"defense": row["defense"] + runs} for row in part]
    order = list(dict.fromkeys(row["case"] for row in rows))
    return sorted(found, key=lambda row: (order.index(row["case"]), row["_kind"] != "victim"))


def _case_rows(rows: Sequence[Row]) -> list[Row]:
    """Return the leaderboard's summary rows of one attack case, the backdoored model first."""
    once = {key: _once(same) for key, same in _by(rows, "defense").items()}
    found = []
    for summary in summarise([row for same in once.values() for row in same]):
        key = (summary["defense"],)
        dropped = sum(row["defense"] == key[0] for row in rows) - len(once[key])
        found.append(_leader_row(summary, once[key], dropped))
    return found


def _leader_row(summary: Row, rows: Sequence[Row], dropped: int) -> Row:
    first = rows[0]
    return summary | {
        "net": first["net"],
        "classes": first["classes"],
        "poison_rate": first["poison_rate"],
        "case": first["case"],
        "kind": first["_kind"],
        "seeds": summary["n"],
        "outcome": verdict(summary),
        "duplicates": dropped,
        "runs": _runs(rows),
        "run_names": list(dict.fromkeys(row["_run"] for row in rows)),
        "commits": ", ".join(dict.fromkeys(row["commit"] for row in rows if row.get("commit"))),
    }


def _apart(rows: Sequence[Row], settings: str, victims_only: bool = False) -> list[list[Row]]:
    """Group leaderboard rows by their settings, and also by run if numbers of one seed differ.

    The settings are the text in the column `settings`. With `victims_only` only rows of victims are
    compared.
    """
    found: list[list[Row]] = []
    for group in _by(rows, settings).values():
        if _contradict([row for row in group if not victims_only or row["_kind"] == "victim"]):
            found += _by(group, "_run").values()
        else:
            found.append(group)
    return found


def _contradict(rows: Sequence[Row]) -> bool:
    """Return whether two rows of one attack case and seed have different numbers (ACC, ASR …).

    All rows are of one defence.
    """
    numbers: dict[Hashable, set[tuple[Any, ...]]] = {}
    for row in rows:
        if row["acc"] is not None:
            key = (row.get("case"), *_seeds(row))
            numbers.setdefault(key, set()).add(tuple(row.get(name) for name in COUNTED))
    return any(len(found) > 1 for found in numbers.values())


def _once(rows: Sequence[Row]) -> list[Row]:
    """Drop duplicate leaderboard rows: keep for each seed the first row that has numbers.

    If no row of a seed has numbers, keep its first row.
    """
    kept: dict[Hashable, Row] = {}
    for row in sorted(rows, key=lambda row: row["acc"] is None):
        kept.setdefault(_seeds(row), row)
    return [row for row in rows if kept[_seeds(row)] is row]


def _seeds(row: Row) -> tuple[int, Any]:
    return row["seed"], row["attack_seed"]
