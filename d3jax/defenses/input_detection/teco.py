"""TeCo, a detector of triggered inputs by corrupted copies (Liu et al., CVPR 2023).

Source: arXiv 2303.18191; the name means test-time corruption robustness consistency. The prediction
for a clean image changes at similar severities of all corruptions. That for a triggered image can
survive one corruption and change at once with another. The score of an input is the standard
deviation, over corruptions, of the first severity at which its prediction changes.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from ...config.fields import check_fields, option
from ...core.errors import refuse
from ...core.images import as_float
from ...core.random import stream
from ...core.types import Array, DataInfo, InputDetector, Model, Split, Variables
from ...data.batched import batched_map
from ...data.corruptions import SEVERITIES, corrupt
from ...training.loop import Hooks
from .common import clean_quantile, fpr_option, logits_of, threshold_of

Corruption = Literal[
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "motion_blur",
    "fog",
    "brightness",
    "contrast",
    "saturate",
    "pixelate",
    "jpeg",
]
"""The names in `CORRUPTIONS` of data/corruptions.py."""
USUAL: tuple[Corruption, ...] = tuple(name for name in get_args(Corruption) if name != "saturate")
"""The corruptions that the authors have too."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeCoConfig:
    """Settings of TeCo, which rejects inputs that are robust to some corruptions only.

    The corruptions are those of the authors' fifteen that d3jax has. `saturate` can be added for
    images with colours.
    """

    corruptions: tuple[Corruption, ...] = option(
        USUAL,
        "corruptions of the copies, each at five severities",
    )
    fpr: float = fpr_option(0.1)

    def __post_init__(self) -> None:
        check_fields(self)
        refuse(
            len(set(self.corruptions)) < 2,
            f"corruptions: {list(self.corruptions)} have no standard deviation, want two or more",
        )

    def build(self, info: DataInfo) -> InputDetector:
        """Build TeCo, a detector of triggered inputs, for the data set that `info` describes."""
        return make_teco(self, info)


def first_changes(
    key: jax.Array, model: Model, variables: Variables, images: Array, corruptions: tuple[str, ...]
) -> jax.Array:
    """Return the first severity [n, B] of n corruptions that changes the prediction; 6 for none.

    The images are float in [0, 1]. Each corruption draws from its own stream of the key.
    """

    def labels(images: Array) -> jax.Array:
        return logits_of(model, variables, images).argmax(-1)

    def first(name: str) -> jax.Array:
        copies = (corrupt(name, stream(key, name), images, severity) for severity in SEVERITIES)
        changed = jnp.stack([labels(one) != predicted for one in copies])
        return jnp.where(changed.any(0), changed.argmax(0) + 1, len(SEVERITIES) + 1)

    predicted = labels(images)
    return jnp.stack([first(name) for name in corruptions])


def make_teco(config: TeCoConfig, info: DataInfo) -> InputDetector:
    """Return TeCo, an `InputDetector` that rejects inputs with an uneven robustness.

    The state has the data of the random `key` of the corruptions, and the `threshold`, which is a
    quantile of the scores of the reserved images.

    Deviations: BackdoorBench compares scores of test images and sets no threshold. It overwrites
    its images, so that each corruption is added to all earlier ones; here each starts from the
    input. All images share the noise.
    """

    def score(
        model: Model, variables: Variables, state: dict[str, Any], images: Array
    ) -> jax.Array:
        key, pixels = jax.random.wrap_key_data(state["key"]), as_float(jnp.asarray(images))
        changes = first_changes(key, model, variables, pixels, config.corruptions)
        return changes.astype(jnp.float32).std(0)

    def prepare(
        key: jax.Array, model: Model, variables: Variables, reserved: Split, hooks: Hooks = Hooks()
    ) -> dict[str, Any]:
        state: dict[str, Any] = {"key": jax.random.key_data(stream(key, "corruptions"))}
        compute = functools.partial(score, model, variables, state)
        scores = batched_map(compute, reserved.images, batch_size=500)
        return state | {"threshold": clean_quantile(scores, config.fpr)}

    return InputDetector(prepare, score, threshold_of)
