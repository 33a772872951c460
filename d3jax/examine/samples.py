"""Checks of suspect samples: which images of a training set are poisoned?"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import jax
import numpy as np

from ..core.random import stream
from ..core.types import SampleDetector, Split
from ..defenses.sample_detection.agpd import AGPDConfig
from ..defenses.sample_detection.common import by_label
from ..defenses.sample_detection.scan import SCAnConfig
from .checks import Check, not_run, run_check
from .given import Given

SCAN = "SCAn (two groups in a class, 2021)"
GRADIENTS = "AGPD (directions of gradients, 2025)"
MOST = 10_000
"""The largest number of samples that AGPD scores; of more, a random part is scored."""


def check_samples(key: jax.Array, given: Given) -> Iterator[Check]:
    """Yield the checks of the suspect samples: SCAn and AGPD, which need clean images.

    What AGPD flags is a weak sign only, because it also flags clean samples.
    """
    suspects, clean = given.suspects, given.clean
    if suspects is None:
        return
    if clean is None:
        yield from (not_run("samples", name, "clean images (--data)") for name in (SCAN, GRADIENTS))
        return
    scan = SCAnConfig().build(given.info)
    work = _scored(given, scan, stream(key, "scan"), suspects, clean, _scan_check)
    first = run_check("samples", SCAN, work)
    yield first
    order = jax.random.permutation(stream(key, "part"), len(suspects.labels))
    rows = np.sort(np.asarray(order)[:MOST])
    part = Split(*(np.asarray(each)[rows] for each in suspects))

    def gradient_check(given: Given, scores: np.ndarray, flagged: np.ndarray) -> Check:
        whole = np.zeros(len(suspects.labels), bool)
        every = np.full(len(whole), np.nan, np.float32)
        whole[rows], every[rows] = flagged, scores
        return _agpd_check(given, every, whole, first)

    agpd = AGPDConfig().build(given.info)
    work = _scored(given, agpd, stream(key, "agpd"), part, clean, gradient_check)
    yield run_check("samples", GRADIENTS, work)


def _scored(
    given: Given,
    detector: SampleDetector,
    key: jax.Array,
    samples: Split,
    clean: Split,
    check: Callable[[Given, np.ndarray, np.ndarray], Check],
) -> Callable[[], Check]:
    """Return the work of a check: score the samples, and describe what was found by `check`."""

    def work() -> Check:
        shapes = jax.eval_shape(lambda: given.variables)
        detector.check(given.model, shapes, len(samples.labels), len(clean.labels))
        found = detector.score(key, given.model, given.variables, samples, clean)
        return check(given, np.asarray(found.scores), np.asarray(found.flagged))

    return work


def _scan_check(given: Given, scores: np.ndarray, flagged: np.ndarray) -> Check:
    assert given.suspects is not None
    labels = np.asarray(given.suspects.labels)
    highest = {label: scores[rows].max() for label, rows in _by_class(labels).items()}
    top = max(highest, key=lambda label: highest[label])
    certainty = (
        f"The most suspicious class is {given.info.classes[top]}. The largest score of its images "
        f"is {highest[top]:.1f}, and the median class has {np.median([*highest.values()]):.1f} "
        f"(limit of a class: {SCAnConfig().index:.2f})."
    )
    limits = (
        "It needs a model that was trained on these samples. It does not see a poisoned class "
        "whose features form one group."
    )
    target = top if flagged.any() else -1
    level = "found" if flagged.any() else "nothing"
    finding = "It divides no class in two." if not flagged.any() else _flagged_text(given, flagged)
    return Check("samples", SCAN, level, finding, certainty, limits, target, flagged, scores)


def _agpd_check(given: Given, scores: np.ndarray, flagged: np.ndarray, first: Check) -> Check:
    both = 0 if first.flagged is None else int((flagged & first.flagged).sum())
    scored = int(np.isfinite(scores).sum())
    finding = _flagged_text(given, flagged) if flagged.any() else "It flags no sample."
    certainty = f"It scored {scored} samples. SCAn flags {both} of the {int(flagged.sum())} too."
    limits = "It has flagged 1 to 4 % of clean samples, so that it is a second opinion only."
    return Check(
        "samples",
        GRADIENTS,
        "weak" if flagged.any() else "nothing",
        finding,
        certainty,
        limits,
        -1,
        flagged,
        scores,
    )


def _by_class(labels: np.ndarray) -> dict[int, np.ndarray]:
    return {int(labels[rows[0]]): rows for rows in by_label(labels)}


def _flagged_text(given: Given, flagged: np.ndarray) -> str:
    assert given.suspects is not None
    labels = np.asarray(given.suspects.labels)
    counts = {
        given.info.classes[label]: (int(flagged[rows].sum()), len(rows))
        for label, rows in _by_class(labels).items()
        if flagged[rows].any()
    }
    parts = (f"{count} of {size} of class {name}" for name, (count, size) in counts.items())
    return f"It flags {int(flagged.sum())} of {len(flagged)} samples: {', '.join(parts)}."
