"""Checks of a model: does it have a backdoor, and towards which class?"""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import norm

from ..core.images import as_float, as_levels
from ..core.random import stream
from ..core.types import Split
from ..defenses.model_detection.inversion import make_inversion
from ..defenses.model_detection.mmbd import MMBDConfig
from ..defenses.repair.held_out import divide
from ..inversion import Inversion, InversionConfig, stamp, success_of, trigger_at
from .checks import Check, not_run, run_check
from .given import Given

INVERSION = "Trigger inversion (Neural Cleanse, 2019)"
MARGINS = "MM-BD (maximum margins, 2024)"
HELD_OUT = 0.2
"""The share of the clean images on which an inverted trigger is tried that did not shape it."""
SURE = 0.01
"""The largest probability by chance at which an outlier counts as found, and not as a weak sign."""
WORKS = 0.75
"""The least success rate on held-out images of a trigger that counts as found."""
SHOWN = 8
"""The number of images on which the page shows an inverted trigger."""
SEARCH_LIMITS = (
    "It finds small patches, in another form and place than the attacker's. It does not find "
    "triggers that cover the image, such as a blended picture, a sine wave or a warp."
)
"""What trigger inversion does not find."""
QUICK = InversionConfig(passes=120, batches=8)
"""Trigger inversion with fewer and shorter passes than published, for a first look."""


def check_model(key: jax.Array, given: Given, thorough: bool = False) -> Iterator[Check]:
    """Yield the checks of the model: MM-BD, and with clean images also trigger inversion.

    `thorough` takes the published number of passes for trigger inversion.
    """
    yield run_check("model", MARGINS, lambda: _margins(stream(key, "margins"), given))
    if given.clean is None:
        yield not_run("model", INVERSION, "clean images (--data)")
        return
    clean, config = given.clean, InversionConfig() if thorough else QUICK
    yield run_check(
        "model", INVERSION, lambda: _inversion(stream(key, "inversion"), given, clean, config)
    )


def _margins(key: jax.Array, given: Given) -> Check:
    detector = MMBDConfig().build(given.info)
    evidence, _ = detector.detect(key, given.model, given.variables)
    verdict = detector.judge(evidence)
    top = int(np.argmax(verdict.scores))
    p, name = verdict.facts["p_value"], given.info.classes[top]
    finding = (
        f"The logit of {name} can exceed all others by {verdict.scores[top]:.1f}, and that of the "
        f"median class by {np.median(verdict.scores):.1f}."
    )
    certainty = (
        f"The p-value of this margin among the {len(verdict.scores)} classes is {p:.2g} (limit "
        f"{MMBDConfig().alpha:g}). The method also flags some clean models, so "
        "that its flag is a weak sign alone."
    )
    limits = "It does not see a backdoor that raises the target's logit no further than usual."
    return Check(
        "model",
        MARGINS,
        "weak" if verdict.target >= 0 else "nothing",
        finding,
        certainty,
        limits,
        verdict.target,
        class_scores=verdict.scores,
        score="It is the largest margin of the class's logit over all others.",
    )


def _inversion(key: jax.Array, given: Given, clean: Split, config: InversionConfig) -> Check:
    detector = make_inversion(config, given.info)
    seen, held_out = divide(key, clean, HELD_OUT)
    detector.check(given.model, jax.eval_shape(lambda: given.variables), len(seen.labels))
    found, _ = detector.detect(key, given.model, given.variables, seen)
    verdict = detector.judge(found)
    top = int(np.argmax(verdict.scores))
    if np.isneginf(verdict.scores[top]):
        finding = "It found triggers for fewer than three classes, too few to compare their areas."
        certainty = "The check says nothing about this model."
        return Check("model", INVERSION, "nothing", finding, certainty, SEARCH_LIMITS)
    rates = np.asarray(
        success_of(given.model, given.variables, found.trigger, found.labels, held_out)
    )
    chance = float(1 - norm.cdf(verdict.scores[top]) ** len(verdict.scores))
    flagged, works = verdict.target >= 0, rates[top] >= WORKS
    level = "nothing" if not flagged else "found" if works and chance <= SURE else "weak"
    norm_of_top, name = float(found.norms[top]), given.info.classes[top]
    finding = (
        f"The smallest trigger that leads to {name} has an area (the sum of its mask) of "
        f"{norm_of_top:.1f} pixels, and that of the median class {verdict.facts['median']:.1f}. On "
        f"{len(held_out.labels)} clean images that the search did not see, it changes "
        f"{rates[top]:.0%} of those of other classes to {name}. The median class's trigger changes "
        f"{np.median(rates):.0%}."
    )
    certainty = (
        f"The area lies {verdict.scores[top]:.1f} deviations (1.4826 · MAD) below the median "
        f"(limit {verdict.threshold:g}). If the areas of a clean model have a normal distribution, "
        f"one of {len(rates)} is so small with a probability of {chance:.2g}. That assumption is "
        "rough: some classes have small triggers by nature."
    )
    return Check(
        "model",
        INVERSION,
        level,
        finding,
        certainty,
        SEARCH_LIMITS,
        verdict.target,
        class_scores=verdict.scores,
        score="It is the distance of the trigger's area below the median, in deviations. Without a "
        "bar, the area is the median, or the search failed.",
        pictures=_pictures(given, found, top, held_out),
    )


def _pictures(given: Given, found: Inversion, label: int, images: Split) -> dict[str, np.ndarray]:
    """Return clean images, and the same with the trigger that was found for a class."""
    clean = jnp.asarray(images.images[:SHOWN])
    stamped = as_levels(stamp(trigger_at(found, label), as_float(clean)))
    name = given.info.classes[label]
    stamped = np.asarray(stamped.astype(jnp.uint8))
    return {"clean": np.asarray(clean), f"with the trigger of {name}": stamped}
