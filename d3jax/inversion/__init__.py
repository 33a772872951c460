"""Trigger inversion: a search for a small trigger of every class, and an outlier test of norms."""

from .config import InversionConfig
from .invert import (
    Inversion,
    inversion_loop,
    invert,
    like,
    model_classes,
    nothing,
    success_of,
    trigger_at,
)
from .outliers import Detection, detect
from .parameters import Trigger, stamp

__all__ = [
    "Detection",
    "Inversion",
    "InversionConfig",
    "Trigger",
    "detect",
    "inversion_loop",
    "invert",
    "like",
    "model_classes",
    "nothing",
    "stamp",
    "success_of",
    "trigger_at",
]
