"""The attacks `clean`, a control without a backdoor, and `unknown`, for an external model."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from ..core.types import Attack, DataInfo


@dataclasses.dataclass(frozen=True)
class CleanConfig:
    """Settings of the attack `clean`, the control without a backdoor.

    There is nothing to set. Nothing is poisoned, so ASR, RA and DER are undefined.
    """

    def build(self, info: DataInfo) -> Attack:
        """Return an `Attack` that poisons nothing."""
        return make_clean(self, info)


@dataclasses.dataclass(frozen=True)
class UnknownConfig:
    """Settings of the attack `unknown`, for an external model whose trigger is not known.

    There is nothing to set. The model comes from elsewhere (`model.checkpoint`). It may have no
    trigger at all.
    """

    def build(self, info: DataInfo) -> Attack:
        """Return an `Attack` that poisons nothing."""
        return make_clean(self, info)


def make_clean(config: CleanConfig | UnknownConfig, info: DataInfo) -> Attack:
    """Return an `Attack` that poisons nothing and changes no image and no label."""
    return Attack(
        init=lambda key: {},
        stamp=lambda trigger, images: images,
        select=lambda key, labels: jnp.zeros(len(labels), bool),
        relabel=lambda labels: labels,
        poison=lambda trigger, key, batch: batch,
        eligible=lambda labels: jnp.zeros(len(labels), bool),
    )
