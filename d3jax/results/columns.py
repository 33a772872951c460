"""The meanings, as text, of all columns of all CSV files of a run folder. No jax.

`docs/reference/run-folder.md` is made from it, and a test fails when a study writes a column that
is missing here.
"""

from __future__ import annotations

_WHERE = {
    "dataset": "name of the data set",
    "model": "name of the architecture",
    "attack": "label of the attack",
    "poison_rate": "share of poisoned training images; empty for a model from elsewhere, 0 for an "
    "attack that changes only the training code",
    "seed": "seed of the row",
}
_RATES = {
    "acc": "clean accuracy: share of clean test images that are classified correctly",
    "asr": "attack success rate: share of triggered test images of other classes that are "
    "classified as the target",
    "ra": "robust accuracy: share of the same images that are classified as their true class",
}
_MOVED = {
    "moved_asr": "the largest share of triggered images, of the remaining classes, that are "
    "classified as one class other than the target",
    "moved_to": "name of that class",
}
_DETECTION = _WHERE | {
    "detection": "label of the detection",
    "published": "the published number that the config gives for this row, or none",
    "auroc": "area under the ROC curve of the scores: 1 is perfect, 0.5 is chance",
    "tpr_1": "true-positive rate at a false-positive rate of 1 %",
    "tpr_5": "true-positive rate at a false-positive rate of 5 %",
    "precision": "share of the flagged samples that are poisoned (triggered), at the method's own "
    "threshold",
    "recall": "share of the poisoned (triggered) samples that are flagged",
    "fpr": "share of the clean samples that are flagged",
    "positive": "number of poisoned (triggered) samples",
    "flagged": "number of flagged samples",
    "seconds": "wall time of the detector in seconds, with its first stage",
}

