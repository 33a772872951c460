"""Architectures: `MODELS[name] = (config class, constructor(config, info, dtype) -> Model)`. The only place that imports flax."""

from .preact_resnet import PreActResNet18Config, count_parameters, preact_resnet18

MODELS = {
    "preact_resnet18": (PreActResNet18Config, preact_resnet18),
}

__all__ = ["MODELS", "PreActResNet18Config", "count_parameters", "preact_resnet18"]
