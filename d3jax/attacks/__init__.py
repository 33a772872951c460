"""Backdoor attacks on image classifiers, one file per attack.

`attacks.badnets(rate=0.1, target=0)` returns the settings of an attack. Their `build(info)` returns
the attack for a data set. `ATTACKS` maps `name -> (config class, constructor(config, info))`.
"""

from ..config.fields import take_by_name
from .adaptive_blend import AdaptiveBlendConfig, make_adaptive_blend
from .adaptive_patch import AdaptivePatchConfig, make_adaptive_patch
from .badnets import BadNetsConfig, make_badnets
from .blended import BlendedConfig, make_blended
from .blind import BlindConfig, make_blind
from .bpp import BPPConfig, make_bpp
from .clean import CleanConfig, UnknownConfig, make_clean
from .ctrl import CTRLConfig, make_ctrl
from .ftrojan import FTrojanConfig, make_ftrojan
from .input_aware import InputAwareConfig, make_input_aware
from .lc import LCConfig, make_lc
from .lf import LFConfig, make_lf
from .lira import LIRAConfig, make_lira
from .narcissus import NarcissusConfig, make_narcissus
from .poison_ink import PoisonInkConfig, make_poison_ink
from .refool import RefoolConfig, make_refool
from .released import ReleasedConfig, make_released
from .sig import SIGConfig, make_sig
from .ssba import SSBAConfig, make_ssba
from .tact import TaCTConfig, make_tact
from .trojannn import TrojanNNConfig, make_trojannn
from .wanet import WaNetConfig, make_wanet

adaptive_blend = AdaptiveBlendConfig
adaptive_patch = AdaptivePatchConfig
badnets = BadNetsConfig
blended = BlendedConfig
blind = BlindConfig
bpp = BPPConfig
clean = CleanConfig
ctrl = CTRLConfig
ftrojan = FTrojanConfig
input_aware = InputAwareConfig
lc = LCConfig
lf = LFConfig
lira = LIRAConfig
narcissus = NarcissusConfig
poison_ink = PoisonInkConfig
refool = RefoolConfig
released = ReleasedConfig
sig = SIGConfig
ssba = SSBAConfig
tact = TaCTConfig
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
    "adaptive_blend": (AdaptiveBlendConfig, make_adaptive_blend),
    "adaptive_patch": (AdaptivePatchConfig, make_adaptive_patch),
    "tact": (TaCTConfig, make_tact),
    "lira": (LIRAConfig, make_lira),
    "blind": (BlindConfig, make_blind),
    "released": (ReleasedConfig, make_released),
    "ftrojan": (FTrojanConfig, make_ftrojan),
    "ctrl": (CTRLConfig, make_ctrl),
    "refool": (RefoolConfig, make_refool),
    "narcissus": (NarcissusConfig, make_narcissus),
    "poison_ink": (PoisonInkConfig, make_poison_ink),
}

take_by_name(cls for cls, _ in ATTACKS.values())

__all__ = [
    "ATTACKS",
    "AdaptiveBlendConfig",
    "AdaptivePatchConfig",
    "BPPConfig",
    "BadNetsConfig",
    "BlendedConfig",
    "BlindConfig",
    "CTRLConfig",
    "CleanConfig",
    "FTrojanConfig",
    "InputAwareConfig",
    "LCConfig",
    "LFConfig",
    "LIRAConfig",
    "NarcissusConfig",
    "PoisonInkConfig",
    "RefoolConfig",
    "ReleasedConfig",
    "SIGConfig",
    "SSBAConfig",
    "TaCTConfig",
    "TrojanNNConfig",
    "UnknownConfig",
    "WaNetConfig",
    "adaptive_blend",
    "adaptive_patch",
    "badnets",
    "blended",
    "blind",
    "bpp",
    "clean",
    "ctrl",
    "ftrojan",
    "input_aware",
    "lc",
    "lf",
    "lira",
    "make_adaptive_blend",
    "make_adaptive_patch",
    "make_badnets",
    "make_blended",
    "make_blind",
    "make_bpp",
    "make_clean",
    "make_ctrl",
    "make_ftrojan",
    "make_input_aware",
    "make_lc",
    "make_lf",
    "make_lira",
    "make_narcissus",
    "make_poison_ink",
    "make_refool",
    "make_released",
    "make_sig",
    "make_ssba",
    "make_tact",
    "make_trojannn",
    "make_wanet",
    "narcissus",
    "poison_ink",
    "refool",
    "released",
    "sig",
    "ssba",
    "tact",
    "trojannn",
    "wanet",
]
