"""Detection of backdoored models by trigger inversion, as in Neural Cleanse.

Source: Wang et al., IEEE S&P 2019, §V.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np

from ...core.errors import ConfigError
from ...core.random import stream
from ...core.records import LogRecord
from ...core.types import Array, DataInfo, Model, ModelDetector, Split, Variables, Verdict
from ...inversion import Inversion, InversionConfig, detect, invert, like, stamp, trigger_at
from ...inversion.outliers import THRESHOLD
from ...training.loop import Hooks


def make_inversion(config: InversionConfig, info: DataInfo) -> ModelDetector:
    """Return the `ModelDetector` that inverts every class's trigger and flags unusually small ones.

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
    """Return the `Verdict` whether a model is backdoored, from the norms of inverted triggers.

    A class is flagged if its norm is an outlier on the small side. The score of a class is the
    number of deviations by which its norm lies below the median. The statistic is the distance of
    the smallest norm from the median in deviations, without sign.

    A search failed if its trigger changes the prediction to the class on less than half of the
    images. The score of that class is −inf, and the fact `failed` counts such classes. If fewer
    than three searches succeeded, no class is flagged.
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
    """Return the function that stamps the trigger found for class `label` on images."""
    trigger = trigger_at(found, label)
    return lambda images: stamp(trigger, images)


def check_classes(info: DataInfo) -> None:
    """Raise `ConfigError` for fewer than three classes, too few to find an outlier among triggers.

    No norm can be an outlier among fewer.
    """
    if info.num_classes < 3:
        raise ConfigError(
            f"target: cannot be detected among {info.num_classes} classes, an outlier needs three; "
            "name the target"
        )


def check_size(config: InversionConfig, size: int, prefix: str = "") -> None:
    """Raise `ConfigError` where trigger inversion has batches of more than `size` images.

    `size` is the number of reserved images. The message puts `prefix` before the setting's name.
    """
    if size < config.batch_size:
        raise ConfigError(
            f"{prefix}batch_size: {config.batch_size} is more than the {size} reserved images"
        )
