"""Tests of the figure of robustness."""

import numpy as np

from d3jax.report.plots import common
from d3jax.report.plots import robustness as plots


def row_of(change, amount, asr, defense="none", seed=0):
    return {"change": change, "amount": amount, "asr": asr, "defense": defense, "seed": seed}


def test_curves_are_means_over_seeds_in_the_order_of_the_amounts(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "save_panels", lambda path, panels, *size: drawn.extend(panels))
    rows = [row_of("shift", 2, 0.2), row_of("shift", 0, 1.0), row_of("shift", 4, None)]
    rows += [row_of("shift", 2, 0.4, seed=1), row_of("shift", 0, 0.1, "ft")]
    rows += [row_of("strength", 0.5, 0.7), row_of("scale", 2.0, None)]
    plots.save_robustness(tmp_path / "a.png", rows, common.palette(["ft"]))
    place, strength = drawn
    line, none, ft = place.marks
    assert (line.args, line.method) == ((0,), "axvline")
    assert none.args[0].tolist() == [0, 2]
    np.testing.assert_allclose(none.args[1], [100, 30])
    assert (ft.style["label"], ft.args[1].tolist()) == ("ft", [10])
    assert strength.options["title"] == "Strength"


def test_nothing_is_drawn_without_an_asr(tmp_path):
    rows = [row_of("shift", 1, None)]
    assert plots.save_robustness(tmp_path / "a.png", rows, common.palette([])) is None
    assert not list(tmp_path.iterdir())
