"""IBD-PSC, a detector of triggered inputs by amplified networks (Hou et al., ICML 2024).

Source: arXiv 2405.09786; the name means input-level backdoor detection by parameter-oriented
scaling consistency. A triggered input keeps its prediction, and its confidence, when scale and bias
of the last BatchNorm layers are multiplied. The score of an input is its PSC: the mean probability,
over such networks, of the class that the model itself predicts.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from ...config.fields import option
from ...core.errors import ConfigError
from ...core.images import as_float
from ...core.types import Array, DataInfo, InputDetector, Model, Split, Variables
from ...data.batched import batched_map
from ...training.loop import Hooks
from .common import check_rule, fpr_option, logits_of, rule_option, threshold_by_rule, threshold_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class IBDPSCConfig:
    """Settings of IBD-PSC, which rejects inputs whose prediction stays sure in amplified networks.

    The defaults are those of the authors and of BackdoorBox.
    """

    networks: int = option(5, "n, number of amplified networks", low=1)
    factor: float = option(1.5, "number by which scale and bias are multiplied", above=0)
    error: float = option(
        0.6,
        "ξ, error on the reserved images above which enough layers are amplified",
        low=0,
        high=1,
    )
    rule: Literal["constant", "quantile"] = rule_option()
    threshold: float = option(0.9, "score above which an input is rejected")
    fpr: float = fpr_option(0.1)

    __post_init__ = check_rule

    def build(self, info: DataInfo) -> InputDetector:
        """Build IBD-PSC, a detector of triggered inputs, for the data set that `info` describes."""
        return make_ibd_psc(self, info)


def amplified(model: Model, variables: Variables, count: int, factor: float) -> Variables:
    """Return the variables with scale and bias of the last `count` BatchNorm layers multiplied.

    The order of the layers is that of `model.channels`.
    """
    last = {norm.path for norm in model.channels[max(0, len(model.channels) - count) :]}

    def multiply(path: Any, leaf: jax.Array) -> jax.Array:
        *layer, name = (key.key for key in path)
        return leaf * factor if tuple(layer) in last and name in ("scale", "bias") else leaf

    return variables._replace(params=jax.tree_util.tree_map_with_path(multiply, variables.params))


def first_count(
    model: Model, variables: Variables, reserved: Split, factor: float, error: float
) -> int:
    """Return k, the least number of amplified layers with an error above `error` on clean images.

    It is at most the number of layers less one, also if no number has that error, and at least 1.
    """
    most, labels = max(1, len(model.channels) - 1), np.asarray(reserved.labels)
    for count in range(1, most):
        given = amplified(model, variables, count, factor)

        def predict(images: Array, given: Variables = given) -> jax.Array:
            return logits_of(model, given, as_float(images)).argmax(-1)

        if np.mean(batched_map(predict, reserved.images, batch_size=500) != labels) > error:
            return count
    return most


def make_ibd_psc(config: IBDPSCConfig, info: DataInfo) -> InputDetector:
    """Return IBD-PSC, an `InputDetector` that rejects inputs with a high PSC.

    k is the least number of last BatchNorm layers whose amplification gives an error above `error`
    on the reserved images. The networks have the last k + 1, …, k + n layers amplified, as in
    BackdoorBox. The paper begins with k. A network of which more layers than there are should be
    amplified has all amplified. The state has k as `count`, and the `threshold`.
    """

    def score(
        model: Model, variables: Variables, state: dict[str, Any], images: Array
    ) -> jax.Array:
        pixels, first = as_float(images), int(state["count"]) + 1
        predicted = logits_of(model, variables, pixels).argmax(-1)
        total = jnp.zeros(len(images))
        for count in range(first, first + config.networks):
            given = amplified(model, variables, count, config.factor)
            odds = jax.nn.softmax(logits_of(model, given, pixels))
            total += jnp.take_along_axis(odds, predicted[:, None], 1)[:, 0]
        return total / config.networks

    def prepare(
        key: jax.Array, model: Model, variables: Variables, reserved: Split, hooks: Hooks = Hooks()
    ) -> dict[str, Any]:
        count = first_count(model, variables, reserved, config.factor, config.error)
        hooks.say(f"amplifies {count + 1} or more of {len(model.channels)} BatchNorm layers")
        state: dict[str, Any] = {"count": jnp.int32(count)}
        compute = functools.partial(score, model, variables, state)
        threshold = threshold_by_rule(
            config, lambda: batched_map(compute, reserved.images, batch_size=500)
        )
        return state | {"threshold": threshold}

    def check(model: Model, shapes: Variables, size: int) -> None:
        if not model.channels:
            raise ConfigError(
                "ibd_psc amplifies BatchNorm layers, and this model names none (Model.channels); "
                "the detector runs on preact_resnet18, resnet, wide_resnet and vgg19_bn"
            )

    return InputDetector(prepare, score, threshold_of, check)
