"""Rounds of a compiled step, timed: what is compared goes in turns, and ratios are taken within a round."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import jax

from d3jax.training.ensemble import Ensemble


def timed(members: Ensemble, calls: int, per_call: int = 1) -> Callable[[], float]:
    """A function that makes so many calls, of `per_call` steps each, and returns the seconds of a step; compiled, and run once, beforehand."""
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
    """The lowest, the median and the highest."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}
