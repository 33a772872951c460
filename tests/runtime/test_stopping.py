"""Tests of stop signals, which a study obeys at its next step, and of locks.

A study that was stopped and is run again has the numbers of one that was not stopped.
"""

import os
import signal
import subprocess
import sys

import pytest

from d3jax.core.errors import StoppedError
from d3jax.runtime import locks
from d3jax.runtime.stopping import SIGNALS, check_stopped, is_stopping, stoppable
from d3jax.study import run_study

from ..helpers.studies import TINY, Breaking, read, run


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_requests_a_stop_and_handlers_are_restored(number, capfd):
    before = signal.getsignal(number)
    with stoppable():
        os.kill(os.getpid(), number)
        assert is_stopping()
        with pytest.raises(StoppedError, match=f"stopped by {signal.Signals(number).name}"):
            check_stopped()
        text = ""
        while "saving at the next step" not in text:  # another thread writes it
            text += capfd.readouterr().err
    assert not is_stopping() and signal.getsignal(number) == before
    assert signal.set_wakeup_fd(-1) == -1


BUSY = """
import hashlib
from d3jax.runtime.stopping import stoppable
with stoppable():
    print("busy", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # compiled code, which takes minutes
"""


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_the_process_while_compiled_code_runs(second):
    words = [sys.executable, "-c", BUSY]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"busy\n"
        process.send_signal(signal.SIGINT)
        process.stderr.readline()
        assert b"SIGINT: saving at the next step" in process.stderr.readline()
        process.send_signal(second)
        assert process.wait(10) == 128 + second and process.stderr.read() == b""


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
