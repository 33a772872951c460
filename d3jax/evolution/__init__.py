"""Evolving models: updates on fresh data, their learning rates, and backdoor survivability."""

from .config import EVOLUTIONS, EvolutionConfig
from .lr_schedules import LRScheduleConfig, rates
from .survivability import survivability
from .updates import evolution_loop

__all__ = [
    "EVOLUTIONS",
    "EvolutionConfig",
    "LRScheduleConfig",
    "evolution_loop",
    "rates",
    "survivability",
]
