"""A process that times code on its parent's orders, sent as lines of JSON.

Each side of a comparison runs in one such process. The parent sends {"prepare": {"name": …, …}}
and later {"run": name}. The worker answers {"ready": about}, {"seconds": s} or {"error": text}.
The parent waits for every answer, so that nothing is timed while the other side works.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

Prepare = Callable[[dict[str, Any]], tuple[Callable[[], float], dict[str, Any]]]
"""`prepare(settings) -> (round, about)`.

`round()` returns the seconds of one round, and `about` holds facts for the table.
"""


def serve(prepare: Prepare) -> None:
    """Answer the parent's orders until it closes the pipe.

    All that the code prints goes to stderr, because stdout carries the answers.
    """
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
        except Exception as error:  # noqa: BLE001 (the parent reports the failure and continues)
            answer = {"error": f"{type(error).__name__}: {str(error)[:500]}"}
        print(json.dumps(answer), file=answers, flush=True)


class Worker:
    """The parent's handle of one worker process."""

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
        """Send an order and return the worker's answer.

        Raises `RuntimeError` if the worker ended instead.
        """
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args} ended with {self.process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        """Close the pipe and wait until the worker has ended."""
        self.process.communicate()
