"""Evolution runs in which a repair is called between the updates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.images import as_float, as_levels
from ..core.random import stream
from ..core.records import LogRecord
from ..core.types import Repair, Split, TrainState, Variables
from ..data.drift import compose
from ..training.loop import Hooks, TrainLoop, fit
from .config import EvolutionConfig
from .measure import Measure, strengths
from .updates import drift_keys, restarted


def defended_updates(
    loop: TrainLoop,
    measure: Measure,
    trigger: Any,
    defense: Repair,
    key: jax.Array,
    images: int,
    learned: int,
    watch: Callable[[TrainState], LogRecord],
    hooks: Hooks,
) -> tuple[Variables, list[LogRecord]]:
    """Run an evolution run's updates with a repair called between them; return model and records.

    `loop` is the train loop of all updates. At most `images` clean images of an update go to the
    repair. They are among the `learned` images of the update, drifted in the same way. Poisoned
    ones are left out, as by a defender who inspects the images. The repaired model is the start of
    the next update, which begins with momentum 0 even where `optimizer_state` is "carried".
    `trained_acc` and `trained_asr` are measured before the repair, and all other columns after it.
    """
    config, state, records, seconds = measure.config, loop.state, [], 0.0
    steps = loop.steps // config.updates
    for update in range(1, config.updates + 1):
        part = loop._replace(state=state, steps=update * steps)
        state, logged = fit(part, hooks.within(f"update{update}"))
        logged = [line | {"seconds": line["seconds"] + seconds} for line in logged]
        seconds, trained = logged[-1]["seconds"], {}
        if _is_due(config, update):
            counts, _ = measure(state.variables, trigger, update)
            trained = {"trained_acc": counts.acc}
            trained |= {"trained_asr": counts.asr} if counts.triggered.sum() else {}
            clean = _inspected(loop, measure, update, images, learned)
            draw = jax.random.fold_in(stream(key, "defense"), update)
            given = (draw, measure.model, state.variables, clean)
            repaired = defense.repair(*given, hooks.within(f"defense{update}"))
            seconds += float(np.max(repaired.trace.get("seconds", 0.0)))
            state = restarted(state, repaired.variables)
        logged[-1] |= trained | watch(state)
        records += logged
    return state.variables, records


def _is_due(config: EvolutionConfig, update: int) -> bool:
    """Return whether an evolution run calls the repair after the update numbered `update`."""
    call, left = divmod(update, config.every)
    return not left and (not config.calls or call <= config.calls)


def _inspected(loop: TrainLoop, measure: Measure, update: int, images: int, learned: int) -> Split:
    """Return at most `images` clean images of an evolution update, drifted, for the repair to use.

    They are drifted as at that update.
    """
    config, order = measure.config, loop.data.loss_inputs["order"]
    first = len(order) - learned * (config.updates - update + 1)
    poisoned = np.asarray(loop.data.poisoned[first : first + learned])
    places = (first + np.flatnonzero(~poisoned))[:images]
    pixels, labels = (part[order[places]] for part in loop.data.split)
    drift = compose(tuple(config.drift), measure.info.shape[2])
    keys = drift_keys(loop.state.key, places)
    drifted = drift(keys, as_float(pixels), strengths(config, update))
    return Split(as_levels(drifted).astype(jnp.uint8), labels)
