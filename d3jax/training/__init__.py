"""Training: the step, the loop, optimisers and schedules."""

from .loop import Session, fit, make_repeat, trace_of
from .optim import make_optimizer, make_schedule
from .step import TrainData, classification_loss, cross_entropy, init_state, make_batches, make_train_step

__all__ = [
    "Session", "TrainData", "classification_loss", "cross_entropy", "fit", "init_state", "make_batches",
    "make_optimizer", "make_repeat", "make_schedule", "make_train_step", "trace_of",
]
