"""The TaCT attack: the trigger works on images of one class only (Tang et al. 2021).

Source: "Demon in the Variant", USENIX Security 2021, arXiv 1908.00686. Recipe: Qi et al. 2023.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ..config.fields import check_fields, option
from ..core.errors import refuse
from ..core.types import Array, Attack, DataInfo
from .badnets import BadNetsConfig, Corner, make_badnets
from .covers import cover_option, with_covers
from .poisoning import rate_option, target_option


@dataclasses.dataclass(frozen=True)
class TaCTConfig:
    """Settings of the TaCT attack, whose trigger works on images of the source class only.

    By default 0.3 % of the training set, all of class 1, is poisoned. As many images of the classes
    5 and 7 are covers, which get the trigger and keep their labels.
    """

    rate: float = rate_option(0.003)
    cover_rate: float = cover_option(0.003)
    source: int | str = option(1, "source class: the images that the trigger acts on", low=0)
    target: int | str = target_option()
    cover_classes: tuple[int | str, ...] = option((5, 7), "classes of the cover images", low=0)
    size: int = option(8, "side of the patch in pixels", low=1)
    position: Corner = option("bottom_right", "place of the patch in the image")
    image: str = option(
        "", "path of the patch: a picture or a .npy array, see badnets (empty: seeded noise)"
    )

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, info: DataInfo) -> Attack:
        """Build the TaCT attack with these settings for the data set that `info` describes."""
        return make_tact(self, info)


def make_tact(config: TaCTConfig, info: DataInfo) -> Attack:
    """Return the TaCT `Attack`, whose trigger works on images of the source class only.

    The trigger is that of BadNets, an opaque patch. Images of the source class get it and the
    target's label. Cover images, of other classes, get it and keep their labels. The ASR counts
    triggered images of the source class.

    Deviation: the patch is seeded noise where no picture is given. The published one is a picture
    ("trojan square"). Raises `ConfigError` for classes that do not exist, and where the source, the
    target and the cover classes are not distinct.
    """
    source, target = info.class_of(config.source, "source"), info.class_of(config.target)
    classes = [info.class_of(each, "cover_classes") for each in config.cover_classes]
    refuse(source == target, f"source: {config.source!r} is also the target")
    refuse(
        source in classes,
        f"cover_classes: {config.source!r} is the source, whose images are poison",
    )
    refuse(
        target in classes,
        f"cover_classes: {config.target!r} is the target, whose triggered images are poison",
    )
    refuse(
        len(set(classes)) < len(classes),
        f"cover_classes: {list(config.cover_classes)} names a class twice",
    )
    refuse(
        bool(config.cover_rate) and not classes,
        "cover_classes: is empty, but cover_rate asks for covers",
    )
    pattern = "white" if config.image else "random"
    patch = BadNetsConfig(
        rate=config.rate,
        target={source: target},
        size=config.size,
        position=config.position,
        pattern=pattern,
        image=config.image,
    )
    attack = make_badnets(patch, info)

    def stamp(trigger: dict[str, jax.Array], rows: Array, images: Array) -> jax.Array:
        return jnp.asarray(attack.stamp(trigger, images))

    return with_covers(
        attack, config.cover_rate, stamp, may=lambda labels: np.isin(labels, classes)
    )
