"""The report: exact tables, honest sentences, and a page that needs nothing but itself."""

from __future__ import annotations

import base64
import html.parser
import io
import json
import math
import re
import subprocess
import sys

import numpy as np
import pytest

from d3jax.report import page as html_page
from d3jax.report import terminal
from d3jax.report.plots import curves as figures
from d3jax.report.sections import samples as sample_page
from d3jax.results import summary as report
from d3jax.results import tables as rows_file

CLASSES = ("cat", "dog", "<i>$\\cow$</i>")  # neither HTML nor TeX


def row(defense="none", seed=0, acc=0.9, asr=1.0, **more):
    run = {
        "dataset": "digits",
        "model": "vgg",
        "attack": "badnets",
        "poison_rate": 0.1,
        "defense": defense,
        "seed": seed,
    }
    return (
        run
        | {
            "acc": acc,
            "asr": asr,
            "ra": 0.25,
            "der": None,
            "n_clean": 100,
            "n_triggered": 90,
            "seconds": 2.5,
        }
        | more
    )


def sample(attack="badnets", seed=0, targets=None):
    clean = np.full((2, 4, 4, 3), 100, np.uint8)
    triggered = clean.copy()
    triggered[:, 0, 0] = 107
    nan = math.nan
    per_class = {
        "none": {"acc": np.array([0.8, 1.0, nan]), "asr": np.array([nan, 0.9, 1.0])},
        "ft": {"acc": np.array([0.6, 1.0, nan]), "asr": np.array([nan, 0.1, 0.0])},
    }
    none, ft = (np.array([1, 2]), np.array([0, 0])), (np.array([1, 1]), np.array([1, 1]))
    return html_page.Samples(
        attack,
        seed,
        clean,
        triggered,
        np.array([1, 2]),
        CLASSES,
        {"none": none, "ft": ft},
        per_class,
        targets,
    )


def curve(stage, **more):
    lines = [
        {"stage": stage, "step": step, "seconds": 0.1, "loss": 1.0 / step} | more
        for step in (1, 2, 3)
    ]
    return "".join(json.dumps(line) + "\n" for line in lines)


# ------------------------------------------------------------------------------------------------------------------ results.csv


def test_csv_reads_back_what_was_written(tmp_path):
    rows = [
        row(
            acc=0.1 + 0.2,
            asr=None,
            published='Table 2, "ACC"\n92.1',
            width=16,
            flag=True,
            code="007",
            der=1 / 3,
            power="1e-3",
        ),
        row(
            acc=np.float64(1 / 3),
            asr=np.float32(0.1),
            seconds=1e-7,
            seed=np.int64(3),
            published="12",
            extra=math.inf,
        ),
    ]
    rows_file.write_csv(tmp_path / "results.csv", rows)
    back = rows_file.read_csv(tmp_path / "results.csv")
    assert tuple(back[0])[: len(rows_file.COLUMNS)] == rows_file.COLUMNS
    for written, read in zip(rows, back, strict=True):
        assert {name: read[name] for name in written} == written
        assert all(
            type(read[name]) is type(value)
            for name, value in written.items()
            if not isinstance(value, np.generic)
        )
    assert back[1]["width"] is None and back[0]["extra"] is None


def test_csv_of_no_rows_is_a_header(tmp_path):
    rows_file.write_csv(tmp_path / "deep" / "results.csv", [])
    assert (tmp_path / "deep" / "results.csv").read_text() == ",".join(rows_file.COLUMNS) + "\n"
    assert rows_file.read_csv(tmp_path / "deep" / "results.csv") == []


def test_csv_survives_a_failed_write(tmp_path, monkeypatch):
    path = tmp_path / "results.csv"
    rows_file.write_csv(path, [row()])
    before = path.read_bytes()
    with pytest.raises(ValueError, match="row 0 .*lacks the columns .'asr'.*"):
        rows_file.write_csv(path, [{name: value for name, value in row().items() if name != "asr"}])
    monkeypatch.setattr(
        rows_file.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full"))
    )
    with pytest.raises(OSError, match="disk full"):
        rows_file.write_csv(path, [row(), row(seed=1)])
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == [
        "results.csv"
    ]


# ---------------------------------------------------------------------------------------------------------- what the rows say


