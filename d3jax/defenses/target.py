"""What a defence that stamps an inverted trigger finds out first: which class the backdoor leads to, and a trigger of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from ..base import DataInfo, Defense, Model, Params, Repaired, Split, Variables, stream
from ..config import option
from ..errors import ConfigError
from ..inversion import Detection, Inversion, InversionConfig, Trigger, detect, invert, nothing
from ..training.loop import Job, Session, fit, trace_of

Target = int | Literal["detect"]
"""The class a backdoor leads to, or that it is to be found."""


def target_option() -> Any:
    """The option `target` of such a defence."""
    return option("detect", "class the backdoor leads to, or detect: the one that `detection` flags", low=0)


class Search(NamedTuple):
    """Which trigger is wanted: of the class `target`, or of the one that `detection` flags among all, found by `inversion`."""

    target: Target
    inversion: InversionConfig
    detection: InversionConfig


class Found(NamedTuple):
    """The `trigger` of the class `target` and the share of images it turns (`success`); `how` the class was chosen.

    `target` is −1 where detection flagged none: then there is no trigger. `detection` is None where the class was given.
    """

    target: int
    how: str
    trigger: Trigger
    success: float
    detection: Detection | None = None


def searching(
    search: Search, job: Callable[..., Job], info: DataInfo, check: Callable[[Params, int], None] = lambda params, size: None
) -> Defense:
    """The defence that does `search`, unless it is given what was `found`, then the loop `job(key, model, variables, reserved,
    trigger)`. Where detection flags no label the model stays as it is.

    Raises `ConfigError` where the target is no class.
    """
    if search.target != "detect" and search.target >= info.num_classes:
        raise ConfigError(f"target: {search.target} is no class of {info.name}, which has 0 to {info.num_classes - 1}")

    def repair(
        key: jax.Array,
        model: Model,
        variables: Variables,
        reserved: Split,
        session: Session = Session(),
        found: Found | None = None,
    ) -> Repaired:
        found = found or find(key, model, variables, reserved, search, session)
        if found.target < 0:
            return Repaired(variables, {})
        state, lines = fit(job(key, model, variables, reserved, found.trigger), session)
        return Repaired(state.variables, trace_of(lines))

    def check_all(params: Params, size: int) -> None:
        check_search(search, size)
        check(params, size)

    return Defense(repair, check_all, search=search)


def check_search(search: Search, size: int) -> None:
    """Raises `ConfigError` where there are fewer reserved images than a batch of an inversion has."""
    wanted = [("inversion", search.inversion)] + ([("detection", search.detection)] if search.target == "detect" else [])
    for name, config in wanted:
        check_size(config, size, f"{name}.")


def check_size(config: InversionConfig, size: int, prefix: str = "") -> None:
    """Raises `ConfigError` where a batch of an inversion has more than `size` images; `prefix` begins the setting's name."""
    if size < config.batch_size:
        raise ConfigError(f"{prefix}batch_size: {config.batch_size} is more than the {size} reserved images")


def choose(detection: Detection, labels: Any) -> tuple[int, str]:
    """The label to repair, −1 for none, and why: of several that are flagged the one with the highest index, the smallest trigger."""
    flagged = np.flatnonzero(detection.flagged)
    if not len(flagged):
        return -1, f"none flagged, the highest index is {_index(detection.anomaly)}"
    first = flagged[detection.index[flagged].argmax()]
    label, index = int(labels[first]), _index(detection.index[first])
    return label, f"flagged with index {index}" + (f", the highest of {len(flagged)}" if len(flagged) > 1 else "")


def _index(value: float) -> str:
    return f"{value:.2f}"


def gather(search: Search, *inversions: Inversion) -> Found:
    """What the inversions of a search say together: that of the given class; or the detection, and the flagged class's if that is
    another."""
    if search.target != "detect":
        return Found(search.target, "given", *_first(inversions[0], search.target))
    detection = detect(inversions[0].norms, search.detection.median)
    label, how = choose(detection, inversions[0].labels)
    return Found(label, how, *_first(inversions[-1], label), detection)


def _first(inversion: Inversion, label: int) -> tuple[Trigger, float]:
    rows = np.flatnonzero(np.asarray(inversion.labels) == label)
    if not len(rows):
        inversion, rows = nothing(inversion.trigger.pattern.shape[1:]), [0]
    row = rows[0]
    return Trigger(*(part[row] for part in inversion.trigger)), float(inversion.success[row])


def flagged_label(detected: Inversion, config: InversionConfig) -> int:
    """The label that a finished detection leads to, −1 for none."""
    return choose(detect(detected.norms, config.median), detected.labels)[0]


def find(
    key: jax.Array, model: Model, variables: Variables, images: Split, search: Search, session: Session = Session()
) -> Found:
    """Does a search from the start: at most two inversions."""
    key, found, label = stream(key, "inversion"), [], search.target
    if label == "detect":
        found.append(invert(key, model, variables, images, search.detection, session=session.within("detection"))[0])
        label = flagged_label(found[0], search.detection)
    if not found or (label >= 0 and search.inversion != search.detection):
        found.append(invert(key, model, variables, images, search.inversion, [label], session.within("inversion"))[0])
    return gather(search, *found)
