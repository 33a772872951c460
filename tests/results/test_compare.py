"""Tests of the leaderboard over several runs: pooling of rows, ranking, and the written files."""

from __future__ import annotations

import html.parser
import math
import re
import statistics
import subprocess
import sys

import pytest

from d3jax.compare import main
from d3jax.report.comparison import leaderboard_html
from d3jax.results.compare import COLUMNS, case_name, leaderboard, net_name
from d3jax.results.compared_runs import read_runs
from d3jax.results.ranking import rank
from d3jax.results.tables import read_csv

from ..helpers.browser import Page
from ..helpers.run_folders import node_of, result_row, without_numbers, write_run

ATTACKS = ("badnets", "blended", "sig", "wanet", "bpp", "lf")
DEFENSES = {"finetune": 0.5, "d3": 0.03, "mcl": 0.08, "nc": 0.3, "abl": 0.2}


def victim_and(defenses, seed=0, **values):
    """Return the rows of one attack: the victim, and defences with these ASRs and its ACC."""
    rows = [result_row(seed=seed, **values)]
    for name, asr in defenses.items():
        numbers = {"asr": asr, "der": (1.0 - asr + 1) / 2, "ra": 1 - asr}
        rows.append(result_row(defense=name, seed=seed, **values | numbers))
    return rows


def board_of(*folders):
    (board,) = leaderboard(read_runs(folders))
    return board


def by_name(board):
    return {(row["case"], row["defense"]): row for row in board.rows}


BADNETS = "badnets (10\u00a0%)"


def test_numbers_are_mean_and_sample_deviation_over_seeds(tmp_path):
    rows = [
        row for seed, asr in enumerate((0.1, 0.2, 0.6)) for row in victim_and({"d3": asr}, seed)
    ]
    rows[1]["published"] = rows[3]["published"] = "90.77/0.74"
    row = by_name(board_of(write_run(tmp_path / "a", rows)))[BADNETS, "d3"]
    assert row["asr"] == pytest.approx(0.3)
    assert row["asr_std"] == pytest.approx(statistics.stdev((0.1, 0.2, 0.6)))
    assert row["der"] == pytest.approx(0.85) and row["acc_std"] == 0.0
    assert (row["seeds"], row["failed"], row["published"]) == (3, 0, "90.77/0.74")
    assert row["outcome"] == "kept on 1 of 3 seeds" and row["seconds"] == 2.5


def test_seeds_of_several_runs_are_pooled_where_the_settings_agree(tmp_path):
    runs = [
        write_run(tmp_path / f"run{seed}", victim_and({"d3": 0.1 * seed}, seed))
        for seed in (0, 1, 2)
    ]
    row = by_name(board_of(*runs))[BADNETS, "d3"]
    assert (row["seeds"], row["duplicates"]) == (3, 0)
    assert row["runs"] == "run0, run1, run2" and row["asr"] == pytest.approx(0.1)


def test_a_result_that_two_runs_have_counts_once(tmp_path):
    rows = victim_and({"d3": 0.1})
    again = [row | {"seconds": 99.0} for row in rows] + victim_and({"d3": 0.3}, seed=1)
    board = board_of(write_run(tmp_path / "a", rows), write_run(tmp_path / "b", again))
    row = by_name(board)[BADNETS, "d3"]
    assert (row["seeds"], row["duplicates"], row["runs"]) == (2, 1, "a, b")
    assert row["asr"] == pytest.approx(0.2)
    assert by_name(board)[BADNETS, "none"]["duplicates"] == 1


def test_the_same_folder_twice_is_one_run(tmp_path):
    folder = write_run(tmp_path / "a", victim_and({"d3": 0.1}))
    board = board_of(folder, tmp_path / "." / "a")
    assert by_name(board)[BADNETS, "d3"]["duplicates"] == 0


def test_a_result_replaces_a_failure_of_the_same_seed_in_another_run(tmp_path):
    rows = victim_and({"d3": 0.1})
    failed = [rows[0], without_numbers(rows[1], "failed: out of memory")]
    for first, second in (("a", "b"), ("c", "d")):
        runs = [write_run(tmp_path / first, failed), write_run(tmp_path / second, rows)]
        row = by_name(board_of(*runs))[BADNETS, "d3"]
        assert (row["seeds"], row["failed"], row["outcome"]) == (1, 0, "weakened")
        failed, rows = rows, failed


