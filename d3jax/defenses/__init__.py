"""Defences: `DEFENSES[name] = (config class, constructor(config, info) -> Defense)`, one file per method."""

from .distance_driven import D3Config, d3
from .fine_tuning import FinetuneConfig, finetune
from .repair import ScheduleConfig

DEFENSES = {
    "finetune": (FinetuneConfig, finetune),
    "d3": (D3Config, d3),
}

__all__ = ["DEFENSES", "D3Config", "FinetuneConfig", "ScheduleConfig", "d3", "finetune"]
