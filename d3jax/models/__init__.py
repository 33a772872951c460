"""Architectures: `MODELS[name] = (config class, constructor(config, info, dtype) -> Model)`. The only place that imports flax."""

from .convnext import ConvNeXtConfig, convnext
from .preact_resnet import PreActResNet18Config, count_parameters, preact_resnet18
from .vgg import VGG19BNConfig, vgg19_bn
from .vit import ViTConfig, vit
from .wide_resnet import WideResNetConfig, wide_resnet

MODELS = {
    "preact_resnet18": (PreActResNet18Config, preact_resnet18),
    "vgg19_bn": (VGG19BNConfig, vgg19_bn),
    "wide_resnet": (WideResNetConfig, wide_resnet),
    "vit": (ViTConfig, vit),
    "convnext": (ConvNeXtConfig, convnext),
}

__all__ = [
    "MODELS",
    "ConvNeXtConfig",
    "PreActResNet18Config",
    "VGG19BNConfig",
    "ViTConfig",
    "WideResNetConfig",
    "convnext",
    "count_parameters",
    "preact_resnet18",
    "vgg19_bn",
    "vit",
    "wide_resnet",
]