def test_a_failed_run_is_counted(tmp_path):
    rows = victim_and({"d3": 0.05}) + victim_and({"d3": 0.05}, seed=1)
    rows[-1] = without_numbers(rows[-1], "failed: the loss became NaN")
    row = by_name(board_of(write_run(tmp_path / "a", rows)))[BADNETS, "d3"]
    assert (row["seeds"], row["failed"]) == (1, 1)
    assert row["outcome"] == "removed, failed on 1 of 2 seeds" and row["acc_std"] is None


def test_a_defence_with_other_settings_has_a_row_for_each_run(tmp_path):
    def config(lam):
        entries = [{"name": "d3", "label": "d3", "lam": lam}, {"name": "nc", "label": "nc"}]
        return {"defenses": entries}

    rows = victim_and({"d3": 0.1, "nc": 0.2})
    other = victim_and({"d3": 0.3, "nc": 0.2}) + victim_and({"d3": 0.3}, attack="sig")
    board = board_of(
        write_run(tmp_path / "a", rows, config(1.0)), write_run(tmp_path / "b", other, config(2.0))
    )
    names = {case: [d for c, d in by_name(board) if c == case] for case, _ in by_name(board)}
    assert names[BADNETS] == ["none", "d3 [a]", "d3 [b]", "nc"]
    assert names["sig (10\u00a0%)"] == ["none", "d3 [b]"]
    assert by_name(board)[BADNETS, "none"]["duplicates"] == 1


@pytest.mark.parametrize(
    "changed", [{"defenses": [{"name": "d3", "lam": 2.0}]}, {"reserved": {"fraction": 0.1}}]
)
def test_seeds_of_other_settings_are_not_pooled(tmp_path, changed):
    config = {"defenses": [{"name": "d3", "lam": 1.0}], "reserved": {"fraction": 0.05}}
    first = write_run(tmp_path / "a", victim_and({"d3": 0.1}), config)
    second = write_run(tmp_path / "b", victim_and({"d3": 0.3}, seed=1), config | changed)
    found = by_name(board_of(first, second))
    assert {defense: row["seeds"] for (_, defense), row in found.items()} == {
        "none": 2,
        "d3 [a]": 1,
        "d3 [b]": 1,
    }


def test_contradicting_numbers_of_equal_settings_have_a_row_for_each_run(tmp_path):
    rows, other = victim_and({"d3": 0.1, "nc": 0.2}), victim_and({"d3": 0.3, "nc": 0.2})
    board = board_of(write_run(tmp_path / "a", rows), write_run(tmp_path / "b", other))
    assert [d for _, d in by_name(board)] == ["none", "d3 [a]", "d3 [b]", "nc"]


@pytest.mark.parametrize("how", ["settings", "numbers", "unreadable"])
def test_victims_of_other_or_unknown_settings_or_other_numbers_are_not_pooled(tmp_path, how):
    config = {"train": {"steps": 7}} if how == "settings" else {}
    rows = victim_and({"d3": 0.1}, acc=0.8 if how == "numbers" else 0.9)
    runs = [
        write_run(tmp_path / "a", victim_and({"d3": 0.1})),
        write_run(tmp_path / "b", rows, config),
    ]
    if how == "unreadable":
        (runs[1] / "config.yaml").write_text("a: [")
    boards = leaderboard(read_runs(runs))
    cases = [case for board in boards for case, defense in by_name(board) if defense == "none"]
    if how == "unreadable":
        assert [board.label[-4:] for board in boards] == [" [a]", " [b]"]
    else:
        assert cases == [f"{BADNETS} [a]", f"{BADNETS} [b]"]
    assert all(row["seeds"] == 1 for board in boards for row in board.rows)


def test_other_nets_data_and_classes_are_boards_of_their_own(tmp_path):
    runs = [
        write_run(tmp_path / str(number), victim_and({"d3": 0.1}, **values))
        for number, values in enumerate(
            ({}, {"net": "width=16"}, {"dataset": "svhn"}, {"model": "vgg19_bn"}, {"classes": 20})
        )
    ]
    assert [board.label for board in leaderboard(read_runs(runs))] == [
        "PreActResNet18 width=64 on cifar10, 10 classes",
        "PreActResNet18 width=16 (narrow) on cifar10, 10 classes",
        "PreActResNet18 width=64 on svhn, 10 classes",
        "VGG19-BN width=64 on cifar10, 10 classes",
        "PreActResNet18 width=64 on cifar10, 20 classes",
    ]


