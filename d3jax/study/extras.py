"""What a study finds out once its models are there: lineages compared, filters, lines between models, inverted triggers on all of them.

Each is contained: what breaks is said, and the page lacks it, but no table that was finished before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import jax

from ..core.types import Variables
from ..report.page import Extras
from ..report.sections.evolution import Lineages
from ..report.sections.model_detection import Features
from ..results.survival import compare, forgetting_rows
from ..results.tables import Row, write_csv
from ..runtime.distributed import is_primary
from .attack_run import Cell
from .context import Lab
from .executor import Result, Stage
from .nodes.forgetting import control_rates, lineage_rows, predictions, shown_evolutions
from .nodes.loss_landscape import change_rows, lines_of, path_rows
from .nodes.model_detection import trigger_rows
from .nodes.repair import task_of
from .nodes.report_samples import inverted_features
from .nodes.training_time import filter_rows, filters_of

Found = TypeVar("Found")


def extras_of(
    lab: Lab,
    cells: Sequence[Cell],
    rows: Sequence[Row],
    looked: Sequence[Row],
    results: Mapping[str, Result],
    earlier: Mapping[str, Stage],
    repaired: Mapping[str, Variables],
) -> tuple[Extras, dict[str, dict[str, Features]]]:
    """All of it, for the page, and the `inverted_features`; tables of it are written as filters.csv, evolution.csv, survival.csv,
    forgetting.csv, triggers.csv, paths.csv and changes.csv."""

    def attempt(what: str, work: Callable[[], Found], otherwise: Found) -> Found:
        try:
            return work()
        except Exception as error:
            if jax.process_count() > 1:  # it may have broken here alone
                raise
            lab.recorder.progress.warn(f"the report lacks {what}: {type(error).__name__}: {error}")
            return otherwise

    filters = attempt("what filters found", lambda: filters_of(lab, cells, results), [])
    filtered = attempt("the table of filters", lambda: filter_rows(filters), [])
    controls = attempt(
        "controls of evolutions", lambda: _controls(lab, cells, results, earlier), {}
    )
    evolved = attempt("evolutions", lambda: lineage_rows(lab, cells, results, controls), [])
    shown = attempt("evolutions", lambda: shown_evolutions(lab), {})
    compared = attempt("the comparison of evolutions", lambda: compare(rows, evolved, shown), [])
    predicted = attempt(
        "predictions of forgetting", lambda: predictions(lab, cells, results, earlier), []
    )
    turned = attempt(
        "inverted triggers on repaired models",
        lambda: trigger_rows(lab, cells, results, earlier),
        [],
    )
    lines = attempt("lines between models", lambda: lines_of(lab, cells, earlier, repaired), [])
    tables = {"filters": filtered, "evolution": evolved, "survival": compared, "triggers": turned}
    tables |= {"forgetting": forgetting_rows(predicted)}
    tables |= {
        "paths": path_rows(lines, lab.config.seeds[0]),
        "changes": change_rows(lines, lab.config.seeds[0]),
    }
    for name, table in tables.items():
        if is_primary() and table:
            write_csv(lab.workdir / f"{name}.csv", table, columns=())
    features = attempt(
        "features under inverted triggers",
        lambda: inverted_features(lab, cells, results, earlier),
        {},
    )
    read = _how_read(lab) if lab.suspect else ""
    unknown = list(
        dict.fromkeys(cell.case.label for cell in cells if lab.suspect and not cell.case.attacked)
    )
    found = Extras(
        looked,
        Lineages(evolved, compared, shown, predicted),
        filters,
        filtered,
        lines,
        turned,
        read,
        unknown,
    )
    return found, features


def _how_read(lab: Lab) -> str:
    numbers = lambda values: ", ".join(f"{value:g}" for value in values)
    info = lab.dataset.info
    return (
        f"{lab.suspect.text}. It sees images of {info.name}, normalised by mean ({numbers(info.mean)}) and standard deviation "
        f"({numbers(info.std)}): where it was trained with others, its accuracy here is too low."
    )


def _controls(
    lab: Lab, cells: Sequence[Cell], results: Mapping[str, Result], earlier: Mapping[str, Stage]
) -> dict[str, dict[int, float]]:
    """What an attack's trigger does to the control, the lineage of `clean` that evolves alike, at every update; {} without one."""
    if lab.suspect:  # whose trigger, if it has one, is not known to be absent
        return {}
    clean = {
        (cell.label, cell.case.seed): cell
        for cell in cells
        if cell.kind == "lineage" and not cell.case.attacked
    }
    found = {}
    for cell in cells:
        control = clean.get((cell.label, cell.case.seed))
        if (
            cell.kind == "lineage"
            and cell.case.attacked
            and control
            and isinstance(results.get(control.name), Stage)
        ):
            model = earlier.get(Cell(cell.case).name)
            if model:
                folder, name = task_of(lab, control, {}).folder, task_of(lab, cell, {}).folder.name
                found[cell.name] = control_rates(lab, cell, folder, name, model.tree.trigger)
    return found
