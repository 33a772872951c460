"""Defences: `DEFENSES[name] = (config class, constructor(config, info) -> Defense or TrainingDefense)`, one file per method."""

from .abl import ABLConfig, abl
from .distance_driven import D3Config, d3
from .dlp import DLPConfig, dlp
from .fine_tuning import FinetuneConfig, finetune
from .mcl import MCLConfig, mcl
from .repair import ScheduleConfig
from .unlearning import NCConfig, nc

DEFENSES = {
    "finetune": (FinetuneConfig, finetune),
    "d3": (D3Config, d3),
    "mcl": (MCLConfig, mcl),
    "nc": (NCConfig, nc),
    "abl": (ABLConfig, abl),
    "dlp": (DLPConfig, dlp),
}

__all__ = [
    "DEFENSES",
    "ABLConfig",
    "D3Config",
    "DLPConfig",
    "FinetuneConfig",
    "MCLConfig",
    "NCConfig",
    "ScheduleConfig",
    "abl",
    "d3",
    "dlp",
    "finetune",
    "mcl",
    "nc",
]
