"""Tests of the benchmark programs that try odd inputs and that disturb running studies."""

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest


@pytest.mark.slow
def test_odd_inputs_end_in_one_line():
    """Try two inputs of every maker, with another seed than that of the committed table."""
    import faults

    tried = [faults.try_input(number, seed=1) for number in range(2 * len(faults.MAKERS))]
    assert not [fault[:3] for fault in tried if fault.outcome.isupper()]
    refused = [fault for fault in tried if fault.outcome == "one line before work"]
    assert len(refused) > len(tried) // 2


def test_every_maker_makes_equal_inputs_from_equal_seeds(tmp_path):
    import faults

    for number, maker in enumerate(faults.MAKERS):
        made = []
        for name in ("one", "two"):
            folder = tmp_path / f"{number}{name}"
            folder.mkdir()
            odd = maker(random.Random(number), folder)
            made.append((odd.kind, odd.what.replace(str(folder), "")))
        assert made[0] == made[1]


def observed(code, output, seconds=1.0, peak=100.0):
    from observed import Observed

    return Observed(code, seconds, peak, output)


@pytest.mark.parametrize(
    ("code", "output", "seconds", "peak", "outcome"),
    [
        (2, "d3jax: no", 1.0, 100.0, "one line before work"),
        (2, "Traceback (most recent call last)\nd3jax: no", 1.0, 100.0, "TRACEBACK"),
        (2, "d3jax: no", 11.0, 100.0, "SLOW"),
        (2, "d3jax: no", 1.0, 3000.0, "MEMORY"),
        (2, "no", 1.0, 100.0, "OTHER"),
        (2, "d3jax: " + "no" * 1000, 1.0, 100.0, "OTHER"),
        (-9, "", 61.0, 100.0, "HUNG"),
        (0, "", 1.0, 100.0, "accepted"),
    ],
)
def test_outcomes_are_judged_by_exit_code_output_time_and_memory(
    code, output, seconds, peak, outcome
):
    import faults

    assert faults.judged(observed(code, output, seconds, peak), refusing=True) == outcome


def test_a_process_is_observed_and_killed(tmp_path):
    import observed as harness

    words = [sys.executable, "-c", "import time; print('on', flush=True); time.sleep(60)"]
    seen = harness.observe(words, meanwhile=harness.kill)
    assert seen.code == -9 and seen.seconds < 30 and not seen.messages
    ended = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
    assert harness.has_ended(ended) and ended.wait() == 0


def test_the_peak_is_the_memory_of_the_command_alone():
    import observed as harness

    here = np.ones(50_000_000)  # 400 MiB
    large = "import time; x = b'1' * 2**28; time.sleep(0.2)"
    peaks = [
        harness.observe([sys.executable, "-c", program]).peak
        for program in ("import time; time.sleep(0.2)", large)
    ]
    assert peaks[0] < 100 and 256 < peaks[1] < 356 and here.nbytes / 2**20 > 356


def test_locks_that_are_held_are_found(tmp_path):
    import kills
    from filelock import FileLock

    lock = Path(tmp_path, "node", "lock")
    lock.parent.mkdir()
    with FileLock(lock, thread_local=False):
        held = subprocess.run(
            [
                sys.executable,
                "-c",
                f"import kills; print(len(kills._held(kills.Path({str(tmp_path)!r}))))",
            ],
            cwd=Path(kills.__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
        assert held.stdout.strip() == "1"
    assert kills._held(tmp_path) == []