def test_summary_has_the_hand_computed_numbers():
    rows = [
        row(seed=0, acc=0.90, asr=1.0),
        row(seed=1, acc=0.94, asr=0.9),
        row("ft", 0, acc=0.88, asr=0.6, der=0.5, published="Table 1"),
        row("ft", 1, acc=0.90, asr=0.1, der=0.7, published="none"),
    ]
    none, ft = report.summarise(rows)
    assert [none["defense"], ft["defense"]] == ["none", "ft"]
    assert none["acc"] == pytest.approx(0.92) and none["acc_std"] == pytest.approx(
        0.04 / math.sqrt(2)
    )
    assert none["der"] is None and none["acc_change"] is None and none["n"] == 2
    assert ft["asr"] == pytest.approx(0.35) and ft["asr_std"] == pytest.approx(0.5 / math.sqrt(2))
    assert ft["acc_change"] == pytest.approx(-0.03) and ft["asr_change"] == pytest.approx(-0.6)
    assert ft["der"] == pytest.approx(0.6) and ft["der_std"] == pytest.approx(0.2 / math.sqrt(2))
    assert (ft["kept"], ft["asr_worst"], ft["published"], ft["seconds"]) == (1, 0.6, "Table 1", 2.5)


def test_summary_compares_seed_with_seed_and_leaves_failures_out():
    nothing = {"acc": None, "asr": None, "ra": None}
    failed = row("ft", 0, **nothing, status="failed: nan")
    rows = [row(seed=0, acc=0.5), row(seed=1, acc=0.9), failed, row("ft", 1, acc=0.8, asr=0.0)]
    ft = report.summarise(rows)[1]
    assert ft["acc_change"] == pytest.approx(-0.1), (
        "the change must be against seed 1 alone, the only one that has both"
    )
    assert (ft["n"], ft["failed"], ft["status"], ft["acc_std"]) == (1, 1, "failed: nan", None)


def test_summary_keeps_datasets_and_attacks_apart_in_order():
    rows = [row(attack="sig"), row(), row(dataset="cifar10"), row(attack="sig", seed=1)]
    keys = [(line["dataset"], line["attack"], line["n"]) for line in report.summarise(rows)]
    assert keys == [("digits", "sig", 2), ("digits", "badnets", 1), ("cifar10", "badnets", 1)]


@pytest.mark.parametrize(
    ("asrs", "acc", "words"),
    [
        ((0.0, 0.09), 0.9, "removed"),
        ((0.0, 0.12), 0.9, "weakened"),  # a mean of 6 % does not hide the seed above 10 %
        ((0.0, 0.7), 0.9, "keeps the backdoor on 1 of 2 seeds"),
        ((0.5, 0.7), 0.9, "keeps the backdoor"),
        ((0.0, 0.0), 0.7, "removed, heavy ACC cost"),
    ],
)
def test_verdicts(asrs, acc, words):
    rows = [
        line
        for seed, asr in enumerate(asrs)
        for line in (row(seed=seed), row("ft", seed, acc=acc, asr=asr))
    ]
    assert report.verdict(report.summarise(rows)[1]) == words


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (0.2, 0.0, "no backdoor to remove"),  # whatever made it 0: it never worked
        (0.2, 0.6, "makes a backdoor"),
        (0.6, 0.3, "weakened"),
        (None, 0.3, "weakened"),
        (0.6, 0.6, "keeps the backdoor"),
    ],
)
def test_verdicts_look_at_what_there_was_to_remove(before, after, words):
    assert report.verdict(report.summarise([row(asr=before), row("ft", asr=after)])[1]) == words


def test_a_seed_made_worse_is_not_weakened():
    rows = [
        row(seed=0, asr=0.6),
        row(seed=1, asr=0.1),
        row("ft", 0, asr=0.45),
        row("ft", 1, asr=0.35),
    ]
    assert report.verdict(report.summarise(rows)[1]) == "not weakened"


