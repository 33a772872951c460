"""d3jax: backdoor attacks, defences and their analysis for image classifiers, as pure JAX functions.

The public names are imported when first used, so that `import d3jax` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "core.types": "Attack Batch DataInfo Dataset Defense Joint Model Outputs Preparation Prepared Repaired Split Trained TrainingDefense Variables",
    "core.images": "as_float as_levels",
    "core.random": "stream",
    "config.recipes": "OptimConfig ReservedConfig ScheduleConfig TrainConfig",
    "config.study": "StudyConfig",
    "core.errors": "AttackError CheckpointError ConfigError D3JaxError DataError DivergedError",
    "data": "DATASETS DigitsConfig FolderConfig NpzConfig SyntheticConfig TfdsConfig digits folder from_arrays npz reserve synthetic tfds",
    "models": "MODELS ConvNeXtConfig PreActResNet18Config VGG19BNConfig ViTConfig WideResNetConfig convnext count_parameters "
    "preact_resnet18 vgg19_bn vit wide_resnet",
    "attacks": "ATTACKS BPPConfig BadNetsConfig BlendedConfig CleanConfig InputAwareConfig LCConfig LFConfig SIGConfig SSBAConfig "
    "TrojanNNConfig UnknownConfig WaNetConfig badnets blended bpp clean input_aware lc lf sig ssba trojannn wanet",
    "metrics.image_similarity": "largest psnr ssim",
    "training": "Backdoored Hooks fit train_backdoored",
    "training.poisoned_set": "poisoned_split",
    "training.semi_supervised": "SemiConfig semi_supervised_loop",
    "inversion": "Inversion InversionConfig Trigger detect invert",
    "defenses": "ABLConfig DEFENSES D3Config DLPConfig FinetuneConfig MCLConfig NCConfig abl d3 dlp finetune mcl nc",
    "defenses.repair.target": "Found Search find",
    "evolution": "EvolutionConfig LRScheduleConfig evolution_loop rates survivability",
    "metrics.sample_scores": "scores_of",
    "analysis": "penultimate project separation",
    "analysis.loss_landscape": "changes path_losses plane_losses plane_of taylor top_eigenvalues",
    "interop": "from_torch read_tensors to_torch write_tensors",
    "metrics": "Counts der make_evaluate",
    "study": "run_study",
    "results.tables": "load_results",
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names.split()}

__all__ = sorted(_HOME_OF)  # noqa: PLE0605
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'd3jax' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