def test_other_settings_of_one_data_set_are_boards_of_their_own(tmp_path):
    runs = [
        write_run(tmp_path / name, victim_and({"d3": 0.1}), {"dataset": {"size": size}})
        for name, size in (("a", 12), ("b", 16))
    ]
    labels = [board.label for board in leaderboard(read_runs(runs))]
    assert [label.split(" classes")[1] for label in labels] == [" [a]", " [b]"]


def test_poison_rates_are_cases_of_their_own(tmp_path):
    low = victim_and({"d3": 0.2}, poison_rate=0.005)
    runs = [write_run(tmp_path / "a", victim_and({"d3": 0.1})), write_run(tmp_path / "b", low)]
    board = board_of(*runs)
    assert all(row["seeds"] == 1 for row in board.rows)
    assert {row["case"] for row in board.rows} == {BADNETS, "badnets (0.5\u00a0%)"}
    assert case_name({"attack": "unknown", "poison_rate": None}) == "unknown"


@pytest.mark.parametrize(
    "model, net, name",
    [
        ("preact_resnet18", "width=64", "PreActResNet18 width=64"),
        ("preact_resnet18", "width=16", "PreActResNet18 width=16 (narrow)"),
        ("vgg19_bn", "width=128 classifier=linear", "VGG19-BN width=128 classifier=linear (wide)"),
        ("wide_resnet", "depth=16 width=1", "WideResNet depth=16 width=1"),
        ("small", "", "small"),
    ],
)
def test_nets_are_named_with_their_settings(model, net, name):
    assert net_name(model, net) == name


def test_rows_name_the_d3jax_commits_of_their_results(tmp_path):
    later = [row | {"commit": "def"} for row in victim_and({"d3": 0.1}, seed=1)]
    runs = [write_run(tmp_path / "a", victim_and({"d3": 0.1})), write_run(tmp_path / "b", later)]
    board = board_of(*runs)
    assert by_name(board)[BADNETS, "d3"]["commits"] == "abc, def"
    assert "2 versions of d3jax (commits abc, def)" in leaderboard_html([board], ["a", "b"])


def test_a_failed_detection_is_not_ranked_as_a_defence(tmp_path):
    failed = without_numbers(result_row(defense="all"), "failed: out of memory")
    more = [node_of(failed, "model_detection")]
    board = board_of(write_run(tmp_path / "a", victim_and({"d3": 0.1}), more=more))
    assert by_name(board)[BADNETS, "all"]["kind"] == "detection"
    assert not board.ranking.without and len(board.ranking.places) == 1


# ----------------------------------------------------------------------------------------- ranking


def ranked(ders, failed=0):
    """Return the ranking of defences with the DERs `ders[defense][case]`."""
    cells = [(defense, case) for defense, cases in ders.items() for case in cases]
    rows = [
        {
            "kind": "defense",
            "defense": defense,
            "case": case,
            "der": ders[defense][case],
            "acc": 0.9,
            "asr": 0.1,
            "asr_worst": 0.2,
            "failed": failed,
            "outcome": "removed, large ACC loss",
        }
        for defense, case in cells
    ]
    return rank(rows)


def places(ranking):
    return [(place.defense, place.rank, place.tied) for place in ranking.places]


def test_defences_are_ranked_by_their_mean_der():
    found = ranked(
        {"a": {"x": 0.6, "y": 0.7}, "b": {"x": 0.9, "y": 0.8}, "c": {"x": 0.5, "y": 0.5}}
    )
    assert places(found) == [("b", 1, False), ("a", 2, False), ("c", 3, False)]
    assert found.cases == ["x", "y"] and not found.without
    assert found.places[0].der == pytest.approx(0.85) and found.places[0].removed == 2
    assert found.places[0].spread == pytest.approx(math.sqrt(0.005))


def test_equal_defences_share_the_better_rank():
    found = ranked({"a": {"x": 0.7}, "b": {"x": 0.70001}, "c": {"x": 0.9}, "d": {"x": 0.1}})
    assert places(found) == [("c", 1, False), ("a", 2, True), ("b", 2, True), ("d", 4, False)]
    assert found.places[0].spread is None


