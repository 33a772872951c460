"""Tests of the program that compares training-time defences."""

import pytest

from .test_claim import cells, row, write


@pytest.fixture
def untrusted():
    import untrusted

    return untrusted


def test_a_line_has_rates_and_how_well_poison_is_found(untrusted, tmp_path):
    counts = {"suspects": 500, "suspects_poisoned": 0.8, "poison_suspected": 0.25, "rule": ""}
    rows = [
        row("badnets-10", "none", asr=0.97, acc=0.8),
        row("badnets-10", "abl", 0.9, acc=0.75, published="83.32/0.00") | {"seconds": 600} | counts,
        row("badnets-10", "d_br-oracle", 0.6, rule="oracle"),
        row("clean", "abl", acc=0.82, asr=None),
    ]
    write(tmp_path / "results.csv", rows)
    text = untrusted.report(tmp_path)
    poisoned, clean = text.split("## clean")
    assert cells(poisoned, "abl") == [
        "abl", "75.0", "−5.0", "5.0", "70.0", "90.0", "500", "80.0", "25.0", "", "10", "83.32/0.00",
    ]  # fmt: skip
    assert cells(poisoned, "none")[1:4] == ["80.0", "", "97.0"]
    assert cells(poisoned, "d_br-oracle (oracle)")[6:] == ["", "", "", "", "0", "none"]
    assert cells(clean, "abl")[1:4] == ["82.0", "", ""]  # without a row of none there is no change
