"""Tests of the report page: its contents, its escaping, and reports of damaged run folders."""

from __future__ import annotations

import base64
import hashlib
import html.parser
import json
import math
import re
import subprocess
import sys

import pytest

from d3jax.report import __main__ as command
from d3jax.report import make_report, page, rendering, view
from d3jax.report.plots import common
from d3jax.report.sections.curves import runs_of
from d3jax.results import summary as report
from d3jax.results.artifacts import RunFolder
from d3jax.results.outcomes import verdict

from ..helpers.report_runs import CLASSES, HOSTILE, Run, curve, row


class Page(html.parser.HTMLParser):
    """A parser that collects the text, the headings, the addresses and the tags of a page.

    It raises AssertionError if tags do not nest or a tag has an event handler.
    """

    def __init__(self, path):
        super().__init__()
        self.open, self.words, self.addresses, self.headings, self.tags = [], [], [], [], []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        assert not self.open
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        assert not [name for name, _ in attrs if name.startswith("on")]
        self.addresses += [
            value for name, value in attrs if name in ("src", "href", "srcset", "action", "poster")
        ]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def make_full(folder):
    """Write a run with most kinds of node, and return its path.

    It has hostile names, failed and unfinished nodes, and a damaged log.
    """
    run = Run(folder)
    run.attack("clean", False, ())
    for attack in ("badnets", HOSTILE):
        for seed in (0, 1):
            logged = [*curve(accuracy=0.5), {"step": 3, "loss": math.inf}]
            run.model("none", attack, seed, logged=logged)
            run.model(
                "ft",
                attack,
                seed,
                acc=0.8,
                asr=0.0,
                logged=curve(watch_asr=0.1, cosine=0.5, distance_ratio=0.2),
                more={"der": 0.95, "ra": 0.85, "published": "<b>Table</b> & 1"}.items(),
            )
            run.model(HOSTILE, attack, seed, asr=0.9, logged=curve(distance=2.0))
        run.model("nc", attack, status="failed: <img src=http://evil.example>")
        run.model("late", attack, status="", logged=curve()[:1])
        run.features(("none", "ft", HOSTILE), attack)
        run.detection("nc", attack, models=("none", HOSTILE))
        run.landscape(("ft", HOSTILE), attack)
        run.training_time("dlp", attack)
        run.training_time("abl", attack, first="other", rescored=False, loop="isolate")
    both = ([1, 2] * 4, [0] * 8)
    sees = {"none": ([0, 1, 2] * 3, [0] * 9), "ft": ([0, 1, 1] * 3, [0, 1, 1] * 3), HOSTILE: both}
    run.samples(("none", "ft"), "badnets", predictions=sees)
    run.samples(("none", "ft", HOSTILE), HOSTILE, targets=[1] * 8, predictions=sees)
    for attack, asr in (("badnets", 0.9), ("clean", None)):
        for seed in (0, 1):
            run.evolution("slow", attack, seed, asr=asr)
            run.evolution(HOSTILE + "2", attack, seed, 0.1, constant=False, scaled=True, asr=asr)
        run.evolution("broken", attack, status="failed: no memory", asr=asr)
    run.model("none", "clean", asr=None)
    run.forgetting("slow")
    run.write()
    broken = folder / "nodes" / "badnets" / "seed0" / "train" / "metrics.jsonl"
    broken.write_text(broken.read_text() + '[1]\n{"loss": 1}\n\n{"step": 4, "loss')
    (folder / "config.yaml").write_text("name: <img src=http://evil.example>\n")
    (folder / "environment.json").write_text(json.dumps({"device": "<GPU> & co", "jax": "0.10"}))
    return folder


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    folder = make_full(tmp_path_factory.mktemp("runs") / "A <title> & more")
    with pytest.warns(UserWarning, match="2 lines skipped"):
        return folder, Page(make_report(folder))


def report_of(run):
    return Page(make_report(run.write()))


def test_page_needs_no_other_file_and_embeds_every_picture(full):
    folder, page = full
    assert "could not be drawn" not in page.text
    pictures = [address for address in page.addresses if not address.startswith("#")]
    assert all(address.startswith("data:image/png;base64,") for address in pictures)
    embedded = {base64.b64decode(address.split(",")[1]) for address in pictures}
    saved = {path.name: path.read_bytes() for path in (folder / "figures").glob("*.png")}
    assert embedded == set(saved.values())
    assert {
        f"badnets-{what}.png"
        for what in (
            "samples", "classes", "training", "defenses", "nc", "nc-triggers", "features",
            "path", "plane", "taylor", "changes", "evolution", "rates", "energy", "forgetting",
            "dlp-learning", "dlp-scores", "dlp-rescored", "dlp-kept", "abl-scores",
        )
    } <= set(saved)  # fmt: skip
    assert not {"clean-rates.png", "abl-rescored.png"} & set(saved)
    outside = page.source.replace("&lt;img src=http", "")
    assert not re.search(r"url\(|@import|(?:src|href)\s*=\s*[\"']?(?:https?:)?//", outside)
    anchors = [address[1:] for address in page.addresses if address.startswith("#")]
    assert len(anchors) == 3 and all(f'id="{anchor}"' in page.source for anchor in anchors)