def test_only_attacks_that_all_compared_defences_have_count():
    found = ranked({"a": {"x": 0.6, "y": 0.9, "z": 0.9}, "b": {"x": 0.7, "y": None, "z": 0.7}})
    assert places(found) == [("a", 1, False), ("b", 2, False)]
    assert found.cases == ["x", "z"] and found.without == {"y": "no DER of b"}
    assert found.places[0].der == pytest.approx(0.75)


def test_a_defence_with_a_der_under_few_attacks_is_left_out_of_the_ranking():
    full = dict.fromkeys("vwxyz", 0.8)
    found = ranked({"a": full, "b": full, "few": {"v": 1.0}, "never": {"v": None}})
    assert [place.defense for place in found.places] == ["a", "b"] and len(found.cases) == 5
    assert found.without == {
        "few": "a DER under 1 of 5 attacks",
        "never": "a DER under 0 of 5 attacks",
    }


def test_no_common_attack_means_no_ranking():
    found = ranked({"a": {"x": 0.6, "y": None}, "b": {"x": None, "y": 0.7}})
    assert not found.places and set(found.without) == {"x", "y"}


def test_evolutions_are_listed_and_not_ranked(tmp_path):
    rows = victim_and({"d3": 0.1})
    drift = result_row(defense="drift", asr=0.4) | {"survived_0.5": 3}
    waiting = without_numbers(result_row(defense="later"), "not finished: no model yet")
    folder = write_run(tmp_path / "a", [*rows, drift, waiting], evolutions=["drift", "later"])
    board = board_of(folder)
    assert [place.defense for place in board.ranking.places] == ["d3"]
    assert {row["defense"]: row["kind"] for row in board.rows} == {
        "none": "victim",
        "d3": "defense",
        "drift": "evolution",
        "later": "evolution",
    }


# --------------------------------------------------------------------------------------- the files


