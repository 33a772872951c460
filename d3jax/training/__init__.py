"""Training: the step, the loop, optimisers and schedules, and the recipe of a backdoored model."""

from .backdoor import Backdoored, backdoor_job, train_backdoored
from .loop import Job, Session, fit, fit_members, trace_of
from .optim import make_optimizer, make_schedule
from .step import TrainData, classification_loss, cross_entropy, init_state, make_batches, make_train_step

__all__ = [
    "Backdoored",
    "Job",
    "Session",
    "TrainData",
    "backdoor_job",
    "classification_loss",
    "cross_entropy",
    "fit",
    "fit_members",
    "init_state",
    "make_batches",
    "make_optimizer",
    "make_schedule",
    "make_train_step",
    "trace_of",
    "train_backdoored",
]