def test_content_security_policy_allows_only_the_page_script_and_no_requests(full):
    _, page = full
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page.source)
    (script,) = re.findall(r"<script>(.*?)</script>", page.source, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert script == (rendering.FOLDER / "sort.js").read_text()
    assert (
        policy.startswith("default-src 'none'; img-src data:;") and f"'sha256-{digest}'" in policy
    )
    assert page.tags.count("script") == 1 and "http" not in policy


def test_page_escapes_names_and_texts_of_the_run_folder(full):
    _, page = full
    assert (
        "<img src=http" not in page.source
        and "<i>$" not in page.source
        and "alert(1)</script>" not in page.source
    )
    for text in (
        "A <title> & more",
        HOSTILE,
        HOSTILE + "2",
        "<b>Table</b> & 1",
        CLASSES[2],
        "<GPU> & co",
    ):
        assert text in page.text
    assert "name: <img src=http://evil.example>" in page.text
    assert "failed: <img src=http://evil.example>" in page.text


def test_page_shows_numbers_changes_and_predictions_in_text(full):
    _, page = full
    for text in (
        "80.00 ± 0.00 −10.00",
        "0.00 ± 0.00 −100.00",
        "85.00 ± 0.00 +85.00",
        "✓ removed, large ACC loss",
    ):
        assert text in page.text, text
    assert "✗ kept" in page.text and "! failed: <img" in page.text and "✗ not finished" in page.text
    assert "class=worse>−10.00" in page.source and "class=better>−100.00" in page.source
    cow = CLASSES[2]
    clean, triggered = (
        f"✓ cat ✓ dog ✓ {cow} " * 2 + "✓ cat ✓ dog",
        "✓ cat cat → target cat → target " * 2,
    )
    assert f"none clean {clean} none triggered {triggered}" in page.text
    assert "ft triggered ✓ cat ✓ dog dog ✗ wrong" in page.text
    # With the target dog, the prediction dog of the third sample is a success of the attack, and
    # the prediction cat is an error.
    assert "none triggered ✓ cat cat ✗ wrong cat ✗ wrong" in page.text
    assert "ft triggered ✓ cat ✓ dog dog → target" in page.text
    assert "mean over 2 seeds" in page.text and "(max(0, ΔASR) − max(0, ΔACC) + 1) / 2" in page.text
    assert "PSNR 18.2 dB, SSIM 0.987, L∞ 255 of 255" in page.text


def test_headline_gives_asr_acc_loss_and_outcome_of_the_best_defence(tmp_path):
    run = Run(tmp_path / "run")
    run.model()
    run.model("ft", acc=0.8, asr=0.0)
    best = (
        "With ft, ASR changes from 100.0 % to 0.0 % and ACC falls by 10.0 points "
        "(outcome “removed, large ACC loss”)."
    )
    assert f"badnets : {best}" in report_of(run).text


def test_page_shows_detections_features_landscapes_and_training_time_defences(full):
    _, page = full
    for text in (
        "nc, seed 0: the bars show the norm of the inverted trigger of each class",
        "Flagged (coloured): cat (norm 2.0, index 6.10)", "★ marks the attacker's target: cat.",
        "do not count: " + CLASSES[2], "the inverted trigger leads to cat",
        "Distance to clean twin lower is better", "none 0.900 0.400", "ft 0.700 0.100",
        "Class cat seed 0; flagged; score 6.10 none 97.00", "badnets, seed 0: nc flags cat",
        "Repaired model Loss clean, t = 1", "½ΔᵀHΔ",
        "Largest eigenvalues of the Hessian: 12.5, 3.25.",
        "dlp: learning curves of the first training stage on the poisoned set",
        "of the lowest 1 %", "cross-entropy 0.890 80.0", "dlp 20 75.0 50.0 1.23",
        "abl 20 75.0 50.0 1.23",
    ):  # fmt: skip
        assert text in page.text, text


def test_page_shows_evolution_runs_outside_the_results_table(full):
    _, page = full
    for text in (
        "survives ≥ 4.0 of 4 updates (ASR ≥ 50 %) with", "broken, seed 0: ! failed: no memory",
        "≥ 4.0", "Lines are means over 2 seeds, bands are one standard deviation",
        "Learning rate at every step of an update", "S ASR ≥ 0.9", "updates survived",
        "3 evolution runs",
        "eigenspaces of the fresh images' second moment",
    ):  # fmt: skip
        assert text in page.text, text
    table = page.text.split("Results before and after")[1].split("Definitions")[0]
    assert "slow" not in table and "broken" not in table


@pytest.fixture
def blocked(tmp_path):
    """Return Python code that blocks the import of jax and then runs the report command."""
    return (
        "import sys\n"
        "class Blocked:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name.split('.')[0] in ('jax', 'jaxlib', 'flax'): "
        "raise ImportError(f'{name} is blocked')\n"
        "sys.meta_path.insert(0, Blocked())\n"
        "from d3jax.report.__main__ import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )


def test_report_command_reproduces_every_file_byte_for_byte_without_jax(full, blocked):
    folder, _ = full
    made = [folder / "report.html", *folder.glob("*.csv"), *(folder / "figures").iterdir()]
    before = {path: path.read_bytes() for path in made}
    for path in made:
        path.unlink()
    done = subprocess.run(
        [sys.executable, "-c", blocked, str(folder)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, str(folder / "report.html")), done.stderr
    assert len(before) > 25 and {path: path.read_bytes() for path in made} == before


def test_an_unreadable_run_folder_gives_a_one_line_error_and_exit_code_2(tmp_path, capsys):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "metrics.jsonl").write_text("")
    Run(tmp_path / "broken").write()
    (tmp_path / "broken" / "study.json").write_text('{"format": 1, "attacks": [')
    Run(tmp_path / "newer").write()
    (tmp_path / "newer" / "study.json").write_text('{"format": 99}')
    for name, words in (
        ("missing", "not a run folder of d3jax"),
        ("old", "written by an earlier d3jax"),
        ("broken", "it is damaged"),
        ("newer", "layout 99"),
    ):
        assert command.main([str(tmp_path / name)]) == 2
        printed = capsys.readouterr()
        assert (
            printed.out == "" and printed.err.startswith("d3jax: ") and printed.err.count("\n") == 1
        )
        assert words in printed.err


def test_a_failing_section_shows_its_error_and_leaves_the_others_intact(tmp_path, monkeypatch):
    def broken(study_or_view):
        raise RuntimeError("<b>lost</b>")

    run = Run(tmp_path / "run")
    run.model(logged=curve())
    run.samples()
    monkeypatch.setattr(page, "OVERVIEW", (("", broken), *page.OVERVIEW))
    monkeypatch.setattr(page, "DETAILS", (("", broken), *page.DETAILS))
    made = report_of(run)
    assert (
        made.text.count("A part of this section could not be drawn: RuntimeError: <b>lost</b>") == 2
    )
    assert "backdoor works" in made.text and made.tags.count("img") == 3


def test_damaged_arrays_leave_out_only_their_section(tmp_path):
    run = Run(tmp_path / "run")
    run.model(logged=curve())
    run.landscape(("ft",))
    run.write()
    (next(run.path.rglob("arrays.npz"))).write_bytes(b"no archive")
    with pytest.warns(UserWarning, match="arrays.npz is damaged: left out"):
        made = Page(make_report(run.path))
    assert "Losses along the line" not in made.source and "Training curves" in made.source


def test_page_leaves_out_sections_whose_nodes_or_files_are_missing(tmp_path):
    run = Run(tmp_path / "bare")
    for label in ("none", "ft"):
        run.node("repair", "badnets", label, label, tables={"results": [row(label, asr=0.1)]})
    bare = report_of(run)
    assert bare.headings == ["Main results", "Results before and after each defence", "Definitions"]
    assert not {"img", "figure"} & set(bare.tags) and not (tmp_path / "bare" / "figures").exists()
    assert report_of(Run(tmp_path / "empty")).headings == []
    half = Run(tmp_path / "half")
    half.node("victim", "badnets", "train", "none", status="", logged=curve())
    half.write()
    (half.path / "environment.json").write_text('{"jax": "0.')
    assert "badnets in detail" in Page(make_report(half.path)).headings


def test_pictures_of_an_earlier_page_are_deleted_and_others_stay(tmp_path):
    run, figures = Run(tmp_path / "run"), tmp_path / "run" / "figures"
    run.model()
    figures.mkdir()
    for name in ("earlier.png", "own.png", "notes.txt"):
        (figures / name).touch()
    (tmp_path / "run" / "outside.png").touch()
    listed = ["earlier.png", "../outside.png", "notes.txt", 3]
    for content in (json.dumps(listed), "damaged", "[]"):
        (figures / "made.json").write_text(content, encoding="utf8")
        report_of(run)
    kept = ["badnets-classes.png", "made.json", "notes.txt", "own.png"]
    assert sorted(path.name for path in figures.iterdir()) == kept
    assert json.loads((figures / "made.json").read_text("utf8")) == ["badnets-classes.png"]
    assert (tmp_path / "run" / "outside.png").exists()


def test_page_names_models_with_an_accuracy_near_chance(tmp_path):
    run = Run(tmp_path / "run")
    for label, acc, asr in (("none", 0.15, 0.9), ("ft", 0.6, 0.9), ("np", 0.19, 0.0)):
        run.model(label, acc=acc, asr=asr, more={"classes": 10}.items())
    text = report_of(run).text
    assert "ACC near chance" in text and "backdoor works, ACC" not in text
    assert "kept 60.00" in text and "ACC near chance 19.00" in text
    assert "The model has learned almost nothing (ACC 15.0 %)" in text
    assert "10 % of the way from chance" in text
    two = report.summarise(
        [row(acc=0.56, classes=2), row("ft", acc=0.54, classes=2), row("np", acc=0.01)]
    )
    assert [one["guesses"] for one in two] == [False, True, False]
    assert [verdict(one) for one in two[:2]] == ["backdoor works", "model lost"]


def external(path, detected=True):
    """Return a run of an external model, with a detection and a repair if `detected`."""
    run = Run(path, external="a.pt: 9 tensors match.")
    run.attack("unknown", False, ())
    none = dict.fromkeys(("ra", "der", "poison_rate"))
    run.model("none", "unknown", kind="external_model", asr=None, more=none.items(), logged=curve())
    if detected:
        run.model(
            "mcl", "unknown", acc=0.85, asr=None, more=(none | {"search_seconds": 7.0}).items()
        )
        run.samples(("none", "mcl"), "unknown", stamped=False)
        run.features(("none", "mcl"), "unknown", inverted=True)
        run.detection("nc", "unknown", models=("none", "mcl"), known=False)
    return run


def test_page_of_an_external_model_shows_acc_and_detections_but_no_asr(tmp_path):
    made = report_of(external(tmp_path / "a"))
    assert "nc (seed 0) flags cat. Its statistic is 6.10" in made.text.split("External model")[0]
    assert (
        "a.pt: 9 tensors match." in made.text
        and "Its accuracy on the clean test images is 90.00 %." in made.text
    )
    assert (
        "After repair, its accuracy is 85.00 % with mcl." in made.text
        and "trained elsewhere" in made.text
    )
    assert "Robust accuracy" not in made.text and "Outcome removed" not in made.text
    assert "ASR lower is better" not in made.text and "not known whether this is right" in made.text
    assert (
        "includes the search for its trigger" in made.text
        and "they train against an inverted trigger" in made.text
    )
    assert "of images with the inverted trigger" in made.source and "★" not in made.text
    assert (
        made.text.count("Class cat seed 0; flagged") == 1 and "could not be drawn" not in made.text
    )
    bare = report_of(external(tmp_path / "b", detected=False))
    assert "no detection searched for a trigger" in bare.text
    assert "A flagged class" not in bare.text and "MCL" not in bare.text


def test_many_attacks_get_an_overview_and_files_of_their_own(tmp_path):
    run = Run(tmp_path / "run")
    for attack in ("a/b", "a b"):
        run.model("none", attack, logged=curve())
        run.model("ft", attack, asr=0.0)
        run.model("np", attack, asr=0.7, status="ok" if attack == "a/b" else "failed: nan")
    made = report_of(run)
    assert made.headings[:2] == ["Main results", "Overview"]
    assert "np ✗ 70.0 90.0 (0.0) ! failed" in made.text
    assert len(list((tmp_path / "run" / "figures").glob("*.png"))) == 4


def test_training_curves_leave_out_evolution_runs_and_loops_share_a_style(tmp_path):
    run = Run(tmp_path / "run")
    run.model(logged=curve())
    run.training_time("abl", loop="isolate")
    run.evolution("slow")
    study = view.study_of(RunFolder(run.write()), {})
    (one,) = view.views_of(study)
    runs = runs_of(one, "repair", "training_time")
    assert list(runs) == [("abl", 0), ("abl/isolate", 0)]
    assert common.style_of("abl/isolate", {"abl": ("#123456", "-")})["color"] == "#123456"
    assert list(runs_of(one, "victim")) == [("none", 0)]


def test_importing_the_report_does_not_import_jax_matplotlib_or_rich():
    code = (
        "import sys, d3jax.report; "
        "print([name for name in ('jax', 'matplotlib', 'rich') if name in sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )
