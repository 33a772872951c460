"""The conclusion of an examination on the model, the suspect samples and the inputs."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from .checks import Check, Conclusion, Subject, highest, listed
from .given import Given


def conclude(given: Given, checks: Sequence[Check], thorough: bool = False) -> list[Conclusion]:
    """Return the conclusions on the model and on what else was given, each from its checks.

    `thorough` tells whether trigger inversion ran as long as published.
    """
    on_model = functools.partial(_on_model, thorough)
    by_subject = {"model": on_model, "samples": _on_samples, "inputs": _on_inputs}
    subjects: dict[Subject, list[Check]] = {}
    for check in checks:
        subjects.setdefault(check.subject, []).append(check)
    return [by_subject[subject](given, found) for subject, found in subjects.items()]


def suspected(checks: Sequence[Check]) -> np.ndarray:
    """Return which samples or inputs [N] are suspected: those that a check at `found` flags."""
    flags = [
        check.flagged & (check.level == "found") for check in checks if check.flagged is not None
    ]
    return np.logical_or.reduce(flags) if flags else np.zeros(0, bool)


def _named(given: Given, checks: Sequence[Check], level: str) -> str:
    """Return the classes that the checks at a level name, as text."""
    targets = {check.target for check in checks if check.level == level and check.target >= 0}
    return listed([given.info.classes[target] for target in sorted(targets)])


def _on_model(thorough: bool, given: Given, checks: Sequence[Check]) -> Conclusion:
    level, ran = highest(checks), [check for check in checks if check.level != "not run"]
    more = _MORE if given.clean is None else _REPAIR if thorough else _THOROUGH
    if level == "found":
        named = _named(given, checks, level)
        text = f"A backdoor was found in the model. Its target class is {named}."
        advice = (
            "Do not use the model as it is. Repair it with the clean images by a study, as in "
            "docs/how-to/suspicious-model.md, and examine the result again. Or train again without "
            "the poisoned samples, if --samples finds them. There may be other backdoors."
        )
    elif level == "weak":
        named = _named(given, checks, level)
        text = f"No backdoor was confirmed in the model. There is a weak sign for class {named}."
        advice = f"Look at inputs that the model assigns to {named} wrongly. {more}"
    elif level == "nothing":
        text = (
            f"No backdoor was found in the model by {listed([check.method for check in ran])}. "
            "This does not show that the model is clean."
        )
        advice = more
    else:
        text, advice = "The model could not be examined.", "See the reasons below."
    return Conclusion("model", level, text, advice)


_MORE = "Give clean images (--data): without them most methods cannot run."
_THOROUGH = (
    "If much depends on the model, examine it with --thorough, or repair it with the clean images "
    "and compare the accuracy."
)
_REPAIR = "If much depends on the model, repair it with the clean images and compare the accuracy."


def _on_samples(given: Given, checks: Sequence[Check]) -> Conclusion:
    level, flagged = highest(checks), suspected(checks)
    if level == "found":
        text = f"{int(flagged.sum())} of {len(flagged)} training samples are probably poisoned."
        advice = (
            "Look at the pictures. Train again without the samples that samples.csv marks as "
            "suspected, and examine the new model."
        )
    elif level == "weak":
        text = "No poisoned sample was confirmed. Some samples are conspicuous."
        advice = "Look at the samples with the highest scores in samples.csv."
    elif level == "nothing":
        text = "No poisoned sample was found. This does not show that the training set is clean."
        advice = "Look at the samples with the highest scores in samples.csv."
    else:
        text, advice = "The training samples could not be examined.", _MORE
    return Conclusion("samples", level, text, advice)


def _on_inputs(given: Given, checks: Sequence[Check]) -> Conclusion:
    level, flagged = highest(checks), suspected(checks)
    if level == "found":
        text = f"{int(flagged.sum())} of {len(flagged)} inputs are suspected to have a trigger."
        advice = (
            "Look at those that several methods flag (inputs.csv). The same sign in the same place "
            "on many of them is a trigger. Inputs from another source than the clean images are "
            "flagged too."
        )
    elif level == "weak":
        text = "No triggered input was confirmed. Slightly more inputs are flagged than expected."
        advice = "Look at the inputs with the highest scores in inputs.csv."
    elif level == "nothing":
        text = "No triggered input was found. This does not show that there is none."
        advice = (
            "Nothing more is needed unless the inputs come from somebody that you do not trust."
        )
    else:
        text, advice = "The inputs could not be examined.", _MORE
    return Conclusion("inputs", level, text, advice)