COLUMNS_OF: dict[str, dict[str, str]] = {
    "results": _WHERE
    | {"defense": "label of the defence; none for the backdoored model"}
    | _RATES
    | _MOVED
    | {
        "der": "defence effectiveness rating, [max(0, ΔASR) − max(0, ΔACC) + 1] / 2",
        "n_clean": "number of clean test images",
        "n_triggered": "number of triggered test images: those of other classes than the target",
        "seconds": "wall time of this step of the study in seconds, without the time between the "
        "runs of an interrupted study",
        "attack_seed": "seed of the backdoored model",
        "classes": "number of classes",
        "net": "settings of the architecture",
        "published": "the published number that the config gives for this row, or the word none",
        "acc_non_target": "clean accuracy without the images of the target class",
        "members": "number of models that were trained together in one program",
        "cosine": "cosine between the final and the initial classifier weights (D3)",
        "distance_ratio": "distance moved by the classifier, over the largest distance that the "
        "norm bound allows (D3)",
        "commit": "commit of d3jax that made the row",
        "device": "device that made the row",
        "status": "ok, or why the row has no numbers: an error, or “not finished: no model yet”",
        "rule": "for a method that chooses by data: oracle if it reads test data, else defender",
        "target": "the class that the defence took for the target; −1 if nothing was flagged",
        "chosen": "how that class was chosen: given, or flagged by a detection",
        "trigger_success": "share of reserved images of other classes that the inverted trigger "
        "changes to the target",
        "anomaly_index": "statistic of the detection that chose the class: the anomaly index of "
        "trigger inversion, or 1 − p of MM-BD's test",
        "search_seconds": "wall time of the trigger inversions in seconds",
        "suspects": "number of training images that a training-time defence suspects",
        "suspects_poisoned": "share of the suspects that are poisoned",
        "poison_suspected": "share of the poisoned images that are among the suspects",
        "labelled_poisoned": "share of the images that kept their labels that are poisoned",
        "survived_0.9": "number of updates before the ASR first fell below 90 %",
        "survived_0.5": "number of updates before the ASR first fell below 50 %",
        "survived_0.1": "number of updates before the ASR first fell below 10 %",
        "survived_0.9_censored": "whether the ASR never fell below 90 %",
        "survived_0.5_censored": "whether the ASR never fell below 50 %",
        "survived_0.1_censored": "whether the ASR never fell below 10 %",
    },
    "per_class": {
        "attack": "label of the attack",
        "defense": "label of the defence; none for the backdoored model",
        "seed": "seed of the row",
        "class": "name of the true class",
        "clean": "number of clean test images of the class",
        "correct": "number of those that are classified correctly",
        "triggered": "number of triggered test images of the class",
        "reached": "number of those that are classified as the target",
        "recovered": "number of those that are classified as their true class",
        "mistaken": "number of triggered test images of other classes that are classified as it",
    },
    "detections": {name: _WHERE[name] for name in ("dataset", "model", "attack", "seed")}
    | {
        "detection": "label of the detection",
        "flagged": "whether the detector calls the model backdoored",
        "flagged_classes": "names of the classes that it flags as a target",
        "targets": "names of the true target classes; empty where nobody knows them",
        "n_flagged": "number of flagged classes",
        "n_targets": "number of true target classes",
        "n_found": "number of true target classes that are flagged",
        "right": "whether the flagged classes are exactly the true targets",
        "statistic": "the detector's statistic for the model: the anomaly index of trigger "
        "inversion, or 1 − p of MM-BD's test",
        "threshold": "the model is flagged where the statistic is above it",
        "highest": "name of the class with the highest score",
        "seconds": "wall time of the detector in seconds",
    },
    "evidence": {name: _WHERE[name] for name in ("dataset", "model", "attack", "seed")}
    | {
        "detection": "label of the detection",
        "class": "name of the class",
        "is_target": "whether the class is a true target; empty where nobody knows it",
        "flagged": "whether the detector flags the class",
        "score": "the class's score: higher is more suspicious. Trigger inversion: the index with "
        "its sign, positive below the median. MM-BD: the largest margin of the class's logit. "
        "FeatureRE: minus the mixed value",
        "norm": "L1 norm of the class's inverted mask (trigger inversion)",
        "index": "distance of the norm from the median, in deviations of 1.4826 × MAD, without "
        "sign; a deviation is at least a tenth of the median (trigger inversion)",
        "success": "share of images of other classes that the inverted trigger changes to the "
        "class (trigger inversion), or of transformed images that get the class (FeatureRE)",
        "passes": "number of passes of the search (trigger inversion)",
        "steps": "number of steps of the search (MM-BD)",
        "cosine": "cosine of the mean features of transformed images and of the class (FeatureRE)",
        "change": "mean squared change of normalised images by the transformation (FeatureRE)",
        "size": "sum of the mask of features (FeatureRE)",
        "spread": "standard deviation of the features in the mask (FeatureRE)",
    },
    "samples": _DETECTION,
    "inputs": _DETECTION
    | {
        "acc_rejecting": "clean accuracy of the model that rejects flagged inputs; a rejected "
        "image counts as wrong",
        "asr_rejecting": "attack success rate of that model; a rejected image is no success",
    },
    "filters": {
        "attack": "label of the attack",
        "defense": "label of the training-time defence",
        "seed": "seed of the row",
        "score": "name of the score that ranks the training images",
        "auroc": "area under the ROC curve of the score",
        "precision_0.01": "share of poisoned images among the 1 % that the score ranks first",
        "recall_0.01": "share of the poisoned images that are among those 1 %",
        "precision_0.05": "the same share among the first 5 %",
        "recall_0.05": "share of the poisoned images that are among those 5 %",
        "precision_0.1": "the same share among the first 10 %",
        "recall_0.1": "share of the poisoned images that are among those 10 %",
    },
    "relearned": _WHERE
    | {
        "evaluation": "label of the evaluation",
        "defense": "label of the defence; none for the backdoored model",
        "acc_before": "clean accuracy before relearning",
        "asr_before": "attack success rate before relearning",
    }
    | _RATES
    | {
        "clean": "number of clean images that were learned",
        "poisoned": "number of triggered images that were learned",
        "seconds": "wall time of relearning and measuring in seconds",
    },
    "robustness": _WHERE
    | {
        "evaluation": "label of the evaluation",
        "defense": "label of the defence; none for the backdoored model",
        "change": "what is changed of the trigger: shift, scale or strength",
        "amount": "pixels up and to the left (shift), factor of height and width (scale), or "
        "factor of the stamped image minus the clean one (strength)",
        "asr": "attack success rate with the changed trigger; empty where an attack only has "
        "stamped copies of the test images, which cannot be moved or resized",
        "n_triggered": "number of triggered test images: those of other classes than the target",
    },
    "triggers": {
        "attack": "label of the attack",
        "seed": "seed of the row",
        "detection": "label of the detection that inverted the trigger",
        "class": "name of the class that the trigger is inverted for",
        "flagged": "whether that class is flagged",
        "score": "score of that class",
        "index": "anomaly index of that class (trigger inversion)",
        "norm": "L1 norm of the inverted mask (trigger inversion)",
        "success": "success of the trigger in its search (trigger inversion)",
        "passes": "number of passes of the search (trigger inversion)",
        "steps": "number of steps of the search",
        "defense": "label of the defence; none before any repair",
        "turned": "share of test images of other classes that the inverted trigger changes to the "
        "class",
        "acc": "clean accuracy of the model",
    },
    "evolution": {
        "attack": "label of the attack",
        "evolution": "label of the evolution",
        "seed": "seed of the row",
        "update": "number of the update; 0 is before the first",
    }
    | {name: f"{text}, drifted as far as in this update" for name, text in _RATES.items()}
    | {
        "stale_acc": "clean accuracy of the model before the update on the images after it",
        "stale_asr": "ASR of the model before the update on the images after it",
        "stale_score": "score of the model before the update on the images after it",
        "valid_acc": "accuracy on the validation images of the update's fresh set",
        "control": "share of triggered images that the clean model's evolution classifies as the "
        "target",
        "trained_acc": "clean accuracy after the update and before the defence that follows it",
        "trained_asr": "ASR after the update and before the defence that follows it",
        "moved": "distance that the weights moved in the update",
        "lr_sum": "sum of the learning rates of the update",
        "score": "mean increase of the target's logit by the trigger",
    },
    "survival": {
        "attack": "label of the attack",
        "evolution": "label of the evolution",
        "seeds": "number of seeds",
        "updates": "number of updates",
        "survived_0.9": "mean number of updates before the ASR first fell below 90 %",
        "censored_0.9": "number of seeds whose ASR never fell below 90 %",
        "survived_0.5": "mean number of updates before the ASR first fell below 50 %",
        "censored_0.5": "number of seeds whose ASR never fell below 50 %",
        "survived_0.1": "mean number of updates before the ASR first fell below 10 %",
        "censored_0.1": "number of seeds whose ASR never fell below 10 %",
        "acc": "mean clean accuracy over updates and seeds",
        "acc_std": "standard deviation over seeds",
        "stale_acc": "mean accuracy before each update on the images after it",
        "stale_acc_std": "standard deviation over seeds",
        "valid_acc": "mean accuracy on validation images",
        "valid_acc_std": "standard deviation over seeds",
        "asr_last": "mean ASR after the last update",
        "asr_last_std": "standard deviation over seeds",
        "steps": "training steps of all updates",
        "lr_mean": "mean learning rate",
        "lr_max": "largest learning rate",
        "constant": "whether the learning rate is constant",
        "equal_mean": "the evolution with a constant rate of the same mean, if there is one",
        "baseline": "the evolution with a constant rate and the best validation accuracy",
        "counts": "whether the mean accuracy is at most a point below the baseline's",
        "speedup": "updates that the backdoor survives under the baseline, over those it survives "
        "here",
        "speedup_bound": "≥ or ≤ where the speed-up is only a bound",
    },
    "forgetting": {
        "attack": "label of the attack",
        "evolution": "label of the evolution",
        "seed": "seed of the row",
        "update": "number of the update; 0 is before the first",
        "score": "mean increase of the target's logit by the trigger",
        "left": "the score's share of the first one, as measured",
        "left_squared": "that share as a linear model with squared loss predicts it",
        "left_softmax": "that share as a linear model with softmax cross-entropy predicts it",
    },
    "paths": {
        "attack": "label of the attack",
        "seed": "seed of the row",
        "defense": "label of the defence that the line leads to",
        "statistics": "BatchNorm's statistics at the point: interpolated, estimated or first",
        "t": "place on the line: 0 is the backdoored model, 1 the repaired one",
        "clean_loss": "cross-entropy on clean test images",
        "backdoor_loss": "cross-entropy of triggered test images with the target class",
        "acc": "clean accuracy",
        "asr": "attack success rate",
    },
    "changes": {
        "attack": "label of the attack",
        "seed": "seed of the row",
        "defense": "label of the defence",
        "tensor": "name of the parameter",
        "norm": "norm of its change",
        "relative": "that norm over the norm of the parameter before",
    },
}
"""Meaning by file (without .csv) and column. Rates and shares are in [0, 1]."""
