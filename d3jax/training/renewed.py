"""Train loops that compute their carry again at regular steps, such as a split of the images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from ..core.records import LogRecord
from ..core.types import TrainState, Variables
from .loop import Hooks, TrainLoop, fit


def fit_renewed(
    loop: TrainLoop, renew: Callable[[int, Variables], Any], every: int, hooks: Hooks
) -> tuple[TrainState, list[LogRecord]]:
    """Run a train loop to its end, with a new carry before every `every` steps (0: only once).

    `renew(period, variables) -> carry` computes the carry of a period, counted from 0. The carry of
    the loop's own state is a placeholder with the same shapes. Return the last state and all log
    records. A checkpoint within a period contains the carry, so that a resumed loop goes on with
    it.
    """
    every = every or loop.steps
    state, lines = fit(loop._replace(steps=0), hooks)  # restores the last checkpoint, if any
    while (done := int(state.step)) < loop.steps:
        period, place = divmod(done, every)
        if not place:
            state = dataclasses.replace(state, carry=renew(period, state.variables))
        part = loop._replace(state=state, steps=min(loop.steps, (period + 1) * every))
        state, lines = fit(part, _continued(hooks, state, lines, loop.steps))
    return state, lines


def _continued(hooks: Hooks, state: TrainState, lines: list[LogRecord], steps: int) -> Hooks:
    """Return hooks with which `fit` continues from a state in memory, with its log records.

    The newest checkpoint is not read, because it has the carry before. The log shows `steps` as the
    length of the loop. The memory that the program needs is reported once.
    """
    nothing = Hooks()
    return hooks._replace(
        start=nothing.start,
        say=nothing.say if lines else hooks.say,
        log=lambda record, until: hooks.log(record, steps),
        saved=lambda: hooks.saved() or [int(state.step)],
        restore=lambda like, step: (state, lines),
        profile="" if lines else hooks.profile,
    )