def test_headline_names_best_worst_and_failed():
    rows = [
        row(acc=0.92, asr=0.994),
        row("ft", acc=0.918, asr=0.87, der=0.56),
        row("d3-code", acc=0.912, asr=0.0, der=0.99),
        row("nc", acc=None, asr=None, status="failed: no label stands out"),
    ]
    assert report.headline(report.summarise(rows)) == (
        "ASR 99.4 % → 0.0 % under d3-code at an ACC cost of 0.8 points; worst of 2: ft, keeps the backdoor, ASR 87.0 % at an ACC "
        "cost of 0.2 points; without result: nc (failed: no label stands out)."
    )


def test_headline_does_not_praise_a_failure():
    lost = report.headline(report.summarise([row(), row("ft", asr=0.9), row("d3", asr=0.6)]))
    assert lost.startswith(
        "no defence removes the backdoor; the best: ASR 100.0 % → 60.0 % under d3"
    )
    assert "(keeps the backdoor)" in lost and "worst of 2: ft, keeps the backdoor" in lost
    weak = report.headline(report.summarise([row(asr=0.08), row("ft", asr=0.0)]))
    assert "does not work even before a defence (ASR 8.0 %)" in weak
    assert (
        report.headline(report.summarise([row()]))
        == "ASR 100.0 % at ACC 90.0 %, no defence was run."
    )
    assert (
        report.headline(report.summarise([row(asr=None)]))
        == "ACC 90.0 %; without a trigger there is no ASR."
    )
    assert (
        report.headline(report.summarise([row("ft", asr=0.02)]))
        == "ASR 2.0 % under ft at ACC 90.0 %."
    )


def test_terminal_table_is_plain_whole_and_shows_changes():
    published = "BackdoorBench, table 3: " + "ACC 92.10 " * 12
    rows = [
        row(seed=0, acc=0.90),
        row(seed=1, acc=0.94),
        row("[red]ft", 0, acc=0.89, asr=0.2, der=0.9, published=published),
        row("[red]ft", 1, acc=0.91, asr=0.1, der=0.9, published=published),
    ]
    lines = terminal.terminal_table(rows).splitlines()
    head, none, ft = lines[1], *(line for line in lines if "badnets" in line)
    assert re.fullmatch(
        r"attack +defense +ACC +change +ASR +change +RA +change +DER +seeds +outcome +published",
        head.strip(),
    )
    assert (
        none.split()[:5] == ["badnets", "none", "92.00", "±", "2.83"] and "backdoor works" in none
    )
    assert ft.split()[:6] == ["badnets", "[red]ft", "90.00", "±", "1.41", "−2.00"]
    assert (
        "15.00 ± 7.07" in ft
        and "−85.00" in ft
        and "0.00" in ft
        and "90.00 ± 0.00" in ft
        and published.strip() in ft
    )
    assert "\x1b" not in "".join(lines) and "…" not in "".join(lines)
    out = io.StringIO()
    terminal.print_table(rows, file=out)
    assert out.getvalue().rstrip("\n") == "\n".join(lines)
    assert "published" not in terminal.terminal_table([row(published="none")])


# ------------------------------------------------------------------------------------------------------------------- the curves


def test_metrics_skip_broken_lines_and_keep_the_later_of_two(tmp_path):
    path = tmp_path / "metrics.jsonl"
    good = [
        {"stage": "a/b/seed3/d3-code", "step": step, "loss": loss}
        for step, loss in ((2, 0.2), (1, 0.9), (1, 0.1))
    ]
    noise = [
        "",
        "[1]",
        '{"stage": "elsewhere", "step": 1}',
        '{"stage": "a/b/seed3/d3-code"}',
        '{"stage": "a/b/seed3/d3-c',
    ]
    path.write_text("\n".join([*map(json.dumps, good), *noise]))
    runs = figures.read_metrics(path)
    assert list(runs) == ["a/b"] and list(runs["a/b"]) == [("d3-code", 3)]
    assert [(record["step"], record["loss"]) for record in runs["a/b"][("d3-code", 3)]] == [
        (1, 0.1),
        (2, 0.2),
    ]
    assert figures.read_metrics(tmp_path / "none.jsonl") == {}


def test_nothing_to_draw_leaves_no_file(tmp_path):
    runs = {("ft", 0): [{"step": 1, "loss": math.nan}, {"step": 2, "loss": None}]}
    assert (
        figures.save_curves(tmp_path / "a.png", runs, figures.REPAIR, figures.palette(["ft"]))
        is None
    )
    empty = {"none": {"acc": np.array([math.nan])}}
    assert figures.save_classes(tmp_path / "a.png", ["x"], empty, figures.palette([])) is None
    assert not list(tmp_path.iterdir())


