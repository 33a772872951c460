"""BaDExpert, a detector of triggered inputs by a backdoor expert (Xie et al., ICLR 2024).

Source: arXiv 2308.12439. The expert is the model after a short training on wrongly labelled clean
images: it forgets the classes and keeps the backdoor. The partner is the model after fine-tuning on
the clean images. An input is suspicious if the expert agrees with the model's prediction and the
partner does not.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from ...config.fields import check_fields, option
from ...config.recipes import OptimConfig, ScheduleConfig
from ...core.images import as_float
from ...core.random import stream
from ...core.types import Array, DataInfo, InputDetector, Model, Split, Variables
from ...data.batched import batched_map
from ...training.loop import Hooks, fit
from ...training.step import classification_loss
from ..repair.common import repair_loop
from .common import clean_quantile, fpr_option, logits_of, threshold_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaDExpertConfig:
    """Settings of BaDExpert, which trains an expert on the backdoor and a partner without it.

    The defaults are those of the authors' program for CIFAR-10 and a ResNet: an epoch of Adam at
    1e-4 for the expert, and 10 epochs of SGD for the partner, whose rate of 0.1 is divided by 10
    after 2, 4, 6 and 8 epochs.
    """

    expert: ScheduleConfig = option(
        ScheduleConfig(
            epochs=1,
            batch_size=128,
            optimizer=OptimConfig(name="adam", lr=1e-4, weight_decay=0.0, schedule="constant"),
        ),
        "length, batch size and optimiser of the expert's training",
    )
    partner: ScheduleConfig = option(
        ScheduleConfig(
            epochs=10,
            batch_size=64,
            optimizer=OptimConfig(lr=0.1, nesterov=True, weight_decay=1e-4, schedule="fifths"),
        ),
        "length, batch size and optimiser of the partner's fine-tuning",
    )
    fpr: float = fpr_option(0.01)

    __post_init__ = check_fields

    def build(self, info: DataInfo) -> InputDetector:
        """Build BaDExpert, a detector of triggered inputs, for the data that `info` describes."""
        return make_badexpert(self, info)


def cleanness(expert: jax.Array, partner: jax.Array) -> jax.Array:
    """Return min(2y/x, (1 − x)/(½ − y)) for the probabilities x of the expert, y of the partner.

    Both are those of the class that the model predicts. A low number is suspicious. Denominators
    are at least 1e-8.
    """
    low, high = 2 * partner / jnp.maximum(expert, 1e-8), jnp.maximum(0.5 - partner, 1e-8)
    return jnp.minimum(low, (1 - expert) / high)


def trained(
    key: jax.Array,
    model: Model,
    variables: Variables,
    split: Split,
    schedule: ScheduleConfig,
    info: DataInfo,
    hooks: Hooks,
) -> dict[str, Any]:
    """Train a model on a split by a schedule, and return its variables as a dict."""
    loop = repair_loop(
        key, variables, split, loss=classification_loss(model), schedule=schedule, info=info
    )
    return fit(loop, hooks)[0].variables._asdict()


def make_badexpert(config: BaDExpertConfig, info: DataInfo) -> InputDetector:
    """Return BaDExpert, an `InputDetector` that rejects what expert and model agree on.

    The expert learns the class y + 1 for images of class y (the last class: class 0). The score of
    an input is minus its `cleanness`. The state has the variables of `expert` and `partner`, and
    the `threshold`.

    Deviations: the authors take the threshold from clean test images, and d3jax from the reserved
    ones. The partner was trained on these, so more clean inputs than the share `fpr` can be
    rejected. The batches of an epoch have equal size.
    """

    def score(
        model: Model, variables: Variables, state: dict[str, Any], images: Array
    ) -> jax.Array:
        pixels = as_float(images)
        predicted = logits_of(model, variables, pixels).argmax(-1)[:, None]

        def probability(name: str) -> jax.Array:
            # A net without BatchNorm has no statistics, and a file has no empty dict.
            net = Variables(state[name]["params"], state[name].get("batch_stats", {}))
            odds = jax.nn.softmax(logits_of(model, net, pixels))
            return jnp.take_along_axis(odds, predicted, 1)[:, 0]

        return -cleanness(probability("expert"), probability("partner"))

    def prepare(
        key: jax.Array, model: Model, variables: Variables, reserved: Split, hooks: Hooks = Hooks()
    ) -> dict[str, Any]:
        wrong = reserved._replace(labels=(reserved.labels + 1) % info.num_classes)
        tasks = {"expert": (wrong, config.expert), "partner": (reserved, config.partner)}
        state: dict[str, Any] = {
            name: trained(stream(key, name), model, variables, *task, info, hooks.within(name))
            for name, task in tasks.items()
        }
        compute = functools.partial(score, model, variables, state)
        scores = batched_map(compute, reserved.images, batch_size=500)
        return state | {"threshold": clean_quantile(scores, config.fpr)}

    return InputDetector(prepare, score, threshold_of)
