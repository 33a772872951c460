"""Start-up of a study on several processes, and exchange of values between them."""

from __future__ import annotations

import hashlib
import os
import re
import sys
import threading
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ..core.errors import ConfigError

PATIENCE = 300
"""Seconds that a process waits for the other processes of a study to start."""


def check_place(where: str) -> re.Match[str] | None:
    """Parse the value of --distributed; return the match of HOST:PORT,COUNT,INDEX, None for "auto".

    Raises `ConfigError` for anything else.
    """
    if where == "auto":
        return None
    explicit = re.fullmatch(r"([^,]+:(\d{1,5})),(\d{1,9}),(\d{1,9})", where)
    if not explicit or not 0 < int(explicit[2]) < 2**16 or int(explicit[4]) >= int(explicit[3]):
        raise ConfigError(
            "--distributed: want auto or HOST:PORT,COUNT,INDEX with a PORT from 1 to 65535 and "
            f"INDEX below COUNT, got {where!r}"
        )
    return explicit


def bring_up(where: str) -> None:
    """Connect this process to the other processes that run the same study, by `jax.distributed`.

    `where` is "auto" (a TPU pod, SLURM, Open MPI) or "HOST:PORT,COUNT,INDEX". Call it before any
    device is used. Raises `ConfigError` for any other value, and for "auto" if the environment does
    not describe the processes. Ends the process if the others do not start within `PATIENCE`.
    """
    explicit = check_place(where)
    print(
        f"d3jax: --distributed {where}: waiting for the other processes, at most {PATIENCE} s",
        file=sys.stderr,
        flush=True,
    )
    # jax's own timeout aborts the process with a stack trace.
    patience = threading.Timer(PATIENCE, _give_up, (where,))
    patience.daemon = True
    patience.start()
    try:
        given: dict[str, Any] = {"initialization_timeout": PATIENCE + 60}
        if explicit:
            given |= {
                "coordinator_address": explicit[1],
                "num_processes": int(explicit[3]),
                "process_id": int(explicit[4]),
            }
        jax.distributed.initialize(**given)
    except (ValueError, RuntimeError) as error:
        why = str(error).splitlines()[0]
        if where == "auto" and isinstance(error, ValueError):
            why = (
                "nothing here says which processes take part (no TPU pod, SLURM, Open MPI); "
                f"give HOST:PORT,COUNT,INDEX ({why})"
            )
        raise ConfigError(f"--distributed {where}: {why}") from error
    finally:
        patience.cancel()


def _give_up(where: str) -> None:
    """Print that not all processes of a study have started, and end this one with exit code 1."""
    print(
        f"d3jax: --distributed {where}: not all processes have come within {PATIENCE} s",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)


def same_everywhere(text: str, what: str) -> None:
    """Raise `ConfigError` on every process if `text` differs between the processes of a study.

    `what` names the text in the message, as a plural. Call it on all processes.
    """
    if jax.process_count() == 1:
        return
    from jax.experimental import multihost_utils

    mine = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.int32)
    everyone = multihost_utils.process_allgather(mine)
    other = [i for i, theirs in enumerate(everyone) if not np.array_equal(theirs, everyone[0])]
    if other:
        raise ConfigError(
            f"--distributed: the {what} of process {other[0]} are not those of process 0"
        )


def is_primary() -> bool:
    """Return whether this is the first process of a study, which is the one that writes files."""
    return jax.process_index() == 0


def broadcast_from_host0(numbers: Sequence[int]) -> list[int]:
    """Return the first process's list of integers (at most 63) on every process.

    Call it on all processes or on none.
    """
    if jax.process_count() == 1:
        return list(numbers)
    from jax.experimental import multihost_utils

    box = np.zeros(64, np.int32)
    box[0], box[1 : 1 + len(numbers)] = len(numbers), numbers
    box = multihost_utils.broadcast_one_to_all(box)
    return box[1 : 1 + int(box[0])].tolist()


def any_process(here: bool) -> bool:
    """Return whether the flag `here` is true on at least one of a study's processes.

    Call it on all processes or on none.
    """
    if jax.process_count() == 1:
        return here
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.asarray([here])).any())


def same_arrays(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the first process's arrays on every process, so that all processes decide alike.

    Sums in another order make the arrays differ by rounding. Call it on all processes.
    """
    if jax.process_count() == 1:
        return arrays
    from jax.experimental import multihost_utils

    return jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all(arrays))
