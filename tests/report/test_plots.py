"""Tests of the report's figures: the marks that they draw, and no file without data."""

from __future__ import annotations

import math

import numpy as np

from d3jax.report.plots import classes, common, curves, samples, scores
from d3jax.report.sections.classes import class_rates

from ..helpers.report_runs import curve


def test_figures_with_nothing_to_draw_write_no_file(tmp_path):
    runs = {("ft", 0): [{"step": 1, "loss": math.nan}, {"step": 2, "loss": None}]}
    assert (
        curves.save_curves(tmp_path / "a.png", runs, curves.REPAIR, common.palette(["ft"])) is None
    )
    empty = {"none": {"acc": np.array([math.nan])}}
    assert classes.save_classes(tmp_path / "a.png", ["x"], empty, common.palette([])) is None
    assert common.save_panels(tmp_path / "a.png", [None], 1, 2.0) is None
    assert not list(tmp_path.iterdir())


def test_loss_curve_prefers_clean_loss_and_skips_records_without_a_loss():
    records = [
        {"step": 1, "loss": 2.0},
        {"step": 2, "loss": 9.0, "clean_loss": 1.0},
        {"step": 3, "accuracy": 0.5},
    ]
    ((name, points),) = curves.curves_of({("dlp", 0): records}, curves.REPAIR[0])
    assert name == "dlp" and points.tolist() == [[1, 2], [2.0, 1.0]]


def test_seeds_of_a_defence_are_one_line_with_a_gap_and_a_dot_at_each_end():
    runs = {("ft", 0): curve((1, 2)), ("ft", 1): curve((1, 2, 4)), ("d3", 0): curve((1, 2))}
    panel = curves.panel_of(
        curves.REPAIR[0], curves.curves_of(runs, curves.REPAIR[0]), common.palette(["ft", "d3"])
    )
    ft, d3 = panel.marks
    assert (
        ft.args[0][[0, 1, 3, 4, 5]].tolist() == [1, 2, 1, 2, 4]
        and np.isnan(ft.args[0][[2, 6]]).all()
    )
    assert ft.style["markevery"] == [1, 5] and d3.style["markevery"] == [1]
    assert (ft.style["label"], d3.style["label"]) == ("ft", "d3")


def test_runs_of_very_different_lengths_are_drawn_by_their_progress():
    runs = {("ft", 0): curve((1, 10)), ("d3", 0): curve((1, 1000))}
    panel = curves.panel_of(
        curves.REPAIR[0], curves.curves_of(runs, curves.REPAIR[0]), common.palette(["ft", "d3"])
    )
    assert "progress" in panel.options["xlabel"]
    assert [mark.args[0][1] for mark in panel.marks] == [100, 100]


def test_every_defence_has_its_own_style():
    styles = common.palette(["none", *(f"d{i}" for i in range(25)), "d3"])
    assert len(set(styles.values())) == len(styles) == 26
    assert styles["d0"] == common.palette(["d0"])["d0"]


def test_sample_picture_shows_ten_times_the_difference(tmp_path):
    from matplotlib.image import imread

    clean = np.full((2, 4, 4, 3), 100, np.uint8)
    triggered = clean.copy()
    triggered[:, 0, 0] = 107
    triggered[1, :, :] = 50  # |100 − 50| · 10 is clipped to white
    path = samples.save_samples(tmp_path / "s.png", clean, triggered, label_share=0.5)
    picture = imread(path)[..., :3] * 255
    height, width = picture.shape[:2]

    def at(r, c, y, x):
        return picture[int((r + y) / 3 * height), int((0.5 + (c + x) / 4) * width)].round().tolist()

    assert at(0, 0, 0.2, 0.2) == [100] * 3 and at(1, 0, 0.2, 0.2) == [107] * 3
    assert at(2, 0, 0.2, 0.2) == [70] * 3
    assert at(2, 0, 0.6, 0.6) == [0] * 3 and at(2, 1, 0.6, 0.6) == [255] * 3


def test_class_rates_are_means_over_the_seeds_that_have_them():
    def counts(seed, correct, clean):
        where = {"defense": "ft", "seed": seed, "triggered": 0, "reached": 0}
        return [where | {"correct": c, "clean": n} for c, n in zip(correct, clean, strict=True)]

    rates = class_rates(counts(0, (6, 10, 0), (10, 10, 0)) + counts(1, (2, 0, 0), (10, 0, 0)))
    np.testing.assert_allclose(rates["ft"]["acc"], [0.4, 1.0, math.nan])
    assert np.isnan(rates["ft"]["asr"]).all()


def test_class_scores_draw_the_highest_scores_in_class_order_and_mark_targets(
    tmp_path, monkeypatch
):
    drawn = []
    monkeypatch.setattr(scores, "save_panels", lambda path, panels, *size: drawn.extend(panels))
    count = scores.MOST + 2
    found = {"scores": np.arange(count, dtype=float), "flagged": np.arange(count) == 5}
    names = [f"c{i}" for i in range(count)]
    scores.save_class_scores(tmp_path / "a.png", "mmbd", found, names, [5])
    bars, ticks, _ = drawn[0].marks
    assert bars.args[1].tolist() == list(range(2, count))
    assert ticks.args[1][3] == "c5 ★" and ticks.args[1][4] == "c6"
    assert bars.style["color"].index(common.POISONED) == 3
    assert bars.style["color"].count(common.POISONED) == 1


def test_a_roc_curve_is_that_of_scikit_learn_and_ties_are_flagged_together():
    from sklearn.metrics import roc_curve

    generator = np.random.default_rng(0)
    values, positive = generator.integers(0, 9, 200).astype(float), generator.random(200) < 0.3
    false, true, _ = roc_curve(positive, values, drop_intermediate=False)
    found = scores.roc(values, positive)
    assert found is not None
    np.testing.assert_allclose(found, (false, true))
    assert scores.roc(values, positive & False) is None
    worst = scores.roc(np.array([np.nan, 1.0]), np.array([True, False]))
    assert worst is not None and worst[1].tolist() == [0, 0, 1]


def test_roc_curves_begin_at_one_false_positive(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(scores, "save_panels", lambda path, panels, *size: drawn.extend(panels))
    positive = np.arange(50) >= 40
    found = {
        "good": {"scores": positive.astype(float), "positive": positive},
        "clean": {"scores": positive.astype(float), "positive": positive & False},
    }
    scores.save_roc(tmp_path / "a.png", found)
    chance, curve = drawn[0].marks
    assert chance.args[0][0] == drawn[0].options["xlim"][0] == 1 / 40
    assert curve.style["label"] == "good" and curve.args[1].max() == 1
    assert scores.save_roc(tmp_path / "a.png", {"clean": found["clean"]}) is None


def test_extremes_have_two_rows_for_each_detector_with_images(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        scores, "save_rows", lambda path, rows, label_share: drawn.update(rows) or path
    )
    images = np.zeros((3, 4, 4, 3), np.uint8)
    found = {"strip": {"most": images, "least": images + 1}, "old": {}}
    assert scores.save_extremes(tmp_path / "a.png", found) == tmp_path / "a.png"
    assert list(drawn) == ["strip: most", "strip: least"]
    assert drawn["strip: least"].max() == 1
    assert scores.save_extremes(tmp_path / "a.png", {"old": {}}) is None
