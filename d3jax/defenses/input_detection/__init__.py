"""Detectors of triggered inputs, one file per method, and their registry."""

from .badexpert import BaDExpertConfig, make_badexpert
from .ibd_psc import IBDPSCConfig, make_ibd_psc
from .scale_up import ScaleUpConfig, make_scale_up
from .sentinet import SentiNetConfig, make_sentinet
from .strip import STRIPConfig, make_strip
from .teco import TeCoConfig, make_teco

INPUT_DETECTORS = {
    "strip": (STRIPConfig, make_strip),
    "scale_up": (ScaleUpConfig, make_scale_up),
    "ibd_psc": (IBDPSCConfig, make_ibd_psc),
    "badexpert": (BaDExpertConfig, make_badexpert),
    "sentinet": (SentiNetConfig, make_sentinet),
    "teco": (TeCoConfig, make_teco),
}
