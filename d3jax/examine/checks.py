"""The result of one check of an examination, and the conclusion from several checks."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np

from ..core.errors import ConfigError

Level = Literal["found", "weak", "nothing", "not run"]
"""How much a check found: a backdoor, a weak sign, nothing, or it could not run."""
LEVELS: Sequence[Level] = ("found", "weak", "nothing", "not run")
"""All levels, from the highest to the lowest."""
Subject = Literal["model", "samples", "inputs"]
"""What a check looks at: the model, the suspect training samples, or the inputs."""


class Check(NamedTuple):
    """The result of one check: what a method found, how sure that is, and what it cannot see.

    `method` is its name and source. `finding`, `certainty` and `limits` are sentences. `target` is
    the class that it names, −1 for none. `flagged` [N] bool marks the suspect samples or inputs,
    and `scores` [N] are their scores; both are None for a check of the model. `class_scores` [K]
    are the scores of classes, `score` is a sentence on what they are, and `pictures` are uint8
    images by the name of their row. These three are for the page. `seconds` is the time that the
    check took.
    """

    subject: Subject
    method: str
    level: Level
    finding: str
    certainty: str = ""
    limits: str = ""
    target: int = -1
    flagged: np.ndarray | None = None
    scores: np.ndarray | None = None
    class_scores: np.ndarray | None = None
    score: str = ""
    pictures: Mapping[str, np.ndarray] = MappingProxyType({})
    seconds: float = 0.0


class Conclusion(NamedTuple):
    """The conclusion on one subject: its level, one sentence, and what to do next."""

    subject: Subject
    level: Level
    text: str
    advice: str


def run_check(subject: Subject, method: str, work: Callable[[], Check]) -> Check:
    """Return the check that `work` makes, with its time; "not run" where the method refuses.

    A method refuses by a `ConfigError`, such as for too few images. Its message is the finding.
    """
    began = time.perf_counter()
    try:
        found = work()
    except ConfigError as error:
        found = Check(subject, method, "not run", f"It could not run: {error}.")
    return found._replace(seconds=time.perf_counter() - began)


def not_run(subject: Subject, method: str, missing: str) -> Check:
    """Return the check of a method for which something was not given, such as clean images."""
    return Check(subject, method, "not run", f"It was not run, because it needs {missing}.")


def highest(checks: Sequence[Check]) -> Level:
    """Return the level of the check that found most; "not run" for no check."""
    for level in LEVELS:
        if any(check.level == level for check in checks):
            return level
    return "not run"


def listed(items: Sequence[Any]) -> str:
    """Return items as text: "a", "a and b", or "a, b and c"."""
    *first, last = map(str, items)
    return f"{', '.join(first)} and {last}" if first else last
