"""Backdoor attacks: `ATTACKS[name] = (config class, constructor(config, info) -> Attack)`, one file per family."""

from .badnets import BadNetsConfig, badnets
from .blended import BlendedConfig, blended
from .bpp import BPPConfig, bpp
from .clean import CleanConfig, UnknownConfig, clean
from .input_aware import InputAwareConfig, input_aware
from .lc import LCConfig, lc
from .lf import LFConfig, lf
from .sig import SIGConfig, sig
from .ssba import SSBAConfig, ssba
from .trojannn import TrojanNNConfig, trojannn
from .wanet import WaNetConfig, wanet

ATTACKS = {
    "clean": (CleanConfig, clean),
    "unknown": (UnknownConfig, clean),
    "badnets": (BadNetsConfig, badnets),
    "blended": (BlendedConfig, blended),
    "sig": (SIGConfig, sig),
    "wanet": (WaNetConfig, wanet),
    "input_aware": (InputAwareConfig, input_aware),
    "lf": (LFConfig, lf),
    "ssba": (SSBAConfig, ssba),
    "lc": (LCConfig, lc),
    "bpp": (BPPConfig, bpp),
    "trojannn": (TrojanNNConfig, trojannn),
}

__all__ = [
    "ATTACKS",
    "BPPConfig",
    "BadNetsConfig",
    "BlendedConfig",
    "CleanConfig",
    "InputAwareConfig",
    "LCConfig",
    "LFConfig",
    "SIGConfig",
    "SSBAConfig",
    "TrojanNNConfig",
    "UnknownConfig",
    "WaNetConfig",
    "badnets",
    "blended",
    "bpp",
    "clean",
    "input_aware",
    "lc",
    "lf",
    "sig",
    "ssba",
    "trojannn",
    "wanet",
]
