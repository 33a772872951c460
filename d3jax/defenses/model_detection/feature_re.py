"""FeatureRE, a detector of backdoored models by triggers in feature space (NeurIPS 2022).

Source: Wang et al., arXiv 2210.15127, and the authors' program. A backdoor may be a transformation
of the whole image, which has no small trigger in pixel space. In feature space it moves triggered
images onto a hyperplane: a few features have one value, and these features decide for the target.
For every class, FeatureRE searches for a transformation F of images (a U-Net) and a small mask m of
features. Features of F(x) inside m, with features of clean images outside, must give the class.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ...config.fields import check_fields, option
from ...core.errors import ConfigError
from ...core.random import stream
from ...core.records import LogRecord
from ...core.types import DataInfo, Model, ModelDetector, Split, Variables, Verdict
from ...models.unet import unet
from ...training.loop import Hooks, fit
from ..activations import check_map, maps_of
from .feature_search import Reversed, class_loop, feature_step, features_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureREConfig:
    """Settings of FeatureRE, which searches every class's trigger in feature space.

    The defaults are the authors'. `images` is about 1 % of CIFAR-10, in two whole batches.
    """

    images: int = option(512, "number of reserved images for the search (0: all)", low=0)
    warm_up: int = option(100, "passes that train the transformation alone", low=0)
    passes: int = option(400, "passes that train transformation and mask", low=1)
    batch_size: int = option(256, "images per step", low=2)
    lr: float = option(1e-3, "Adam's learning rate for the transformation", above=0)
    mask_lr: float = option(0.1, "Adam's learning rate for the mask", above=0)
    width: int = option(32, "channels of the U-Net's first level", low=1)
    layer: str = option("", "name of the activation (empty: the last one with several places)")
    size: float = option(0.03, "largest share of features in the mask", above=0, high=1)
    change: float = option(
        0.15, "largest mean squared change of an image by the transformation, normalised", above=0
    )
    spread: float = option(1.0, "largest standard deviation of the features in the mask", above=0)
    success: float = option(0.9, "least success rate of the search", above=0, high=1)
    threshold: float = option(-0.75, "mixed value below which a class is a target", low=-1, high=1)

    __post_init__ = check_fields

    def build(self, info: DataInfo) -> ModelDetector:
        """Build FeatureRE, a detector of backdoored models, for the data set `info` describes."""
        return make_feature_re(self, info)


def layer_of(config: FeatureREConfig, model: Model, info: DataInfo) -> str:
    """Return the name of the activation in which FeatureRE searches.

    Raises `ConfigError` if `config.layer` is no activation with several places, or if the model has
    none.
    """
    if config.layer:
        check_map(config.layer, model, info, "layer")
    return config.layer or maps_of(model, info)[-1]


def judge_mixed(found: Reversed, threshold: float) -> Verdict:
    """Return FeatureRE's `Verdict`: classes with a mixed value below the threshold are targets.

    The score of a class is minus its mixed value, which is at most 1.
    """
    columns = {name: np.asarray(part, np.float64) for name, part in found._asdict().items()}
    mixed = np.nan_to_num(columns.pop("mixed"), nan=np.inf)
    return Verdict(-mixed, mixed < threshold, float(-mixed.min()), -threshold, columns)


def make_feature_re(config: FeatureREConfig, info: DataInfo) -> ModelDetector:
    """Return FeatureRE, a `ModelDetector` that searches every class's trigger in feature space.

    Deviations: transformation and mask are updated in one step, from one pass through the network.
    Images are shuffled in every pass, and a last short batch is left out. Images of the class
    itself are in the batches with weight 0.
    """
    init, transform = unet(info, config.width)

    def detect(
        key: jax.Array,
        model: Model,
        variables: Variables,
        reserved: Split,
        hooks: Hooks = Hooks(),
    ) -> tuple[Reversed, list[LogRecord]]:
        layer = layer_of(config, model, info)
        drawn = np.asarray(jax.random.permutation(stream(key, "images"), len(reserved.labels)))
        drawn = drawn[: config.images or None]
        split = Split(*(np.asarray(part)[drawn] for part in reserved))
        features = features_of(model, variables, layer, split)
        step = feature_step(model, config, info, transform, layer, len(split.labels))
        steps = (config.warm_up + config.passes) * (len(split.labels) // config.batch_size)
        found, records = [], []
        for label, name in enumerate(info.classes):
            loop = class_loop(key, step, steps, init, config, variables, split, features, label)
            state, lines = fit(loop, hooks.within(f"class{label}"))
            found.append(jax.device_get(state.carry["progress"].best))
            records += lines
            hooks.say(f"class {name}: mixed value {float(found[-1].mixed):.3f}")
        return jax.tree.map(lambda *parts: jnp.stack(parts), *found), records

    def check(model: Model, shapes: Variables, size: int) -> None:
        layer_of(config, model, info)
        given = min(size, config.images or size)
        if given < config.batch_size:
            raise ConfigError(
                f"batch_size: {config.batch_size} is more than the {given} reserved images in use"
            )

    def like(classes: int, shape: tuple[int, int, int]) -> Reversed:
        fields = len(Reversed._fields)
        return Reversed._make(fields * [jax.ShapeDtypeStruct((classes,), jnp.float32)])

    return ModelDetector(detect, lambda found: judge_mixed(found, config.threshold), like, check)
