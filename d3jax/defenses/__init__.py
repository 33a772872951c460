"""Backdoor defences and their registries, one file per method.

`defenses.d3(preset="paper")` returns the settings of D3. The method `build(info)` of the settings
returns the defence for a data set.

The registries map `name -> (config class, constructor(config, info))`. `DEFENSES` holds the repairs
and the training-time defences. `DETECTIONS` holds the detectors of samples, inputs and models.
"""

from ..config.fields import take_by_name
from ..config.recipes import ScheduleConfig
from ..inversion import InversionConfig
from .input_detection import INPUT_DETECTORS
from .input_detection.badexpert import BaDExpertConfig, make_badexpert
from .input_detection.ibd_psc import IBDPSCConfig, make_ibd_psc
from .input_detection.scale_up import ScaleUpConfig, make_scale_up
from .input_detection.sentinet import SentiNetConfig, make_sentinet
from .input_detection.serving import PreparedDetector, load_detector, prepare_detector
from .input_detection.strip import STRIPConfig, make_strip
from .input_detection.teco import TeCoConfig, make_teco
from .model_detection.feature_re import FeatureREConfig, make_feature_re
from .model_detection.inversion import make_inversion
from .model_detection.mmbd import MMBDConfig, make_mmbd
from .repair.anp import ANPConfig, make_anp
from .repair.bnp import BNPConfig, make_bnp
from .repair.clp import CLPConfig, make_clp
from .repair.d3 import D3Config, make_d3
from .repair.ep import EPConfig, make_ep
from .repair.finetune import FinetuneConfig, make_finetune
from .repair.fp import FPConfig, make_fp
from .repair.fst import FSTConfig, make_fst
from .repair.ft_sam import FTSAMConfig, make_ft_sam
from .repair.ibau import IBAUConfig, make_ibau
from .repair.mcl import MCLConfig, make_mcl
from .repair.mcr import MCRConfig, make_mcr
from .repair.nad import NADConfig, make_nad
from .repair.neural_cleanse import NCConfig, make_nc
from .repair.nft import NFTConfig, make_nft
from .repair.npd import NPDConfig, make_npd
from .repair.rnp import RNPConfig, make_rnp
from .repair.sau import SAUConfig, make_sau
from .repair.seam import SEAMConfig, make_seam
from .repair.sft import SFTConfig, make_sft
from .repair.ulrl import ULRLConfig, make_ulrl
from .repair.unit import UNITConfig, make_unit
from .sample_detection import SAMPLE_DETECTORS
from .sample_detection.activation_clustering import (
    ActivationClusteringConfig,
    make_activation_clustering,
)
from .sample_detection.agpd import AGPDConfig, make_agpd
from .sample_detection.asset import ASSETConfig, make_asset
from .sample_detection.beatrix import BeatrixConfig, make_beatrix
from .sample_detection.cognitive_distillation import (
    CognitiveDistillationConfig,
    make_cognitive_distillation,
)
from .sample_detection.isolation import make_abl_isolation, make_dlp_filter
from .sample_detection.scan import SCAnConfig, make_scan
from .sample_detection.spectral import SpectralConfig, make_spectral
from .sample_detection.spectre import SPECTREConfig, make_spectre
from .training_time.abl import ABLConfig, make_abl
from .training_time.asd import ASDConfig, make_asd
from .training_time.cbd import CBDConfig, make_cbd
from .training_time.d_br import DBRConfig, make_d_br
from .training_time.d_st import DSTConfig, make_d_st
from .training_time.dbd import DBDConfig, make_dbd
from .training_time.dlp import DLPConfig, make_dlp
from .training_time.filter import FilterConfig, make_filter
from .training_time.nab import NABConfig, make_nab
from .training_time.pdb import PDBConfig, make_pdb

finetune = FinetuneConfig
ft_sam = FTSAMConfig
d3 = D3Config
fst = FSTConfig
mcl = MCLConfig
nc = NCConfig
fp = FPConfig
nad = NADConfig
sau = SAUConfig
ibau = IBAUConfig
npd = NPDConfig
unit = UNITConfig
seam = SEAMConfig
sft = SFTConfig
nft = NFTConfig
ulrl = ULRLConfig
mcr = MCRConfig
rnp = RNPConfig
bnp = BNPConfig
ep = EPConfig
anp = ANPConfig
clp = CLPConfig
abl = ABLConfig
dlp = DLPConfig
asd = ASDConfig
cbd = CBDConfig
d_br = DBRConfig
d_st = DSTConfig
dbd = DBDConfig
nab = NABConfig
pdb = PDBConfig
beatrix = BeatrixConfig
filter = FilterConfig
scan = SCAnConfig
spectral = SpectralConfig
spectre = SPECTREConfig
activation_clustering = ActivationClusteringConfig
agpd = AGPDConfig
asset = ASSETConfig
cognitive_distillation = CognitiveDistillationConfig
strip = STRIPConfig
teco = TeCoConfig
sentinet = SentiNetConfig
badexpert = BaDExpertConfig
ibd_psc = IBDPSCConfig
scale_up = ScaleUpConfig
mmbd = MMBDConfig
feature_re = FeatureREConfig

