"""Checks of inputs: which of these images have a trigger?"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import jax
import numpy as np
from scipy.stats import betabinom

from ..core.random import stream
from ..core.types import Split
from ..defenses.input_detection.ibd_psc import IBDPSCConfig
from ..defenses.input_detection.scale_up import ScaleUpConfig
from ..defenses.input_detection.serving import prepare_detector
from ..defenses.input_detection.strip import STRIPConfig
from .checks import Check, not_run, run_check
from .given import Given

FPR = 0.05
"""The share of clean images that the threshold of every detector rejects."""
SURE, WEAK = 1e-3, 0.05
"""The largest probabilities by chance at which the flagged inputs are found, or a weak sign."""

DETECTORS = {
    "STRIP (superimposed images, 2019)": (
        STRIPConfig(fpr=FPR),
        "It misses triggers that other images on top destroy, such as a warp.",
    ),
    "SCALE-UP (brightened images, 2023)": (
        ScaleUpConfig(rule="quantile", fpr=FPR),
        "It misses triggers that brightening destroys, such as white patches.",
    ),
    "IBD-PSC (amplified BatchNorm, 2024)": (
        IBDPSCConfig(rule="quantile", fpr=FPR),
        "It needs a model with BatchNorm.",
    ),
}
"""The detectors of triggered inputs and what they miss, by name."""


def check_inputs(key: jax.Array, given: Given) -> Iterator[Check]:
    """Yield a check of the inputs by each of `DETECTORS`, which need clean images."""
    inputs, clean = given.inputs, given.clean
    if inputs is None:
        return
    for name, (config, limits) in DETECTORS.items():
        if clean is None:
            yield not_run("inputs", name, "clean images (--data)")
            continue
        own = stream(key, type(config).__name__)
        work = functools.partial(_check, own, name, config, limits, given, inputs, clean)
        yield run_check("inputs", name, work)


def chance_of(count: int, size: int, clean: int) -> float:
    """Return the probability that `count` or more of `size` clean inputs are flagged.

    The threshold is a quantile of the scores of `clean` other clean images, whose share of flagged
    ones differs from that of all clean images by chance. The number is therefore beta-binomial.
    """
    above = clean - 1 - math.floor((clean - 1) * (1 - FPR))
    return float(betabinom.sf(count - 1, size, above + 1, clean - above))


def _check(
    key: jax.Array,
    name: str,
    config: STRIPConfig | ScaleUpConfig | IBDPSCConfig,
    limits: str,
    given: Given,
    inputs: np.ndarray,
    clean: Split,
) -> Check:
    detector = prepare_detector(config, given.info, key, given.model, given.variables, clean)
    scores = detector.score(inputs)
    flagged = scores > detector.threshold
    count, size = int(flagged.sum()), len(flagged)
    chance = chance_of(count, size, len(clean.labels))
    finding = (
        f"It flags {count} of {size} inputs. Of the {len(clean.labels)} clean images that set its "
        f"threshold it flags {FPR:.0%}."
    )
    certainty = (
        f"So many of {size} clean inputs would be flagged with a probability of {chance:.2g}."
    )
    level = "found" if chance <= SURE else "weak" if chance <= WEAK else "nothing"
    return Check("inputs", name, level, finding, certainty, limits, -1, flagged, scores)
