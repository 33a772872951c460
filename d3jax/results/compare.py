"""One leaderboard over several run folders. No jax.

A **board** is one net on one data set; its **cases** are attacks at a poison rate; each case has a
row for the backdoored model and for every defence, over the seeds of all runs. What is kept apart:

- Nets (by every setting, such as width and depth), data sets (by every setting) and numbers of
  classes are boards of their own; poison rates are cases of their own.
- Two runs share a case where their config.yaml agrees on all that makes the backdoored model:
  everything but seeds, the lists of defences, evolutions and detections, `reserved`, `measured` and
  what no number depends on. They share a defence's row where `reserved`, `measured` and the
  defence's own entry agree too. Otherwise the rows stay apart, with the names of their runs.
- **Duplicates**: rows of one board, case, defence and seed with the same settings and equal
  numbers (ACC, ASR, RA, DER and their counts) are one result, such as a model from a shared cache:
  it counts once. A run that failed or is not finished does not count where another run has the
  result. Where numbers differ although the settings agree (another version of d3jax, another
  device), nothing is pooled: each run has its own row, with its name.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any, NamedTuple

from ..core.records import Row
from .compared_runs import Run, known_rows
from .ranking import Ranking, rank
from .summary import RATES, summarise, verdict

COUNTED = (*RATES, "n_clean", "n_triggered")
"""Columns that duplicates agree in."""
NETS = {
    "preact_resnet18": ("PreActResNet18", 64),
    "resnet": ("ResNet", None),
    "vgg19_bn": ("VGG19-BN", 64),
    "wide_resnet": ("WideResNet", None),
    "vit": ("ViT", None),
    "convnext": ("ConvNeXt", None),
}
"""Names of nets, and the width of the published one where there is only one."""
COLUMNS = (
    *("board", "case", "defense", "kind", "dataset", "model", "net", "classes"),
    *("attack", "poison_rate", "rank", "seeds", "failed"),
    *(column for rate in RATES for column in (rate, f"{rate}_std")),
    *("published", "seconds", "outcome", "duplicates", "runs", "commits"),
)
"""The columns of leaderboard.csv: a row for each (case, defence). Fractions are in [0, 1]."""


class Board(NamedTuple):
    """A leaderboard of one net on one data set; rows have COLUMNS and all that `summarise` has."""

    label: str
    rows: list[Row]
    ranking: Ranking


def leaderboard(runs: Sequence[Run]) -> list[Board]:
    """Return a board for each net and data set, in order of first appearance."""
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
    """Return a net's name with its settings: ("preact_resnet18", "width=16") is "… (narrow)"."""
    name, published = NETS.get(model, (model, None))
    width = dict(part.split("=", 1) for part in net.split() if "=" in part).get("width", "")
    note = ""
    if published and width.isdigit() and int(width) != published:
        note = "(narrow)" if int(width) < published else "(wide)"
    return " ".join(filter(None, (name, net, note)))


def case_name(row: Row) -> str:
    """Return the attack of a row with its poison rate, if it has one."""
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
    """Rows of a board with their `case`, by attack; the run is in it where models were made apart."""
    several = len({row["_train"] for row in rows}) > 1
    found = []
    for same in _by(rows, "attack", "poison_rate").values():
        cases = _apart(same, "_victim", victims_only=True)
        for case in cases:
            runs = f" [{_runs(case)}]" if several or len(cases) > 1 else ""
            found += [row | {"case": case_name(row) + runs} for row in case]
    return found


def _named_defenses(rows: Sequence[Row]) -> list[Row]:
    """Rows of a board whose `defense` has the run in it where that label means several things."""
    found = []
    for label, same in _by(rows, "defense").items():
        parts = [same] if label == ("none",) else _apart(same, "_defense")
        for part in parts:
            runs = f" [{_runs(part)}]" if len(parts) > 1 else ""
            found += [row | {"defense": row["defense"] + runs} for row in part]
    order = list(dict.fromkeys(row["case"] for row in rows))
    return sorted(found, key=lambda row: (order.index(row["case"]), row["_kind"] != "victim"))


def _case_rows(rows: Sequence[Row]) -> list[Row]:
    """The leaderboard's rows of one attack and backdoored model; the model itself comes first."""
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
    """Rows by a column of settings, and by run too where rows (of victims) contradict each other."""
    found: list[list[Row]] = []
    for group in _by(rows, settings).values():
        if _contradict([row for row in group if not victims_only or row["_kind"] == "victim"]):
            found += _by(group, "_run").values()
        else:
            found.append(group)
    return found


def _contradict(rows: Sequence[Row]) -> bool:
    """Whether two rows of one case, defence and seed have different numbers."""
    numbers: dict[Hashable, set[tuple[Any, ...]]] = {}
    for row in rows:
        if row["acc"] is not None:
            key = (row.get("case"), *_seeds(row))
            numbers.setdefault(key, set()).add(tuple(row.get(name) for name in COUNTED))
    return any(len(found) > 1 for found in numbers.values())


def _once(rows: Sequence[Row]) -> list[Row]:
    """One row a seed: the first that has numbers."""
    kept: dict[Hashable, Row] = {}
    for row in sorted(rows, key=lambda row: row["acc"] is None):
        kept.setdefault(_seeds(row), row)
    return [row for row in rows if kept[_seeds(row)] is row]


def _seeds(row: Row) -> tuple[int, Any]:
    return row["seed"], row["attack_seed"]
