"""Tests of the GPU queue: which entries run, what is kept of them, and what is left."""

import argparse
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(FOLDER))

import gpu
import gpu_fill
import gpu_pieces
from gpu_parts import PARTS
from gpu_pieces import Part, file_name, is_complete, read
from gpu_plan import QUEUE, Entry, all_seconds, cost, next_seconds


def part_of(*names):
    """Return a part whose pieces are `names`, and whose result has the number of each."""

    def pieces(options):
        return list(names)

    def measure(options, pieces, kept):
        for piece in pieces:
            kept = kept | {piece: len(kept.get("pieces", {}))}
            yield piece, kept

    return Part(pieces, measure)


def entry_of(part, start, seconds):
    return Entry(part, start, {"all": (seconds, seconds)})


@pytest.fixture
def options(tmp_path):
    words = [f"--{name}={tmp_path / name}" for name in ("out", "kept", "work")]
    made = gpu.parser().parse_args([*words, "--device=card", "--seconds=100"])
    made.out.mkdir()
    made.kept.mkdir()
    return made


@pytest.fixture
def ran(monkeypatch):
    """Return the list of the parts that `fill` runs, none of which starts a process."""
    names = []
    monkeypatch.setattr(gpu_fill, "run", lambda command, seconds, given: names.append(command) or 0)
    return names


def label_of(entry, options, seconds):
    return entry.label


def put(folder, part, **facts):
    (folder / file_name(part, "", "card")).write_text(json.dumps({"part": part} | facts))


def test_fill_runs_entries_in_order_and_skips_those_that_do_not_fit(options, ran):
    queue = [entry_of("a", 10, 50), entry_of("b", 10, 90), entry_of("c", 10, 20)]
    parts = {entry.part: part_of("all") for entry in queue}
    assert gpu_fill.fill(queue, options, parts, label_of) == 0
    assert ran == ["a", "c"]
    options.seconds = 0
    assert gpu_fill.fill(queue, options, parts, label_of) == 0 and ran == ["a", "c"]


def test_an_entry_fits_if_its_cheapest_piece_does(options, ran):
    queue = [Entry("a", 10, {"long": (500, 500), "short": (50, 50)})]
    gpu_fill.fill(queue, options, {"a": part_of("long", "short")}, label_of)
    assert ran == ["a"]
    put(options.out, "a", complete=False, pieces={"short": {}})
    gpu_fill.fill(queue, options, {"a": part_of("long", "short")}, label_of)
    assert ran == ["a"]


def test_complete_files_of_both_folders_are_skipped_and_incomplete_ones_are_not(options, ran):
    parts = {name: part_of("all", "more") for name in "abcd"}
    queue = [Entry(name, 0, {"all": (1, 1), "more": (1, 1)}) for name in parts]
    put(options.out, "a", complete=True)
    put(options.kept, "b")  # of before there were pieces
    put(options.kept, "c", complete=False, pieces={"all": {}})
    gpu_fill.fill(queue, options, parts, label_of)
    assert ran == ["c", "d"]
    assert gpu_fill.todo(queue[2], options, parts) == ["more"]


def test_tables_wait_for_their_data(options, ran):
    parts = {"table-sig": part_of("none"), "ceilings": part_of("all")}
    queue = [Entry("table-sig", 1, {"none": (1, 1)}), entry_of("ceilings", 1, 1)]
    options.data = options.work / "cifar10.npz"
    gpu_fill.fill(queue, options, parts, label_of)
    assert ran == ["ceilings"]


SCRIPT = """
import sys, time
from pathlib import Path
import gpu_pieces

def measure(options, pieces, kept):
    for piece in pieces:
        if piece == options:
            time.sleep(600)
        if piece == "bad":
            raise SystemExit("bad")
        yield piece, (kept := kept | {piece: options})

path, slow, *names = Path(sys.argv[1]), *sys.argv[2:]
part = gpu_pieces.Part(lambda options: names, measure)
kept = gpu_pieces.read(path.name, path.parent)
gpu_pieces.run(part, slow, path, kept, {"commit": "c"}, lambda piece, before: True)
"""


