"""Tests of stop signals, which a study obeys at its next step, and of locks.

A study that was stopped and is run again has the numbers of one that was not stopped.
"""

import os
import signal

import pytest

from d3jax.core.errors import StoppedError
from d3jax.runtime import locks
from d3jax.runtime.stopping import SIGNALS, check_stopped, is_stopping, stoppable
from d3jax.study import run_study

from ..helpers.studies import TINY, Breaking, read, run


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_requests_a_stop_and_restores_the_handler(number, capfd):
    before = signal.getsignal(number)
    with stoppable():
        os.kill(os.getpid(), number)
        assert is_stopping() and signal.getsignal(number) == before
        with pytest.raises(StoppedError, match=f"stopped by {signal.Signals(number).name}"):
            check_stopped()
    assert not is_stopping() and "saving at the next step" in capfd.readouterr().err


class Signalled(Breaking):
    """A progress display that sends SIGTERM at the n-th log record of the study."""

    def update(self, record, steps):
        self.records -= 1
        if not self.records:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_stopped_study_continues_with_equal_numbers(tmp_path):
    config = read(TINY)
    rows = run(config, tmp_path / "whole")
    with stoppable(), pytest.raises(StoppedError):
        run_study(config, tmp_path / "stopped", Signalled(5))
    (steps,) = (tmp_path / "stopped" / "checkpoints").glob("*victim*/steps")
    # A checkpoint is of a step at which none was due.
    assert any(int(path.name) % 20 for path in steps.iterdir())
    again = run(config, tmp_path / "stopped")
    cells = ("acc", "asr", "ra", "status")
    assert [[row[name] for name in cells] for row in rows] == [
        [row[name] for name in cells] for row in again
    ]


def test_waiting_for_a_lock_reports_the_process_that_holds_it(tmp_path):
    said = []

    def say(text):
        said.append(text)
        os.kill(os.getpid(), signal.SIGTERM)  # otherwise the second lock would wait for ever

    lock = tmp_path / "lock"
    with locks.locked_by_all(lock, said.append), stoppable(), pytest.raises(StoppedError):
        locks.locked_by_all(lock, say).__enter__()
    assert len(said) == 1 and f"process {os.getpid()} on " in said[0]
    assert not (tmp_path / "lock.holder").exists()
