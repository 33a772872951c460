"""No attack: the control that a study compares its backdoored models with, and a model of which no trigger is known."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from ..core.types import Attack, DataInfo


@dataclasses.dataclass(frozen=True)
class CleanConfig:
    """Nothing to set: nothing is poisoned, and ASR, RA and DER are undefined."""

    def build(self, info: DataInfo) -> Attack:
        """Return the identity attack."""
        return make_clean(self, info)


@dataclasses.dataclass(frozen=True)
class UnknownConfig:
    """Nothing to set: a model from elsewhere (`model.checkpoint`) whose trigger, if it has one, nobody knows."""

    def build(self, info: DataInfo) -> Attack:
        """Return the identity attack."""
        return make_clean(self, info)


def make_clean(config: CleanConfig | UnknownConfig, info: DataInfo) -> Attack:
    """The identity attack: selects no row, stamps nothing, wants every image in its own class."""
    return Attack(
        init=lambda key: {},
        stamp=lambda trigger, images: images,
        select=lambda key, labels: jnp.zeros(len(labels), bool),
        relabel=lambda labels: labels,
        poison=lambda trigger, key, batch: batch,
        eligible=lambda labels: jnp.zeros(len(labels), bool),
    )
