"""What a defence that stamps an inverted trigger finds out first: which class the backdoor leads to, and a trigger of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from ...config.fields import option
from ...core.errors import ConfigError
from ...core.random import stream
from ...core.types import DataInfo, Defense, Model, Params, Repaired, Split, Variables
from ...inversion import Detection, Inversion, InversionConfig, Trigger, detect, invert, nothing
from ...training.loop import Hooks, TrainLoop, fit, trace_of

Target = int | Literal["detect"]
"""The class a backdoor leads to, or that it is to be found."""


def target_option() -> Any:
    """The option `target` of such a defence."""
    return option(
        "detect", "class the backdoor leads to, or detect: the one that `detection` flags", low=0
    )


class Search(NamedTuple):
    """Which trigger is wanted: of the class `target`, or of the one that `detection` flags among all, found by `inversion`."""

    target: Target
    inversion: InversionConfig
    detection: InversionConfig


class Found(NamedTuple):
    """The `trigger` of the class `target` and the share of images of other classes that it turns (`success`); `how` the class was
    chosen.

    `target` is −1 where detection flagged none: then there is no trigger, and `success` is NaN. `detection` is None where the class
    was given.
    """

    target: int
    how: str
    trigger: Trigger
    success: float
    detection: Detection | None = None

    @property
    def text(self) -> str:
        """What was found, in words."""
        if self.target < 0:
            return f"not repaired: {self.how}"
        return f"class {self.target}, {self.how}; its trigger turns {100 * self.success:.0f} % of the images"


def searching(
    search: Search,
    loop: Callable[..., TrainLoop],
    info: DataInfo,
    check: Callable[[Params, int], None] = lambda params, size: None,
) -> Defense:
    """The defence that does `search`, unless it is given what was `found`, then the loop `loop(key, model, variables, reserved,
    trigger)`. Where detection flags no label the model stays as it is.

    Raises `ConfigError` where the target is no class, or is to be detected among fewer than three.
    """
    if search.target == "detect":
        check_classes(info)
    if search.target != "detect" and search.target >= info.num_classes:
        raise ConfigError(
            f"target: {search.target} is no class of {info.name}, which has 0 to {info.num_classes - 1}"
        )

    def repair(
        key: jax.Array,
        model: Model,
        variables: Variables,
        reserved: Split,
        hooks: Hooks = Hooks(),
        found: Found | None = None,
    ) -> Repaired:
        found = found or find(key, model, variables, reserved, search, hooks)
        if found.target < 0:
            hooks.say(found.text)
            return Repaired(variables, {})
        state, lines = fit(loop(key, model, variables, reserved, found.trigger), hooks)
        return Repaired(state.variables, trace_of(lines))

    def check_all(params: Params, size: int) -> None:
        check_search(search, size)
        check(params, size)

    return Defense(repair, check_all, search=search)


def check_search(search: Search, size: int) -> None:
    """Raises `ConfigError` where there are fewer reserved images than a batch of an inversion has."""
    wanted = [("inversion", search.inversion)] + (
        [("detection", search.detection)] if search.target == "detect" else []
    )
    for name, config in wanted:
        check_size(config, size, f"{name}.")


def check_classes(info: DataInfo) -> None:
    """Raises `ConfigError` where there are too few classes for one to be an outlier."""
    if info.num_classes < 3:
        raise ConfigError(
            f"target: cannot be detected among {info.num_classes} classes, an outlier needs three; name the target"
        )


def check_size(config: InversionConfig, size: int, prefix: str = "") -> None:
    """Raises `ConfigError` where a batch of an inversion has more than `size` images; `prefix` begins the setting's name."""
    if size < config.batch_size:
        raise ConfigError(
            f"{prefix}batch_size: {config.batch_size} is more than the {size} reserved images"
        )


def choose(detection: Detection, labels: Any) -> tuple[int, str]:
    """The label to repair, −1 for none, and why: of several that are flagged the one with the smallest trigger."""
    flagged = np.flatnonzero(detection.flagged)
    if not len(flagged):
        return -1, f"none flagged, the smallest norm has index {detection.anomaly:.2f}"
    first = flagged[detection.norms[flagged].argmin()]
    several = f", the smallest of {len(flagged)} flagged" if len(flagged) > 1 else ""
    return int(labels[first]), f"flagged with index {detection.index[first]:.2f}{several}"


def gather(search: Search, *inversions: Inversion) -> Found:
    """What the inversions of a search say together: that of the given class; or the detection, and the flagged class's if that is
    another."""
    if search.target != "detect":
        return Found(search.target, "given", *_of(inversions[0], search.target))
    detection = detect(inversions[0].norms)
    label, how = choose(detection, inversions[0].labels)
    return Found(label, how, *_of(inversions[-1], label), detection)


def _of(inversion: Inversion, label: int) -> tuple[Trigger, float]:
    """A label's trigger and success; nothing for −1."""
    if label < 0:
        return Trigger(
            *(part[0] for part in nothing(inversion.trigger.pattern.shape[1:]).trigger)
        ), float("nan")
    row = np.flatnonzero(np.asarray(inversion.labels) == label)[0]
    return Trigger(*(part[row] for part in inversion.trigger)), float(inversion.success[row])


def flagged_label(detected: Inversion) -> int:
    """The label that a finished detection leads to, −1 for none."""
    return choose(detect(detected.norms), detected.labels)[0]


def find(
    key: jax.Array,
    model: Model,
    variables: Variables,
    images: Split,
    search: Search,
    hooks: Hooks = Hooks(),
) -> Found:
    """Does a search from the start: at most two inversions."""
    key, found, label = stream(key, "inversion"), [], search.target
    if label == "detect":
        found.append(
            invert(
                key, model, variables, images, search.detection, hooks=hooks.within("detection")
            )[0]
        )
        label = flagged_label(found[0])
    if not found or (label >= 0 and search.inversion != search.detection):
        found.append(
            invert(
                key, model, variables, images, search.inversion, [label], hooks.within("inversion")
            )[0]
        )
    return gather(search, *found)
