"""The search for a backdoor's target class and trigger, for repairs that stamp the trigger.

The class is given, or a model detector finds it. That detector is trigger inversion by the repair's
own settings, or a detector of the study that the repair names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
"""A backdoor's target class by number or name, or "detect" if a detector has to find it."""


def target_option() -> Any:
    """Return the config field `target` of a repair that stamps an inverted trigger."""
    meaning = "target class of the backdoor, by number or name; detect: the class a detector flags"
    return option("detect", meaning, low=0)


def detector_option() -> Any:
    """Return the config field `detector` of a repair that stamps an inverted trigger."""
    return option(
        "",
        "label of the entry of `detections` that flags the target (empty: trigger inversion by the "
        "settings in `detection`)",
    )


class Search(NamedTuple):
    """The settings of a search for a backdoor's target class and trigger.

    `target` is the class, or "detect" if a detection has to flag it. The detection is the study's
    one labelled `detector`. If that is empty, it is trigger inversion by the settings `detection`.
    The settings `inversion` find the trigger of the class.
    """

    target: Target
    inversion: InversionConfig
    detection: InversionConfig
    detector: str = ""
    method: str = "inversion"
    """The registry's name of the detector whose settings `detection` are."""

    @property
    def reuses(self) -> bool:
        """Return whether the inversion that detects the target class also gives the trigger.

        That is so where its settings are those of `inversion`.
        """
        return self.target == "detect" and not self.detector and self.inversion == self.detection


class Found(NamedTuple):
    """The result of a repair's search: a backdoor's target class and the inverted trigger.

    `how` says how the class `target` was chosen. `success` is the share of the images of other
    classes that are predicted as the target when they carry `trigger`. If no class was flagged,
    `target` is −1, there is no trigger, and `success` is NaN. `verdict` is None if the class was
    given.
    """

    target: int
    how: str
    trigger: Trigger
    success: float
    verdict: Verdict | None = None

    def text(self, classes: Sequence[str]) -> str:
        """Return a sentence on the target class of a repair and its trigger's success rate."""
        if self.target < 0:
            return f"not repaired: {self.how}"
        turned = f"{100 * self.success:.0f} %"
        return (
            f"class {classes[self.target]}, {self.how}; "
            f"its trigger changes the prediction to this class on {turned} of the images"
        )


def searching(
    search: Search,
    loop: Callable[..., TrainLoop],
    info: DataInfo,
    check: Callable[[Model, Variables, int], None] = lambda model, shapes, size: None,
) -> Repair:
    """Build a `Repair` that searches for target class and trigger, and trains the model with both.

    `loop(key, model, variables, reserved, trigger) -> TrainLoop`. With the keyword `target`, the
    repair takes a result (`Found`) and does not search. If no class is flagged, it returns the
    model unchanged.

    Raises `ConfigError` where the target is not a class of the data set, or has to be detected
    among fewer than three classes.
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
        hooks.say(found.text(info.classes))
        if found.target < 0:
            return Repaired(variables, {})
        state, records = fit(loop(key, model, variables, reserved, found.trigger), hooks)
        return Repaired(state.variables, trace_of(records))

    def check_all(model: Model, shapes: Variables, size: int) -> None:
        check_search(search, size)
        check(model, shapes, size)

    return Repair(repair, check_all, needs=("target",), search=search)


def check_search(search: Search, size: int) -> None:
    """Raise `ConfigError` where a repair's inversions have batches of more than `size` images.

    `size` is the number of reserved images.
    """
    check_size(search.inversion, size, "inversion.")
    if search.target == "detect" and not search.detector:
        check_size(search.detection, size, "detection.")


def choose(verdict: Verdict) -> tuple[int, str]:
    """Return the most suspicious class that a `Verdict` flags (−1: none), and a text on why."""
    if verdict.target < 0:
        return -1, f"none flagged, the statistic is {verdict.statistic:.2f}"
    count = int(verdict.flagged.sum())
    several = f", the highest of {count} flagged" if count > 1 else ""
    return verdict.target, f"flagged with score {verdict.scores[verdict.target]:.2f}{several}"


def gather(search: Search, verdict: Verdict | None, inversion: Inversion) -> Found:
    """Return target class and trigger (`Found`) from a model detector's verdict and an inversion.

    `verdict` is None if the class was given. The trigger is the row of `inversion` whose label is
    the target.
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
    """Search a model for a backdoor's target class and trigger, and return a `Found`.

    It takes at most two inversions.

    Raises `ConfigError` if the search names a study's detection, which cannot be run here, or if
    the target is the name of a class.
    """
    if search.detector and search.target == "detect":
        raise ConfigError(
            f"detector: {search.detector!r} is a detection of a study; outside a study, set "
            "`target` to the class that it flags"
        )
    key, verdict, found = stream(key, "inversion"), None, None
    given = (key, model, variables, images)
    if search.target == "detect":
        found = invert(*given, search.detection, hooks=hooks.within("detection"))[0]
        verdict = judge_norms(found)
        label = verdict.target
    else:
        refuse(
            isinstance(search.target, str),
            f"target: {search.target!r} is not a class number; here the class's number is needed",
        )
        label = int(search.target)
    if found is None or (label >= 0 and not search.reuses):
        found = invert(*given, search.inversion, [label], hooks.within("inversion"))[0]
    return gather(search, verdict, found)