def test_a_loss_is_drawn_through_stages_that_log_it_by_other_names():
    records = [
        {"step": 1, "loss": 2.0},
        {"step": 2, "loss": 9.0, "clean_loss": 1.0},
        {"step": 3, "accuracy": 0.5},
    ]
    ((name, points),) = figures._lines({("dlp", 0): records}, figures.REPAIR[0])
    assert name == "dlp" and points.tolist() == [[1, 2], [2.0, 1.0]]


def test_every_defence_has_its_own_look():
    looks = figures.palette(["none", *(f"d{i}" for i in range(25)), "d3"])
    assert (
        len(set(looks.values())) == len(looks) == 26
        and looks["d0"] == figures.palette(["d0"])["d0"]
    )


def test_sample_picture_shows_ten_times_the_difference(tmp_path):
    from matplotlib.image import imread

    shown = sample()
    triggered = shown.triggered.copy()
    triggered[1, :, :] = 50  # |100 − 50| · 10 is clipped to white
    picture = (
        imread(figures.save_samples(tmp_path / "s.png", shown.clean, triggered, label_share=0.5))[
            ..., :3
        ]
        * 255
    )
    height, width = picture.shape[:2]

    def at(r, c, y, x):
        return picture[int((r + y) / 3 * height), int((0.5 + (c + x) / 4) * width)].round().tolist()

    assert at(0, 0, 0.2, 0.2) == [100] * 3 and at(1, 0, 0.2, 0.2) == [107] * 3
    assert (
        at(2, 0, 0.2, 0.2) == [70] * 3
        and at(2, 0, 0.6, 0.6) == [0] * 3
        and at(2, 1, 0.6, 0.6) == [255] * 3
    )


def test_class_rates_are_means_over_the_seeds_that_have_them():
    first, second = sample(), sample(seed=1)
    second.per_class["ft"]["acc"] = np.array([0.2, math.nan, math.nan])
    mean = sample_page._mean_per_class([first, second])
    np.testing.assert_allclose(mean["ft"]["acc"], [0.4, 1.0, math.nan])


# --------------------------------------------------------------------------------------------------------------------- the page


class Page(html.parser.HTMLParser):
    """The text and the addresses of a page; raises where its tags do not nest."""

    def __init__(self, path):
        super().__init__()
        self.open, self.words, self.addresses, self.headings, self.tags = [], [], [], [], []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        assert not self.open
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [
            value for name, value in attrs if name in ("src", "href", "srcset", "action", "poster")
        ]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    folder = tmp_path_factory.mktemp("full")
    evil = "<script>alert(1)</script>$\\x"
    ft = row("ft", acc=0.8, asr=0.0, der=0.95, ra=0.85, published="<b>Table</b> & 1")
    rows = [row(), ft, row(attack=evil), row("ft", attack=evil)]
    stages = curve("badnets/seed0/train", accuracy=0.5) + curve(
        "badnets/seed1/ft", watch_asr=0.1, cosine=0.5, distance_ratio=0.2
    )
    (folder / "metrics.jsonl").write_text(
        stages + curve(f"{evil}/seed0/ft") + '{"stage": "badnets/seed0/tr'
    )
    (folder / "config.yaml").write_text("name: <img src=http://evil.example>\n")
    (folder / "environment.json").write_text(json.dumps({"device": "<GPU> & co", "jax": "0.10"}))
    samples = [sample(), sample(seed=1), sample(evil, targets=np.array([0, 1]))]
    return folder, Page(html_page.write_report(folder, rows, samples, "A <title> & more"))


def test_page_needs_no_other_file_and_embeds_every_picture(full):
    folder, page = full
    assert folder / "report.html" in folder.iterdir()
    pictures = [address for address in page.addresses if not address.startswith("#")]
    assert all(address.startswith("data:image/png;base64,") for address in pictures)
    embedded = {base64.b64decode(address.split(",")[1]) for address in pictures}
    saved = {path.name: path.read_bytes() for path in (folder / "figures").iterdir()}
    assert embedded == set(saved.values())
    assert {
        f"badnets-{what}.png" for what in ("samples", "classes", "training", "defenses")
    } <= set(saved)
    assert not re.search(
        r"url\(|@import|(?:src|href)\s*=\s*[\"']?(?:https?:)?//",
        page.source.replace("&lt;img src=http", ""),
    )
    anchors = [address[1:] for address in page.addresses if address.startswith("#")]
    assert len(anchors) == 2 and all(
        f'id="{reference_params}"' in page.source for reference_params in anchors
    )


