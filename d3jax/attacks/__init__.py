"""Backdoor attacks: `ATTACKS[name] = (config class, constructor(config, info) -> Attack)`, one file per family."""

from .blend import BlendedConfig, blended
from .no_attack import CleanConfig, clean
from .patch import BadNetsConfig, badnets
from .sinusoid import SIGConfig, sig

ATTACKS = {
    "clean": (CleanConfig, clean),
    "badnets": (BadNetsConfig, badnets),
    "blended": (BlendedConfig, blended),
    "sig": (SIGConfig, sig),
}

__all__ = [
    "ATTACKS",
    "BadNetsConfig",
    "BlendedConfig",
    "CleanConfig",
    "SIGConfig",
    "badnets",
    "blended",
    "clean",
    "sig",
]