@pytest.fixture
def process(tmp_path, monkeypatch):
    """Return a `command` of `fill` whose part sleeps in a piece, and the pieces of its parts."""
    script, names = tmp_path / "part.py", {}
    script.write_text(SCRIPT)
    monkeypatch.setenv("PYTHONPATH", str(FOLDER))
    monkeypatch.setattr(gpu_fill, "GRACE", 0.5)

    def command(entry, options, seconds):
        path = options.out / file_name(entry.part, "", "card")
        return [sys.executable, str(script), str(path), *names[entry.part]]

    return command, names


def test_a_part_that_is_cut_off_keeps_its_pieces_and_goes_on_later(options, process):
    command, names = process
    queue, parts = [entry_of("a", 0, 0)], {"a": part_of("first", "second")}
    names["a"], options.seconds = ["second", "first", "second"], 3
    assert gpu_fill.fill(queue, options, parts, command) == 0
    kept = read("a_card.json", options.out)
    assert not is_complete(kept) and list(kept["pieces"]) == ["first"]
    assert gpu_fill.todo(queue[0], options, parts) == ["second"]
    names["a"], options.seconds = ["none", "first", "second"], 60
    assert gpu_fill.fill(queue, options, parts, command) == 0
    kept = read("a_card.json", options.out)
    assert is_complete(kept) and kept["first"] == "second" and kept["second"] == "none"
    assert gpu_fill.todo(queue[0], options, parts) == []


def test_a_part_that_fails_leaves_no_complete_file_and_stops_no_other(options, process, capsys):
    command, names = process
    queue = [entry_of("a", 0, 0), entry_of("b", 0, 0)]
    names |= {"a": ["", "first", "bad"], "b": ["", "first"]}
    parts = {"a": part_of("first", "bad"), "b": part_of("first")}
    assert gpu_fill.fill(queue, options, parts, command) == 1
    assert "a: failed with 1" in capsys.readouterr().out
    assert list(read("a_card.json", options.out)["pieces"]) == ["first"]
    assert not is_complete(read("a_card.json", options.out))
    assert is_complete(read("b_card.json", options.out))


def test_a_piece_that_does_not_fit_gives_way_to_one_that_does(tmp_path):
    path = tmp_path / "a.json"

    def fits(piece, before):
        return piece != "long" and len(before) < 2

    part, head = part_of("long", "x", "y", "z"), {"commit": "c"}
    assert not gpu_pieces.run(part, None, path, {}, head, fits)
    assert list(json.loads(path.read_text())["pieces"]) == ["x", "y"]


def test_a_kept_result_of_other_settings_is_not_continued(options, monkeypatch, capsys):
    monkeypatch.setitem(gpu.PARTS, "ceilings", part_of("one", "two"))
    monkeypatch.setattr(gpu, "environment", lambda: {"device": "Card", "commit": "c"})
    options.seconds = math.inf  # the program's time began when it was imported
    kept = {"complete": False, "pieces": {"one": {}}, "settings": {"width": 3}, "one": 7}
    put(options.kept, "ceilings", **kept)
    gpu.run_part("ceilings", options)
    assert "starts again" in capsys.readouterr().out
    made = read("ceilings_card.json", options.out)
    assert is_complete(made) and made["one"] == 0
    gpu.run_part("ceilings", options)
    assert "done before" in capsys.readouterr().out


def test_every_part_is_in_the_queue_and_every_piece_has_an_estimate(options):
    assert {entry.part for entry in QUEUE} == set(PARTS)
    for entry in QUEUE:
        pieces = PARTS[entry.part].pieces(gpu_fill.settings_of(entry, options))
        for piece in pieces:
            assert cost(entry, piece, (), options) > 0, (entry.label, piece)
        slot = 540 - gpu_fill.GRACE
        for piece in pieces:
            assert next_seconds(entry, [piece], options) < slot, (entry.label, piece)


def test_queue_has_the_order_of_value(options):
    order = [entry.label for entry in QUEUE]
    for first, second in (
        ("ceilings-again", "untrusted-badnets"),
        ("untrusted-badnets", "untrusted-abl"),
        ("untrusted-abl", "throughput-128"),
        ("inversion", "table-badnets-divided"),
        ("table-badnets-divided", "table-blended"),
        ("table-ssba", "throughput-256"),
    ):
        assert order.index(first) < order.index(second)


