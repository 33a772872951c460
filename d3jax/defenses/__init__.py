"""Defences: `DEFENSES[name] = (config class, constructor(config, info) -> Defense)`, one file per method."""

from .distance_driven import D3Config, d3
from .fine_tuning import FinetuneConfig, finetune
from .mcl import MCLConfig, mcl
from .repair import ScheduleConfig
from .unlearning import NCConfig, nc

DEFENSES = {
    "finetune": (FinetuneConfig, finetune),
    "d3": (D3Config, d3),
    "mcl": (MCLConfig, mcl),
    "nc": (NCConfig, nc),
}

__all__ = [
    "DEFENSES",
    "D3Config",
    "FinetuneConfig",
    "MCLConfig",
    "NCConfig",
    "ScheduleConfig",
    "d3",
    "finetune",
    "mcl",
    "nc",
]
