"""Tests of the tables: exact CSV files, and the tables made from a run folder's records."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest

import d3jax
from d3jax.core.errors import DataError
from d3jax.results import tables
from d3jax.results.artifacts import (
    EvolutionEntry,
    NodeEntry,
    NodeRecord,
    RunFolder,
    write_manifest,
    write_record,
)

from ..helpers.run_folders import IDENTITY, node_of, result_row, without_numbers, write_run

TEXT = st.text(
    st.characters(blacklist_categories=("Cs",), blacklist_characters="\0\r"),
    min_size=1,
    max_size=12,
)


def evolution_node(label="ft", seed=0, asrs=(0.9, 0.3)):
    """Return the entry and the record of an evolution run with these ASRs after its updates."""
    where = {"attack": "badnets", "evolution": label, "seed": seed}
    rows = [
        where | {"update": update, "acc": 0.9, "asr": asr, "stale_acc": 0.9, "valid_acc": 0.8}
        for update, asr in enumerate((1.0, *asrs))
    ]
    survived = {f"survived_{tau:g}": sum(asr >= tau for asr in asrs) for tau in (0.9, 0.5, 0.1)}
    survived |= {f"{name}_censored": False for name in survived}
    row = result_row(defense=label, seed=seed, asr=asrs[-1], **survived)
    entry, record = node_of(row, "evolution")
    return entry, record._replace(tables={"results": [row], "evolution": rows})


def test_csv_reads_back_values_and_types(tmp_path):
    rows = [
        result_row(
            acc=0.1 + 0.2,
            asr=None,
            published='Table 2, "ACC"\n92.1',
            width=16,
            flag=True,
            code="007",
            der=1 / 3,
            power="1e-3",
            commit="1234567",
        ),
        result_row(
            acc=np.float64(1 / 3),
            asr=np.float32(0.1),
            seconds=1e-7,
            seed=np.int64(3),
            published="12",
            extra=math.inf,
        ),
    ]
    tables.write_csv(tmp_path / "results.csv", rows)
    back = tables.read_csv(tmp_path / "results.csv")
    assert tuple(back[0])[: len(tables.COLUMNS)] == tables.COLUMNS
    for written, read in zip(rows, back, strict=True):
        assert {name: read[name] for name in written} == written
        same = {n: v for n, v in written.items() if not isinstance(v, np.generic)}
        assert all(type(read[name]) is type(value) for name, value in same.items())
    assert back[1]["width"] is None and back[0]["extra"] is None


@hypothesis.given(
    st.lists(
        st.fixed_dictionaries(
            {
                "count": st.none() | st.integers(-(2**70), 2**70),
                "share": st.none() | st.floats(allow_nan=False),
                "status": st.none() | TEXT,
                "flag": st.none() | st.booleans(),
            }
        ),
        min_size=1,
        max_size=4,
    )
)
@hypothesis.settings(deadline=None, max_examples=60)
def test_csv_keeps_every_value_exactly(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("csv") / "table.csv"
    tables.write_csv(path, rows, ())
    back = tables.read_csv(path)
    assert back == rows
    assert [[type(v) for v in row.values()] for row in back] == [
        [type(rows[i][name]) for name in row] for i, row in enumerate(back)
    ]


def test_csv_with_one_empty_cell_keeps_its_row(tmp_path):
    tables.write_csv(tmp_path / "one.csv", [{"asr": None}, {"asr": 0.5}], ())
    assert tables.read_csv(tmp_path / "one.csv") == [{"asr": None}, {"asr": 0.5}]


def test_csv_writes_all_line_ends_as_newlines(tmp_path):
    tables.write_csv(tmp_path / "one.csv", [{"status": "a\r\nb\rc\nd"}], ())
    assert tables.read_csv(tmp_path / "one.csv") == [{"status": "a\nb\nc\nd"}]


def test_csv_of_no_rows_is_a_header(tmp_path):
    path = tmp_path / "deep" / "results.csv"
    tables.write_csv(path, [])
    assert path.read_text() == ",".join(tables.COLUMNS) + "\n"
    assert tables.read_csv(path) == []
    tables.write_csv(path, [], ())
    assert tables.read_csv(path) == []


def test_csv_survives_a_failed_write(tmp_path, monkeypatch):
    path = tmp_path / "results.csv"
    tables.write_csv(path, [result_row()])
    before = path.read_bytes()
    lacking = {name: value for name, value in result_row().items() if name != "asr"}
    with pytest.raises(ValueError, match=r"row 0 .*lacks the columns .'asr'.*"):
        tables.write_csv(path, [lacking])

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="disk full"):
        tables.write_csv(path, [result_row(), result_row(seed=1)])
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["results.csv"]


def test_tables_follow_the_order_of_the_nodes(tmp_path):
    rows = [result_row(defense=name, seed=seed) for seed in (1, 0) for name in ("none", "ft")]
    write_run(tmp_path, rows)
    found = tables.make_tables(RunFolder(tmp_path))
    assert found == {"results": rows, "per_class": []}


def test_failed_and_unfinished_nodes_have_a_row_with_their_status_and_no_numbers(tmp_path):
    failed = without_numbers(result_row(defense="d3"), "failed: the loss became NaN")
    waiting = without_numbers(result_row(defense="mcl"), "not finished: no model yet")
    write_run(tmp_path, [result_row(), failed, waiting])
    _, first, second = tables.make_tables(RunFolder(tmp_path))["results"]
    assert first["status"] == failed["status"] and second["status"] == waiting["status"]
    for row in (first, second):
        assert [row[name] for name in tables.NUMBERS] == [None] * len(tables.NUMBERS)
        assert {name: row[name] for name in IDENTITY} == IDENTITY | {"defense": row["defense"]}
    assert tuple(first)[: len(tables.COLUMNS)] == tables.COLUMNS


def test_only_failed_and_unfinished_detections_have_a_row_of_results(tmp_path):
    def detection(name, status):
        entry = NodeEntry(
            name, "model_detection", "badnets", 0, name, "detection", [dict(IDENTITY)], "r"
        )
        rows = {"detections": [{"attack": "badnets", "detection": name}]}
        return entry, status and NodeRecord(name, "r", status, rows if status == "ok" else {}, {})

    more = [detection("a", "ok"), detection("b", "failed: x"), detection("c", "")]
    found = tables.make_tables(RunFolder(write_run(tmp_path, [result_row()], more=more)))
    status = [row["status"] for row in found["results"]]
    assert status == ["ok", "failed: x", "not finished: no model yet"]
    assert [row["detection"] for row in found["detections"]] == ["a"]


def test_failed_nodes_without_a_role_have_no_row(tmp_path):
    entry = NodeEntry("f", "features", "badnets", 0, "", "", [], "r")
    more = [(entry, NodeRecord("f", "r", "failed: x", {}, {}))]
    write_run(tmp_path, [result_row()], more=more)
    assert len(tables.make_tables(RunFolder(tmp_path))["results"]) == 1


def test_survival_compares_the_finished_evolution_runs(tmp_path):
    low, high = evolution_node("low", asrs=(0.9, 0.6)), evolution_node("high", asrs=(0.3, 0.2))
    write_run(tmp_path, [result_row()], more=[low, high])
    manifest = RunFolder(tmp_path).manifest
    planned = [("low", "g", True, False, [0.1, 0.1]), ("high", "g", False, False, [0.2, 0.4])]
    evolutions = [EvolutionEntry(*one) for one in planned]
    write_manifest(tmp_path, manifest._replace(evolutions=evolutions))
    found = {row["evolution"]: row for row in tables.make_tables(RunFolder(tmp_path))["survival"]}
    assert found["low"]["survived_0.5"] == 2 and found["high"]["survived_0.5"] == 0
    assert found["high"]["baseline"] == "low" and found["high"]["lr_max"] == pytest.approx(0.4)
    assert found["low"]["constant"] and not found["high"]["constant"]


def test_written_tables_read_back_and_tables_of_an_earlier_study_are_removed(tmp_path):
    write_run(tmp_path, [result_row()], more=[evolution_node()], evolutions=["ft"])
    (tmp_path / "filters.csv").write_text("an earlier study's\n1\n")
    (tmp_path / "notes.csv").write_text("mine\n")
    found = tables.make_tables(RunFolder(tmp_path))
    tables.write_tables(tmp_path, found)
    written = {path.stem for path in tmp_path.glob("*.csv")}
    assert written == {"results", "per_class", "evolution", "survival", "notes"}
    assert tables.read_csv(tmp_path / "evolution.csv") == found["evolution"]
    assert (tmp_path / "per_class.csv").read_text() == ",".join(tables.PER_CLASS) + "\n"


def test_load_results_gives_typed_frames(tmp_path):
    failed = without_numbers(result_row(defense="d3", seed=1), "failed: x")
    write_run(tmp_path, [result_row(asr=1.0), failed])
    frames = d3jax.load_results(tmp_path)
    results = frames["results"]
    types = {name: str(results[name].dtype) for name in results}
    assert types["acc"] == types["poison_rate"] == types["der"] == "float64"
    assert types["n_clean"] == types["seed"] == "Int64" and types["status"] == "string"
    assert results["n_clean"].isna().tolist() == [False, True]
    assert results["acc"][0] == 0.9 and math.isnan(results["acc"][1])
    assert isinstance(frames["per_class"], pd.DataFrame) and frames["per_class"].empty
    assert results.groupby("defense")["acc"].mean()["none"] == 0.9


def test_loading_an_old_run_folder_raises_data_error(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match="written by an earlier d3jax: run its config again"):
        d3jax.load_results(tmp_path)


def test_a_record_without_arrays_replaces_one_with_arrays(tmp_path):
    write_run(tmp_path, [result_row()])
    record = NodeRecord("n", "r", "ok", {}, {})
    write_record(tmp_path, record, {"triggers": np.zeros(3)})
    write_record(tmp_path, record)
    assert RunFolder(tmp_path).arrays("n") == {}


def test_records_that_cannot_be_read_count_as_not_finished(tmp_path):
    write_run(tmp_path, [result_row()])
    (tmp_path / "nodes/badnets/seed0/none/record.json").write_text('{"name": "bad')
    with pytest.warns(UserWarning, match="record.json or arrays.npz is damaged"):
        (row,) = tables.make_tables(RunFolder(tmp_path))["results"]
    assert row["status"] == "not finished: no model yet" and row["acc"] is None


def test_tables_need_no_jax(tmp_path):
    write_run(tmp_path, [result_row()])
    code = (
        "import sys; sys.modules['jax'] = sys.modules['flax'] = None\n"
        f"import d3jax; print(len(d3jax.load_results({str(tmp_path)!r})['results']))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.stdout == "1\n", done.stderr


def test_manifests_of_no_nodes_give_empty_tables(tmp_path):
    write_run(tmp_path, [])
    manifest = RunFolder(tmp_path).manifest
    write_manifest(tmp_path, manifest._replace(attacks=[], nodes=[]))
    assert tables.make_tables(RunFolder(tmp_path)) == {"results": [], "per_class": []}
