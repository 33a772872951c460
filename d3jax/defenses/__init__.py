"""Defences: `DEFENSES[name] = (config class, constructor(config, info) -> Defense or TrainingDefense)`, one file per method."""

from ..config.recipes import ScheduleConfig
from .repair.d3 import D3Config, d3
from .repair.finetune import FinetuneConfig, finetune
from .repair.mcl import MCLConfig, mcl
from .repair.neural_cleanse import NCConfig, nc
from .training_time.abl import ABLConfig, abl
from .training_time.dlp import DLPConfig, dlp

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
