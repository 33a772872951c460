"""A process that times what its parent tells it to, over lines of JSON: both sides of a comparison run in one of these.

The parent sends {"prepare": {"name": …, …}} and later {"run": name}; the worker answers {"ready": about} and {"seconds": s}, or
{"error": text}. Nothing is timed while the other side works, because the parent waits for every answer.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

Prepare = Callable[[dict[str, Any]], tuple[Callable[[], float], dict[str, Any]]]
"""`prepare(settings) -> (round, about)`: a function that returns the seconds of one round, and what is to be known of it."""


def serve(prepare: Prepare) -> None:
    """Answers the parent until it closes the pipe. What anything prints goes to stderr."""
    answers, sys.stdout = sys.stdout, sys.stderr
    rounds: dict[str, Callable[[], float]] = {}
    for line in sys.stdin:
        order = json.loads(line)
        try:
            if "prepare" in order:
                rounds[order["prepare"]["name"]], about = prepare(order["prepare"])
                answer = {"ready": about}
            else:
                answer = {"seconds": rounds[order["run"]]()}
        except Exception as error:  # noqa: BLE001 (the parent says what failed, and goes on)
            answer = {"error": f"{type(error).__name__}: {str(error)[:500]}"}
        print(json.dumps(answer), file=answers, flush=True)


class Worker:
    """The parent's end of one such process."""

    def __init__(self, command: list[str], environment: dict[str, str]):
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=sys.stderr,
            text=True,
            env=environment,
        )

    def ask(self, order: dict[str, Any]) -> dict[str, Any]:
        """The worker's answer. Raises `RuntimeError` where it ended instead."""
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args} ended with {self.process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        """Lets the worker end."""
        self.process.communicate()
