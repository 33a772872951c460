"""What a repair that stamps an inverted trigger finds out first: the backdoor's class and a trigger.

The class is given, or a model detector finds it: trigger inversion by the repair's own settings, or
a detector that the study names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from ...config.fields import option
from ...core.errors import ConfigError, refuse
from ...core.random import stream
from ...core.types import DataInfo, Model, Repair, Repaired, Split, Variables, Verdict
from ...inversion import Inversion, InversionConfig, Trigger, invert, nothing, trigger_at
from ...training.loop import Hooks, TrainLoop, fit, trace_of
from ..model_detection.inversion import check_classes, check_size, judge_norms

Target = int | str
"""The class a backdoor leads to, by number or name, or "detect": it is to be found."""


def target_option() -> Any:
    """Return the option `target` of such a repair."""
    meaning = "class the backdoor leads to, by number or name, or detect: the one that is flagged"
    return option("detect", meaning, low=0)


def detector_option() -> Any:
    """Return the option `detector` of such a repair."""
    return option(
        "",
        "label of the entry of `detections` that flags the target (empty: inversion by `detection`)",
    )


class Search(NamedTuple):
    """Which trigger is wanted, and how it is found.

    It is of the class `target`, or of the one that a detection flags: trigger inversion by the
    settings `detection`, or the study's detection labelled `detector`. The trigger itself is found
    by `inversion`.
    """

    target: Target
    inversion: InversionConfig
    detection: InversionConfig
    detector: str = ""
    method: str = "inversion"
    """The name of the detector of `detection` in the registry."""

    @property
    def reuses(self) -> bool:
        """Whether the detection finds the trigger too, as its settings are those of `inversion`."""
        return self.target == "detect" and not self.detector and self.inversion == self.detection


class Found(NamedTuple):
    """What a search found.

    `trigger` is of the class `target`, `success` the share of images of other classes that it turns,
    `how` says how the class was chosen. `target` is −1 where none was flagged: then there is no
    trigger, and `success` is NaN. `verdict` is None where the class was given.
    """

    target: int
    how: str
    trigger: Trigger
    success: float
    verdict: Verdict | None = None

    @property
    def text(self) -> str:
        """What was found, in words."""
        if self.target < 0:
            return f"not repaired: {self.how}"
        turned = f"{100 * self.success:.0f} %"
        return f"class {self.target}, {self.how}; its trigger turns {turned} of the images"


def searching(
    search: Search,
    loop: Callable[..., TrainLoop],
    info: DataInfo,
    check: Callable[[Model, Variables, int], None] = lambda model, shapes, size: None,
) -> Repair:
    """Return the repair that does `search`, then runs `loop`.

    `loop(key, model, variables, reserved, trigger) -> TrainLoop`. The repair takes what was found as
    the keyword `target`. Where no class is flagged the model stays as it is.

    Raises `ConfigError` where the target is no class, or is to be detected among fewer than three.
    """
    if search.target == "detect":
        check_classes(info)
    else:
        search = search._replace(target=info.class_of(search.target))

    def repair(
        key: jax.Array,
        model: Model,
        variables: Variables,
        reserved: Split,
        hooks: Hooks = Hooks(),
        target: Found | None = None,
    ) -> Repaired:
        found = target or find(key, model, variables, reserved, search, hooks)
        hooks.say(found.text)
        if found.target < 0:
            return Repaired(variables, {})
        state, records = fit(loop(key, model, variables, reserved, found.trigger), hooks)
        return Repaired(state.variables, trace_of(records))

    def check_all(model: Model, shapes: Variables, size: int) -> None:
        check_search(search, size)
        check(model, shapes, size)

    return Repair(repair, check_all, needs=("target",), search=search)


def check_search(search: Search, size: int) -> None:
    """Raise `ConfigError` where a batch of an inversion has more than the `size` reserved images."""
    check_size(search.inversion, size, "inversion.")
    if search.target == "detect" and not search.detector:
        check_size(search.detection, size, "detection.")


def choose(verdict: Verdict) -> tuple[int, str]:
    """Return the class to repair, −1 for none, and why: of several the most suspicious."""
    if verdict.target < 0:
        return -1, f"none flagged, the statistic is {verdict.statistic:.2f}"
    count = int(verdict.flagged.sum())
    several = f", the highest of {count} flagged" if count > 1 else ""
    return verdict.target, f"flagged with score {verdict.scores[verdict.target]:.2f}{several}"


def gather(search: Search, verdict: Verdict | None, inversion: Inversion) -> Found:
    """Return what a detection's `verdict`, if there is one, and the target's inversion found.

    Of the inversion the row of the target counts, or its only row.
    """
    label, how = choose(verdict) if verdict else (int(search.target), "given")
    if label < 0:
        height, width, channels = inversion.trigger.pattern.shape[1:]
        empty = trigger_at(nothing((height, width, channels)), 0)
        return Found(label, how, empty, float("nan"), verdict)
    row = int(np.flatnonzero(np.asarray(inversion.labels) == label)[0])
    return Found(label, how, trigger_at(inversion, row), float(inversion.success[row]), verdict)


def find(
    key: jax.Array,
    model: Model,
    variables: Variables,
    images: Split,
    search: Search,
    hooks: Hooks = Hooks(),
) -> Found:
    """Do a search from the start: at most two inversions.

    Raises `ConfigError` for a search by a detection of a study, which is not here.
    """
    if search.detector and search.target == "detect":
        raise ConfigError(
            f"detector: {search.detector!r} is a detection of a study; by hand give `target` the "
            "class that it flags"
        )
    key, verdict, found = stream(key, "inversion"), None, None
    given = (key, model, variables, images)
    if search.target == "detect":
        found = invert(*given, search.detection, hooks=hooks.within("detection"))[0]
        verdict = judge_norms(found)
        label = verdict.target
    else:
        refuse(isinstance(search.target, str), f"target: {search.target!r}: want a number here")
        label = int(search.target)
    if found is None or (label >= 0 and not search.reuses):
        found = invert(*given, search.inversion, [label], hooks.within("inversion"))[0]
    return gather(search, verdict, found)