class Outside(html.parser.HTMLParser):
    """A parser that collects the addresses a page would fetch and asserts that its tags nest."""

    def __init__(self):
        super().__init__()
        self.found, self.open = [], []

    def handle_starttag(self, tag, attributes):
        self.found += [v for k, v in attributes if k in ("src", "href") and v[:1] != "#"]
        if tag not in ("meta", "br", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def realistic_runs(folder):
    """Write three runs of different nets: 6 attacks × 5 defences × 3 seeds each."""
    nets = (("preact_resnet18", "width=64", 10), ("preact_resnet18", "width=16", 10))
    runs = []
    for number, (model, net, classes) in enumerate((*nets, ("vgg19_bn", "width=64", 43))):
        shared = {"model": model, "net": net, "classes": classes}
        rows = []
        for place, attack in enumerate(ATTACKS):
            for seed in range(3):
                found = {
                    name: asr * (1 + place / 9) * (1 + seed / 20) for name, asr in DEFENSES.items()
                }
                rows += victim_and(found, seed, attack=attack, **shared)
        rows[-1] = without_numbers(rows[-1], "failed: the loss became NaN")
        runs.append(write_run(folder / f"run{number}", rows))
    return runs


def test_the_command_writes_three_files(tmp_path, capsys):
    runs = [*map(str, realistic_runs(tmp_path))]
    assert main([*runs, "--out", str(tmp_path / "out")]) == 0
    assert "leaderboard.html" in capsys.readouterr().out
    rows = read_csv(tmp_path / "out/leaderboard.csv")
    assert tuple(rows[0]) == COLUMNS and len(rows) == 3 * len(ATTACKS) * (1 + len(DEFENSES))
    assert {row["rank"] for row in rows if row["defense"] == "d3"} == {1}
    text = (tmp_path / "out/leaderboard.md").read_text()
    assert "## PreActResNet18 width=16 (narrow) on cifar10, 10 classes" in text
    assert all(line.count(" | ") in (7, 11) for line in text.splitlines() if line[:1] == "|")


def test_the_page_needs_no_other_file_and_escapes_names(tmp_path):
    rows = victim_and({"<b>d3|": 0.1}, attack="<script>alert(1)</script>")
    folder = write_run(tmp_path / "a", rows)
    assert main([str(folder), "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out/leaderboard.html").read_text()
    parser = Outside()
    parser.feed(page)
    assert not parser.found and not parser.open
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page and "<b>d3" not in page
    assert "url(" not in page and "@import" not in page
    assert "\\<b\\>d3\\|" in (tmp_path / "out/leaderboard.md").read_text()


def test_the_page_says_what_is_compared_and_left_out(tmp_path):
    rows = victim_and({"d3": 0.1, "nc": 0.2}) + victim_and({"d3": 0.1}, attack="sig")
    rows += [result_row(defense="drift", asr=0.4) | {"survived_0.5": 3}]
    folder = write_run(tmp_path / "a", rows, evolutions=["drift"])
    main([str(folder), "--out", str(tmp_path / "out")])
    page = (tmp_path / "out/leaderboard.html").read_text()
    assert "Left out: sig (10\u00a0%) (no DER of nc)" in page
    assert "1 evolution run, not ranked" in page and "Evolution runs are listed below" in page
    assert "counts once" in re.sub(r"\s+", " ", page)


def test_the_page_numbers_the_runs_if_rows_come_from_different_runs(tmp_path):
    runs = [
        write_run(tmp_path / "first", victim_and({"d3": 0.1})),
        write_run(tmp_path / "second", victim_and({"nc": 0.3}, seed=1)),
    ]
    main([*map(str, runs), "--out", str(tmp_path / "out")])
    page = (tmp_path / "out/leaderboard.html").read_text()
    assert "<b>1</b> first, <b>2</b> second" in page
    assert '<td class=soft title="first, second">1, 2</td>' in page
    assert '<td class=soft title="second">2</td>' in page


@pytest.mark.parametrize("arguments", [[], ["run"], ["missing", "--out", "out"]])
def test_wrong_arguments_give_a_one_line_error_and_exit_code_2(
    tmp_path, capsys, monkeypatch, arguments
):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.err.startswith("d3jax: ") and said.err.count("\n") == 1 and not said.out


def test_an_old_run_folder_is_refused(tmp_path, capsys):
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    assert main([str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "written by an earlier d3jax" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_command_needs_no_jax(tmp_path):
    folder = write_run(tmp_path / "a", victim_and({"d3": 0.1}))
    code = (
        "import sys; sys.modules['jax'] = sys.modules['flax'] = None\n"
        "from d3jax.compare import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, str(folder), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------------------------- the browser


@pytest.mark.slow
def test_the_page_sorts_in_a_browser_and_fetches_nothing(tmp_path):
    main([*map(str, realistic_runs(tmp_path)), "--out", str(tmp_path)])
    with Page(tmp_path / "leaderboard.html") as page:
        column = "#board1 table.board tbody td:nth-of-type(4)"
        before = page.texts(column)
        page.click("#board1 table.board th:nth-child(5)")
        after = page.texts(column)
        values = [float(text.split(" ")[0].replace("−", "-")) for text in after]
        assert values in (sorted(values), sorted(values, reverse=True))
        assert sorted(before) == sorted(after) and before != after
        page.click("#board1 table.board th:nth-child(5)")
        assert page.texts(column) != after
        assert page.evaluate("document.querySelectorAll('[aria-sort$=ending]').length") == 1
        assert not page.broken_pictures() and not page.errors and not page.requests
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.slow
def test_the_browser_helper_sees_errors_requests_and_broken_pictures(tmp_path):
    (tmp_path / "page.html").write_text(
        "<link rel=stylesheet href=missing.css><img alt=lost src=data:image/png;base64,AAAA>"
        "<script>console.error('seen'); setTimeout(() => {throw Error('thrown')})</script>"
    )
    with Page(tmp_path / "page.html") as page:
        page.evaluate("new Promise(done => setTimeout(done, 100))")
        found = " ".join(page.errors)
        assert "seen" in found and "thrown" in found
        assert [address.rsplit("/", 1)[1] for address in page.requests] == ["missing.css"]
        assert page.broken_pictures() == ["lost"]
        assert "stylesheet" in page.html()


def test_a_file_in_place_of_the_output_folder_is_refused_and_left_as_it_is(tmp_path, capsys):
    folder = write_run(tmp_path / "a", victim_and({"d3": 0.1}))
    taken = tmp_path / "notes.yaml"
    taken.write_text("mine")
    assert main([str(folder), "--out", str(taken)]) == 2
    assert f"--out: {taken} is a file, want a folder" in capsys.readouterr().err
    assert taken.read_text() == "mine"
