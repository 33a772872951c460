"""Backdoor attacks on image classifiers, one file per attack.

`attacks.badnets(rate=0.1, target=0)` returns the settings of an attack. Their `build(info)` returns
the attack for a data set. `ATTACKS` maps `name -> (config class, constructor(config, info))`.
"""

from ..config.fields import take_by_name
from .badnets import BadNetsConfig, make_badnets
from .blended import BlendedConfig, make_blended
from .bpp import BPPConfig, make_bpp
from .clean import CleanConfig, UnknownConfig, make_clean
from .input_aware import InputAwareConfig, make_input_aware
from .lc import LCConfig, make_lc
from .lf import LFConfig, make_lf
from .sig import SIGConfig, make_sig
from .ssba import SSBAConfig, make_ssba
from .trojannn import TrojanNNConfig, make_trojannn
from .wanet import WaNetConfig, make_wanet

badnets = BadNetsConfig
blended = BlendedConfig
bpp = BPPConfig
clean = CleanConfig
input_aware = InputAwareConfig
lc = LCConfig
lf = LFConfig
sig = SIGConfig
ssba = SSBAConfig
trojannn = TrojanNNConfig
wanet = WaNetConfig

ATTACKS = {
    "clean": (CleanConfig, make_clean),
    "unknown": (UnknownConfig, make_clean),
    "badnets": (BadNetsConfig, make_badnets),
    "blended": (BlendedConfig, make_blended),
    "sig": (SIGConfig, make_sig),
    "wanet": (WaNetConfig, make_wanet),
    "input_aware": (InputAwareConfig, make_input_aware),
    "lf": (LFConfig, make_lf),
    "ssba": (SSBAConfig, make_ssba),
    "lc": (LCConfig, make_lc),
    "bpp": (BPPConfig, make_bpp),
    "trojannn": (TrojanNNConfig, make_trojannn),
}

take_by_name(cls for cls, _ in ATTACKS.values())

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
    "make_badnets",
    "make_blended",
    "make_bpp",
    "make_clean",
    "make_input_aware",
    "make_lc",
    "make_lf",
    "make_sig",
    "make_ssba",
    "make_trojannn",
    "make_wanet",
    "sig",
    "ssba",
    "trojannn",
    "wanet",
]
