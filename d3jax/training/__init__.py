"""Training of image classifiers: train step, train loop, optimisers, and the backdoored model."""

from ..core.losses import cross_entropy
from .loop import Hooks, TrainLoop, fit, fit_ensemble, trace_of
from .optim import make_optimizer, make_schedule
from .step import (
    Learned,
    TrainData,
    accept_if,
    chain_steps,
    classification_loss,
    init_state,
    joint_loss,
    make_batches,
    make_train_step,
)
from .victim import Backdoored, train_backdoored, victim_loop

__all__ = [
    "Backdoored",
    "Hooks",
    "Learned",
    "TrainData",
    "TrainLoop",
    "accept_if",
    "chain_steps",
    "classification_loss",
    "cross_entropy",
    "fit",
    "fit_ensemble",
    "init_state",
    "joint_loss",
    "make_batches",
    "make_optimizer",
    "make_schedule",
    "make_train_step",
    "trace_of",
    "train_backdoored",
    "victim_loop",
]
