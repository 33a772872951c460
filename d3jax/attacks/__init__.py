"""Backdoor attacks: `ATTACKS[name] = (config class, constructor(config, info) -> Attack)`, one file per family."""

from .blend import BlendedConfig, blended
from .input_aware import InputAwareConfig, input_aware
from .label_consistent import LCConfig, lc
from .low_frequency import LFConfig, lf
from .no_attack import CleanConfig, UnknownConfig, clean
from .patch import BadNetsConfig, badnets
from .quantise import BPPConfig, bpp
from .sinusoid import SIGConfig, sig
from .steganography import SSBAConfig, ssba
from .trojan import TrojanNNConfig, trojannn
from .warp import WaNetConfig, wanet

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
