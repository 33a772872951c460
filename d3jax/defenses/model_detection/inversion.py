"""Detect backdoored models by trigger inversion (Neural Cleanse, Wang et al., IEEE S&P 2019, §V)."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np

from ...core.errors import ConfigError
from ...core.random import stream
from ...core.records import LogRecord
from ...core.types import Array, DataInfo, Model, ModelDetector, Split, Variables, Verdict
from ...inversion import Inversion, InversionConfig, detect, invert, like, stamp, trigger_at
from ...training.loop import Hooks

THRESHOLD = 2.0
"""Deviations (1.4826 · MAD) below the median from which a norm is an outlier."""


def make_inversion(config: InversionConfig, info: DataInfo) -> ModelDetector:
    """Return the detector that inverts a trigger for every class and flags unusually small ones.

    The evidence is an `Inversion`. Raises `ConfigError` for fewer than three classes.
    """
    check_classes(info)

    def search(
        key: jax.Array,
        model: Model,
        variables: Variables,
        reserved: Split,
        hooks: Hooks = Hooks(),
    ) -> tuple[Inversion, list[LogRecord]]:
        given = (stream(key, "inversion"), model, variables, reserved)
        return invert(*given, config, hooks=hooks)

    def check(model: Model, shapes: Variables, size: int) -> None:
        check_size(config, size)

    return ModelDetector(search, judge_norms, like, check, trigger_of)


def judge_norms(found: Inversion) -> Verdict:
    """Return which norms are outliers on the small side.

    The score of a class is how many deviations its norm is below the median, −inf where its search
    failed; the statistic is the distance of the smallest norm from the median, without sign.
    `failed` counts the classes whose search failed: no trigger was found that turns half of the
    images. Where fewer than three worked nothing is flagged.
    """
    outliers = detect(found.norms, found.success)
    below = (outliers.median - outliers.norms) / max(outliers.spread, 1e-9)
    below = np.where(outliers.worked & np.isfinite(below), below, -np.inf)
    columns = {
        "norm": outliers.norms,
        "index": outliers.index,
        "success": np.asarray(found.success),
        "passes": np.asarray(found.passes),
    }
    failed = int((~outliers.worked).sum())
    facts = {"median": outliers.median, "spread": outliers.spread, "failed": failed}
    return Verdict(below, outliers.flagged, outliers.anomaly, THRESHOLD, columns, facts)


def trigger_of(found: Inversion, label: int) -> Callable[[Array], Array]:
    """Return the stamp of the trigger that was found for a class."""
    trigger = trigger_at(found, label)
    return lambda images: stamp(trigger, images)


def check_classes(info: DataInfo) -> None:
    """Raise `ConfigError` where there are too few classes for one to be an outlier."""
    if info.num_classes < 3:
        raise ConfigError(
            f"target: cannot be detected among {info.num_classes} classes, an outlier needs three; "
            "name the target"
        )


def check_size(config: InversionConfig, size: int, prefix: str = "") -> None:
    """Raise `ConfigError` where a batch of an inversion has more than `size` images.

    `prefix` begins the setting's name.
    """
    if size < config.batch_size:
        raise ConfigError(
            f"{prefix}batch_size: {config.batch_size} is more than the {size} reserved images"
        )