REPAIRS = {
    "finetune": (FinetuneConfig, make_finetune),
    "ft_sam": (FTSAMConfig, make_ft_sam),
    "d3": (D3Config, make_d3),
    "fst": (FSTConfig, make_fst),
    "mcl": (MCLConfig, make_mcl),
    "nc": (NCConfig, make_nc),
    "fp": (FPConfig, make_fp),
    "nad": (NADConfig, make_nad),
    "sau": (SAUConfig, make_sau),
    "ibau": (IBAUConfig, make_ibau),
    "anp": (ANPConfig, make_anp),
    "clp": (CLPConfig, make_clp),
    "npd": (NPDConfig, make_npd),
    "unit": (UNITConfig, make_unit),
    "seam": (SEAMConfig, make_seam),
    "sft": (SFTConfig, make_sft),
    "nft": (NFTConfig, make_nft),
    "ulrl": (ULRLConfig, make_ulrl),
    "mcr": (MCRConfig, make_mcr),
    "rnp": (RNPConfig, make_rnp),
    "bnp": (BNPConfig, make_bnp),
    "ep": (EPConfig, make_ep),
}
TRAINING_DEFENSES = {
    "abl": (ABLConfig, make_abl),
    "dlp": (DLPConfig, make_dlp),
    "asd": (ASDConfig, make_asd),
    "cbd": (CBDConfig, make_cbd),
    "d_br": (DBRConfig, make_d_br),
    "d_st": (DSTConfig, make_d_st),
    "dbd": (DBDConfig, make_dbd),
    "nab": (NABConfig, make_nab),
    "pdb": (PDBConfig, make_pdb),
    "filter": (FilterConfig, make_filter),
}
MODEL_DETECTORS = {
    "inversion": (InversionConfig, make_inversion),
    "mmbd": (MMBDConfig, make_mmbd),
    "feature_re": (FeatureREConfig, make_feature_re),
}

DEFENSES = REPAIRS | TRAINING_DEFENSES
DETECTIONS = SAMPLE_DETECTORS | INPUT_DETECTORS | MODEL_DETECTORS

take_by_name({cls for cls, _ in (DEFENSES | DETECTIONS).values()} - {InversionConfig})

__all__ = [
    "DEFENSES",
    "DETECTIONS",
    "INPUT_DETECTORS",
    "MODEL_DETECTORS",
    "REPAIRS",
    "SAMPLE_DETECTORS",
    "TRAINING_DEFENSES",
    "ABLConfig",
    "AGPDConfig",
    "ANPConfig",
    "ASDConfig",
    "ASSETConfig",
    "ActivationClusteringConfig",
    "BNPConfig",
    "BaDExpertConfig",
    "BeatrixConfig",
    "CBDConfig",
    "CLPConfig",
    "CognitiveDistillationConfig",
    "D3Config",
    "DBDConfig",
    "DBRConfig",
    "DLPConfig",
    "DSTConfig",
    "EPConfig",
    "FPConfig",
    "FSTConfig",
    "FTSAMConfig",
    "FeatureREConfig",
    "FilterConfig",
    "FinetuneConfig",
    "IBAUConfig",
    "IBDPSCConfig",
    "InversionConfig",
    "MCLConfig",
    "MCRConfig",
    "MMBDConfig",
    "NABConfig",
    "NADConfig",
    "NCConfig",
    "NFTConfig",
    "NPDConfig",
    "PDBConfig",
    "PreparedDetector",
    "RNPConfig",
    "SAUConfig",
    "SCAnConfig",
    "SEAMConfig",
    "SFTConfig",
    "SPECTREConfig",
    "STRIPConfig",
    "ScaleUpConfig",
    "ScheduleConfig",
    "SentiNetConfig",
    "SpectralConfig",
    "TeCoConfig",
    "ULRLConfig",
    "UNITConfig",
    "abl",
    "activation_clustering",
    "agpd",
    "anp",
    "asd",
    "asset",
    "badexpert",
    "beatrix",
    "bnp",
    "cbd",
    "clp",
    "cognitive_distillation",
    "d3",
    "d_br",
    "d_st",
    "dbd",
    "dlp",
    "ep",
    "feature_re",
    "filter",
    "finetune",
    "fp",
    "fst",
    "ft_sam",
    "ibau",
    "ibd_psc",
    "load_detector",
    "make_abl",
    "make_abl_isolation",
    "make_activation_clustering",
    "make_agpd",
    "make_anp",
    "make_asd",
    "make_asset",
    "make_badexpert",
    "make_beatrix",
    "make_bnp",
    "make_cbd",
    "make_clp",
    "make_cognitive_distillation",
    "make_d3",
    "make_d_br",
    "make_d_st",
    "make_dbd",
    "make_dlp",
    "make_dlp_filter",
    "make_ep",
    "make_feature_re",
    "make_filter",
    "make_finetune",
    "make_fp",
    "make_fst",
    "make_ft_sam",
    "make_ibau",
    "make_ibd_psc",
    "make_inversion",
    "make_mcl",
    "make_mcr",
    "make_mmbd",
    "make_nab",
    "make_nad",
    "make_nc",
    "make_nft",
    "make_npd",
    "make_pdb",
    "make_rnp",
    "make_sau",
    "make_scale_up",
    "make_scan",
    "make_seam",
    "make_sentinet",
    "make_sft",
    "make_spectral",
    "make_spectre",
    "make_strip",
    "make_teco",
    "make_ulrl",
    "make_unit",
    "mcl",
    "mcr",
    "mmbd",
    "nab",
    "nad",
    "nc",
    "nft",
    "npd",
    "pdb",
    "prepare_detector",
    "rnp",
    "sau",
    "scale_up",
    "scan",
    "seam",
    "sentinet",
    "sft",
    "spectral",
    "spectre",
    "strip",
    "teco",
    "ulrl",
    "unit",
]