def test_a_defence_costs_its_backdoored_model_too_unless_that_is_there(options):
    entry = Entry("untrusted-sig", 5, {"none": (100, 80), "dlp": (30, 20), "abl": (40, 10)})
    assert cost(entry, "dlp/seed1", (), options) == 100 + 30
    assert cost(entry, "abl/seed1", ["dlp/seed1"], options) == 40
    assert cost(entry, "dlp/seed1", ["dlp/seed0"], options) == 80 + 20
    todo = ["dlp/seed0", "abl/seed0", "dlp/seed1", "abl/seed1"]
    assert all_seconds(entry, todo, options) == 5 + 100 + 30 + 40 + 80 + 20 + 10
    (options.work / "models" / "c-sig-victim-seed1-abc" / "model").mkdir(parents=True)
    assert cost(entry, "dlp/seed1", (), options) == 30
    shared = Entry("table-sig", 5, {"none": (100, 80), "d3": (30, 20), "ft": (7, 7)})
    assert cost(shared, "d3", (), options) == 130 and cost(shared, "ft", ["d3"], options) == 7


def test_command_of_an_entry_has_its_name_and_settings(options):
    entry = next(one for one in QUEUE if one.name == "divided")
    words = gpu_fill.command_of(entry, options, 99.6)[2:]
    read_again = gpu.parser().parse_args(words)
    assert read_again.parts == ["table-badnets"] and read_again.seconds == 100
    assert read_again.name == "divided" and read_again.set == list(entry.set)
    assert (read_again.out, read_again.kept) == (options.out, options.kept)


def test_left_prints_every_entry_that_is_not_done_and_starts_no_device(options):
    put(options.kept, "profile")
    words = ["left", "--device=card", f"--out={options.out}", f"--kept={options.kept}"]
    given = os.environ | {"JAX_PLATFORMS": "cuda", "PYTHONPATH": str(FOLDER.parent)}
    program = [sys.executable, str(FOLDER / "gpu.py"), *words]
    shown = subprocess.run(program, env=given, check=True, capture_output=True, text=True).stdout
    assert [line.partition(":")[0] for line in shown.splitlines()[: len(QUEUE) - 1]] == [
        entry.label for entry in QUEUE if entry.part != "profile"
    ]


def test_rows_that_an_earlier_machine_made_stay_in_a_table():
    import gpu_tables

    config = argparse.Namespace(seeds=(0, 1), defenses=(argparse.Namespace(label="dlp"),))
    old = [{"seed": 0, "defense": "none", "acc": 1}]
    new = [
        {"seed": 1, "defense": "none", "acc": 3},
        {"seed": 0, "defense": "dlp", "acc": 4},
        {"seed": 0, "defense": "none", "acc": 2},
    ]
    assert [row["acc"] for row in gpu_tables.merged(config, old, new)] == [1, 4, 3]


def test_rounds_of_one_more_variant_are_joined_to_those_before():
    import train_step

    about = {"batch": 8, "flops_an_image": 1e12, "failed": {}, "ours": {"x": {}}, "torch": {}}
    first = {"ours/x": [1.0, 2.0], "torch/a": [2.0, 2.0]}
    kept = train_step.joined({}, about | {"torch": {"a": {}}}, first)
    second = {"ours/x": [4.0], "torch/b": [2.0]}
    made = train_step.joined(kept, about | {"failed": {"torch/c": "no"}}, second)
    assert made["seconds_a_step"]["ours/x"] == [1.0, 2.0, 4.0] and made["torch"] == {"a": {}}
    assert made["images_a_second"]["ours/x"]["median"] == 4.0
    assert made["tflops"]["torch/b"] == 4.0 and made["failed"] == {"torch/c": "no"}
    assert {name: one["median"] for name, one in made["ratios"].items()} == {
        "ours/x over torch/a": 1.5,
        "ours/x over torch/b": 0.5,
    }