def test_page_escapes_what_users_named(full):
    _, page = full
    assert (
        "script" not in page.tags
        and "<img src=http" not in page.source
        and "<i>$" not in page.source
    )
    for text in (
        "A <title> & more",
        "<script>alert(1)</script>$\\x",
        "<b>Table</b> & 1",
        CLASSES[2],
        "<GPU> & co",
    ):
        assert text in page.text
    assert "name: <img src=http://evil.example>" in page.text


def test_page_shows_numbers_changes_and_predictions_in_text(full):
    _, page = full
    assert (
        "ASR 100.0 % → 0.0 % under ft at an ACC cost of 10.0 points (removed, heavy ACC cost)."
        in page.text
    )
    for text in (
        "80.00 −10.00",
        "0.00 −100.00",
        "85.00 +60.00",
        "✓ removed, heavy ACC cost",
        "✗ keeps the backdoor",
    ):
        assert text in page.text, text
    assert "class=worse>−10.00" in page.source and "class=better>−100.00" in page.source
    # Sample 0 is a dog, 1 a cow; the target, cat, is the class without an ASR. ft calls the cow a dog.
    assert f"none clean ✓ dog ✓ {CLASSES[2]} none triggered cat → target cat → target" in page.text
    assert "ft clean ✓ dog dog ✗ wrong ft triggered ✓ dog dog ✗ wrong" in page.text
    # With the targets given, the second sample's is dog.
    assert "none triggered cat → target cat ✗ wrong ft clean ✓ dog dog → target" in page.text
    assert "mean over 2 seeds" in page.text and "(max(0, ΔASR) − max(0, ΔACC) + 1) / 2" in page.text


def test_page_leaves_out_what_is_missing(tmp_path):
    bare = Page(html_page.write_report(tmp_path / "bare", [row(), row("ft", asr=0.1)], [], "bare"))
    assert bare.headings == ["What came out", "Before and after", "How to read it"]
    assert (
        "img" not in bare.tags
        and "figure" not in bare.tags
        and not (tmp_path / "bare" / "figures").exists()
    )
    assert Page(html_page.write_report(tmp_path / "empty", [], [], "empty")).headings == []
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "environment.json").write_text('{"jax": "0.')
    (tmp_path / "half" / "metrics.jsonl").write_text(curve("badnets/seed0/train"))
    assert Page(html_page.write_report(tmp_path / "half", [], [], "half")).headings == [
        "badnets in detail"
    ]


def test_a_model_that_guesses_is_named(tmp_path):
    rows = [
        row(acc=0.15, asr=0.9, classes=10),
        row("ft", acc=0.6, asr=0.9, classes=10),
        row("np", acc=0.19, asr=0.0, classes=10),
    ]
    text = Page(html_page.write_report(tmp_path, rows, [], "guesses")).text
    assert (
        "backdoor works, ACC near chance" in text
        and "removed, ACC near chance" in text
        and "keeps the backdoor 60.00" in text
    )
    assert (
        "the model has hardly learned anything (ACC 15.0 %)" in text
        and "a tenth of the way from guessing" in text
    )
    two = report.summarise(
        [row(acc=0.56, classes=2), row("ft", acc=0.54, classes=2), row("np", acc=0.01)]
    )
    assert [one["guesses"] for one in two] == [False, True, False]


