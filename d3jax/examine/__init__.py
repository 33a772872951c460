"""An examination of a suspicious model, training set or inputs: detectors, and one page.

The command is `python -m d3jax.examine --model FILE`.
"""

from __future__ import annotations

import itertools

import jax

from ..core.random import stream
from ..runtime.progress import Progress
from .checks import Check, Conclusion
from .conclusions import conclude
from .given import Given, read_given
from .inputs import check_inputs
from .model import check_model
from .samples import check_samples
from .writing import write_examination

__all__ = ["Check", "Conclusion", "Given", "examine", "read_given", "write_examination"]


def examine(
    given: Given, *, seed: int = 0, thorough: bool = False, progress: Progress | None = None
) -> tuple[list[Check], list[Conclusion]]:
    """Run the checks of everything that was given; return them and the conclusions.

    `given` is what `read_given` returns. `thorough` runs trigger inversion as long as published.
    """
    key, checks = jax.random.key(seed), []
    for check in itertools.chain(
        check_model(stream(key, "model"), given, thorough),
        check_samples(stream(key, "samples"), given),
        check_inputs(stream(key, "inputs"), given),
    ):
        if progress:
            progress.say(f"{check.method}: {check.level} ({check.seconds:.0f} s)")
        checks.append(check)
    return checks, conclude(given, checks, thorough)
