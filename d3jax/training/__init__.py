"""Training: the step, the loop, optimisers and schedules, and the recipe of a backdoored model."""

from .backdoor import Backdoored, train_backdoored
from .loop import Session, fit, make_repeat, trace_of
from .optim import make_optimizer, make_schedule
from .step import TrainData, classification_loss, cross_entropy, init_state, make_batches, make_train_step

__all__ = [
    "Backdoored",
    "Session",
    "TrainData",
    "classification_loss",
    "cross_entropy",
    "fit",
    "init_state",
    "make_batches",
    "make_optimizer",
    "make_repeat",
    "make_schedule",
    "make_train_step",
    "trace_of",
    "train_backdoored",
]
