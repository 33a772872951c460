"""Timing of compiled steps in rounds.

The variants of a comparison run in turns, and ratios are taken within a round.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import jax

from d3jax.training.ensemble import Ensemble


def timed(members: Ensemble, calls: int, per_call: int = 1) -> Callable[[], float]:
    """Return a function that runs a round and returns its seconds per step.

    A round is `calls` calls of `per_call` steps each. The step is compiled, and one round is run,
    before this function returns.
    """
    program = members.repeat.program(members.state, members.data, per_call)
    state = members.state

    def run() -> float:
        nonlocal state
        began = time.perf_counter()
        for _ in range(calls):
            state, metrics = program(state, members.data)
        jax.block_until_ready((state, metrics))
        return (time.perf_counter() - began) / (calls * per_call)

    run()
    return run


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return the minimum, the median and the maximum of the values."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}
