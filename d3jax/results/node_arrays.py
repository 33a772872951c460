"""The arrays that each kind of node writes to its `arrays.npz`, for the page."""

from __future__ import annotations

from typing import NotRequired, TypedDict

import numpy as np


class SampleArrays(TypedDict, total=False):
    """The arrays of a `report_samples` node: a model's predicted classes for the page's images.

    There is a node for each model of the first seed. The victim's node (label "none") also has the
    images: `clean` and `triggered` uint8 [n, H, W, C], true `labels` [n] and the attacker's
    `targets` [n]. Its facts compare clean and triggered images: `psnr` (dB), `ssim` and `largest`
    (8-bit levels).
    """

    predicted_clean: np.ndarray
    predicted_triggered: np.ndarray
    clean: np.ndarray
    triggered: np.ndarray
    labels: np.ndarray
    targets: np.ndarray


class FeatureArrays(TypedDict):
    """The arrays of a `features` node: PCA and t-SNE points of N clean and M triggered images.

    There is a node for each model of the first seed. `pca` and `tsne` are points [N + M, 2], clean
    images first. `labels` [N] are the classes of the clean images. Facts are `twin_distance`,
    `silhouette`, and `inverted`: whether the trigger is an inverted one.
    """

    pca: np.ndarray
    tsne: np.ndarray
    labels: np.ndarray


class DetectionArrays(TypedDict):
    """The arrays of a `model_detection` node: a model detector's verdict on K classes.

    Only nodes of the first seed have arrays: `scores` float [K], `flagged` bool [K], and the
    method's own columns [K]. Trigger inversion has the columns `norm`, `index`, `success` and
    `passes`. If the detector finds triggers, `triggers` uint8 [K, H, W, C] shows them on grey.
    `smallest` uint8 [n, H, W, C] is then the most suspicious trigger on the clean images of the
    victim's `report_samples`. Facts are `statistic`, `threshold`, and the method's own. Those of
    trigger inversion are `median` and `spread` of the norms.
    """

    scores: np.ndarray
    flagged: np.ndarray
    triggers: NotRequired[np.ndarray]
    smallest: NotRequired[np.ndarray]


class ScoreArrays(TypedDict):
    """The arrays of a `sample_detection` or `input_detection` node: scores and flags of N images.

    Only nodes of the first seed have arrays: `scores` float [N], `flagged` bool [N] by the
    detector's own rule, and `positive` bool [N], the poisoned samples or triggered inputs. Inputs
    are the clean test images, then the triggered ones. `most` and `least` uint8 [n, H, W, C] are
    the images with the highest scores, and with the lowest.
    """

    scores: np.ndarray
    flagged: np.ndarray
    positive: np.ndarray
    most: NotRequired[np.ndarray]
    least: NotRequired[np.ndarray]


class TrainingArrays(TypedDict, total=False):
    """The arrays of a `training_time` node: a defence's choices and scores for N training images.

    `flags` bool [N] marks the poisoned rows. `suspects` and `labelled` bool [N] are the defence's
    choice. Each score is float [N], under its name in `Trained.found`, such as `entropy`.
    `precision/<score>` and `recall/<score>` [N] are those of its lowest k rows, k = 1 … N. The fact
    `first_stage` is the name of its first stage's node.
    """

    flags: np.ndarray
    suspects: np.ndarray
    labelled: np.ndarray


class LandscapeArrays(TypedDict, total=False):
    """The arrays of a `loss_landscape` node: losses on lines and a plane, and weight changes.

    There is a node for each attack of the first seed. The fact `defenses` lists its lines. Each
    line has these arrays:

    - `<defense>/ts` [T]: the places on the line.
    - `<defense>/<statistics>/<quantity>` [T]: statistics are interpolated, estimated or first, and
      quantities are clean_loss, backdoor_loss, acc and asr.
    - `<defense>/taylor` [3]: value, slope and curvature.
    - `<defense>/relative` [P] and `<defense>/counts` [P, bins]: the change of every tensor.

    All lines share `edges` [P, bins + 1], and the fact `tensors` names the P tensors. If there is a
    plane, the fact `plane` names its three models. Its arrays are `plane/places` [3, 2],
    `plane/xs`, `plane/ys`, and `plane/clean` and `plane/backdoor` [ys, xs].
    """

    eigenvalues: np.ndarray
    edges: np.ndarray


class ForgettingArrays(TypedDict):
    """The arrays of a `forgetting` node: a linear model's prediction for one evolution run.

    There is a node for each evolution run of the first seed that can be predicted. `eigenvalues`
    [D] are sorted, largest first. `shares` [D] are those of the trigger's direction along each
    eigenvector. `scores` [T + 1] are measured. `left/squared` and `left/softmax` [T] are the
    predicted shares of the first score.
    """

    eigenvalues: np.ndarray
    shares: np.ndarray
    scores: np.ndarray


ARRAYS = {
    "report_samples": SampleArrays,
    "features": FeatureArrays,
    "model_detection": DetectionArrays,
    "sample_detection": ScoreArrays,
    "input_detection": ScoreArrays,
    "training_time": TrainingArrays,
    "loss_landscape": LandscapeArrays,
    "forgetting": ForgettingArrays,
}
"""The type of the arrays of each kind of node that has some."""
