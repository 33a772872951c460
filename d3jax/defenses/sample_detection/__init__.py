"""Detectors of poisoned training samples, one file per method, and their registry."""

from ..training_time.abl import ABLConfig
from ..training_time.dlp import DLPConfig
from .activation_clustering import ActivationClusteringConfig, make_activation_clustering
from .agpd import AGPDConfig, make_agpd
from .asset import ASSETConfig, make_asset
from .beatrix import BeatrixConfig, make_beatrix
from .cognitive_distillation import CognitiveDistillationConfig, make_cognitive_distillation
from .isolation import make_abl_isolation, make_dlp_filter
from .scan import SCAnConfig, make_scan
from .spectral import SpectralConfig, make_spectral
from .spectre import SPECTREConfig, make_spectre

SAMPLE_DETECTORS = {
    "spectral": (SpectralConfig, make_spectral),
    "activation_clustering": (ActivationClusteringConfig, make_activation_clustering),
    "scan": (SCAnConfig, make_scan),
    "spectre": (SPECTREConfig, make_spectre),
    "beatrix": (BeatrixConfig, make_beatrix),
    "cognitive_distillation": (CognitiveDistillationConfig, make_cognitive_distillation),
    "agpd": (AGPDConfig, make_agpd),
    "asset": (ASSETConfig, make_asset),
    "abl_isolation": (ABLConfig, make_abl_isolation),
    "dlp_filter": (DLPConfig, make_dlp_filter),
}
