"""Tests of the program that measures the cost of input detectors."""

import time

import numpy as np

from benchmarks.detector_cost import table, timed


def test_times_are_medians_of_each_function_after_one_call_to_compile():
    calls = []

    def slow(images):
        calls.append("slow")
        time.sleep(0.02)

    found = timed({"forward": lambda images: calls.append("fast"), "slow": slow}, np.zeros(3), 3)
    assert calls == ["fast", "slow"] * 4
    assert found["slow"] >= 0.02 > found["forward"]


def test_the_table_has_multiples_of_the_forward_pass_of_the_same_batch():
    times = {1: {"forward": 0.002, "strip": 0.01}, 64: {"forward": 0.01, "strip": 0.25}}
    lines = table({"strip": 3.25}, times).splitlines()
    assert lines[2] == "| forward | – | 2.0 | 1.0 | 10.0 | 1.0 |"
    assert lines[3] == "| strip | 3.2 | 10.0 | 5.0 | 250.0 | 25.0 |"