def test_without_a_trigger_the_page_speaks_of_acc_alone(tmp_path):
    none = dict.fromkeys(("asr", "ra", "der", "poison_rate"))
    rows = [row(attack="unknown", **none), row("mcl", attack="unknown", **none, search_seconds=7.0)]
    looked = [
        {
            "dataset": "digits",
            "model": "vgg",
            "attack": "unknown",
            "seed": 0,
            "detection": "nc",
            "class": name,
            "norm": norm,
        }
        | {"index": 8.0 - norm, "flagged": norm < 2, "is_target": None}
        for name, norm in (("cat", 1.0), ("dog", 7.0))
    ]
    seen = html_page.Extras(looked, read="a.pt: 9 tensors match.", unknown=["unknown"])
    page = Page(html_page.write_report(tmp_path / "a", rows, [], "suspect", seen))
    assert (
        "nc (seed 0) flags cat; the smallest trigger has an anomaly index of 7.00"
        in page.text.split("A model from elsewhere")[0]
    )
    assert (
        "Robust accuracy" not in page.text
        and "Outcome removed" not in page.text
        and "ASR lower is better" not in page.text
    )
    assert (
        "includes its search for a trigger" in page.text
        and "MCL and NC were trained against one" in page.text
    )
    bare = Page(
        html_page.write_report(tmp_path / "b", rows[:1], [], "suspect", seen._replace(looked=[]))
    )
    assert (
        "no detection looked for a trigger" in bare.text
        and "where a class is flagged" not in bare.text
        and "MCL" not in bare.text
    )


def test_many_attacks_get_an_overview_and_files_of_their_own(tmp_path):
    asrs = {"none": 1.0, "ft": 0.0, "np": 0.7}
    rows = [
        row(defense, attack=attack, asr=asr)
        for attack in ("a/b", "a b")
        for defense, asr in asrs.items()
    ]
    rows[-1] |= {"acc": None, "asr": None, "status": "failed: nan"}
    (tmp_path / "metrics.jsonl").write_text(curve("a/b/seed0/train") + curve("a b/seed0/train"))
    page = Page(html_page.write_report(tmp_path, rows, [], "two"))
    assert (
        page.headings[:2] == ["What came out", "At a glance"]
        and "np ✗ 70.0 90.0 (0.0) ! failed" in page.text
    )
    assert len(list((tmp_path / "figures").iterdir())) == 2


def test_nothing_heavy_is_imported():
    code = "import sys, d3jax.report; print([name for name in ('jax', 'matplotlib', 'rich') if name in sys.modules])"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )


def looked(attack, norms, targets, flagged):
    """Rows of detections.csv for one model."""
    return [
        {"dataset": "d", "model": "m", "attack": attack, "seed": 0, "detection": "nc", "class": f"c{i}", "is_target": i in targets,
         "flagged": i in flagged, "norm": norm, "index": float(i)}
        for i, norm in enumerate(norms)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("targets", "flagged", "right", "words"),
    [
        ({1}, {1}, True, "flags c1 (index of the smallest 1.00); right"),
        ({1}, {1, 2}, False, "flags c1, c2 (index of the smallest 1.00); right, and false alarms"),
        (
            {1},
            set(),
            False,
            "flags nothing (index of the smallest 1.00); finds 0 of 1 targets (c1)",
        ),
        ({0, 1, 2}, {1}, False, "finds 1 of 3 targets (c0, c1, c2)"),
        (set(), set(), True, "no backdoor: right"),
        (set(), {2}, False, "no backdoor: false alarm"),
    ],
)
def test_what_a_detection_came_to(targets, flagged, right, words):
    (found,) = report.detections(looked("badnets", [9.0, 2.0, 8.0], targets, flagged))
    assert (
        found["right"] == right and found["text"].endswith(words) and found["anomaly_index"] == 1.0
    )


def test_a_search_is_told_and_its_time_counts():
    searched = {
        "target": 0,
        "chosen": "flagged with index 4.00",
        "trigger_success": 0.97,
        "search_seconds": 30.0,
    }
    rows = [row(), row("mcl", asr=0.0, seconds=10.0) | searched]
    mine = report.summarise(rows)[1]
    assert (
        mine["seconds"] == 40.0
        and mine["searched"] == "class 0 flagged with index 4.00, trigger turns 97 %"
    )
    nothing = {
        "target": -1,
        "chosen": "none flagged",
        "trigger_success": None,
        "search_seconds": 30.0,
    }
    mine = report.summarise([row(), row("mcl", asr=1.0) | nothing])[1]
    assert (
        report.verdict(mine) == "not repaired: nothing flagged"
        and mine["searched"] == "none flagged"
    )
