"""Metrics: attack success, detection rates, scores of training samples, image similarity."""

from .attack_success import Counts, der, evaluate, make_asr, make_evaluate, make_measure, predict
from .detection import detection_rates
from .image_similarity import largest, likeness, psnr, ssim
from .sample_scores import scores_of

__all__ = [
    "Counts",
    "der",
    "detection_rates",
    "evaluate",
    "largest",
    "likeness",
    "make_asr",
    "make_evaluate",
    "make_measure",
    "predict",
    "psnr",
    "scores_of",
    "ssim",
]
