"""Signals: noted once, obeyed at the next step, and a rerun has the numbers of a run without one."""

import os
import signal

import pytest

from d3jax.core.errors import StoppedError
from d3jax.runtime import locks
from d3jax.runtime.stopping import SIGNALS, check_stopped, is_stopping, stoppable
from d3jax.study import run_study

from ..helpers.studies import TINY, Breaking, read, run


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_noted_and_the_second_is_not(number, capfd):
    before = signal.getsignal(number)
    with stoppable():
        os.kill(os.getpid(), number)
        assert is_stopping() and signal.getsignal(number) == before
        with pytest.raises(StoppedError, match=f"stopped by {signal.Signals(number).name}"):
            check_stopped()
    assert not is_stopping() and "saving at the next step" in capfd.readouterr().err


class Signalled(Breaking):
    """Sends SIGTERM at the n-th record that a loop logs."""

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
    assert any(int(path.name) % 20 for path in steps.iterdir())  # saved where none was due
    again = run(config, tmp_path / "stopped")
    cells = ("acc", "asr", "ra", "status")
    assert [[row[name] for name in cells] for row in rows] == [
        [row[name] for name in cells] for row in again
    ]


def test_who_holds_a_lock_is_said(tmp_path):
    said = []

    def say(text):
        said.append(text)
        os.kill(os.getpid(), signal.SIGTERM)  # or the second would wait for ever

    lock = tmp_path / "lock"
    with locks.locked_by_all(lock, said.append), stoppable(), pytest.raises(StoppedError):
        locks.locked_by_all(lock, say).__enter__()
    assert len(said) == 1 and f"process {os.getpid()} on " in said[0]
    assert not (tmp_path / "lock.holder").exists()
