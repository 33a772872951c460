"""Architectures of image classifiers. Only this package imports flax.

`models.preact_resnet18(width=64)` returns settings, and their `build(info)` returns the model for
images of a data set. `MODELS` maps `name -> (config class, constructor(config, info, dtype))`.
"""

from ..config.fields import take_by_name
from .black_box import black_box
from .convnext import ConvNeXtConfig, make_convnext
from .preact_resnet import PreActResNet18Config, count_parameters, make_preact_resnet18
from .resnet import ResNetConfig, make_resnet
from .vgg import VGG19BNConfig, make_vgg19_bn
from .vit import ViTConfig, make_vit
from .wide_resnet import WideResNetConfig, make_wide_resnet

convnext = ConvNeXtConfig
preact_resnet18 = PreActResNet18Config
resnet = ResNetConfig
vgg19_bn = VGG19BNConfig
vit = ViTConfig
wide_resnet = WideResNetConfig

MODELS = {
    "preact_resnet18": (PreActResNet18Config, make_preact_resnet18),
    "resnet": (ResNetConfig, make_resnet),
    "vgg19_bn": (VGG19BNConfig, make_vgg19_bn),
    "wide_resnet": (WideResNetConfig, make_wide_resnet),
    "vit": (ViTConfig, make_vit),
    "convnext": (ConvNeXtConfig, make_convnext),
}

take_by_name(cls for cls, _ in MODELS.values())

__all__ = [
    "MODELS",
    "ConvNeXtConfig",
    "PreActResNet18Config",
    "ResNetConfig",
    "VGG19BNConfig",
    "ViTConfig",
    "WideResNetConfig",
    "black_box",
    "convnext",
    "count_parameters",
    "make_convnext",
    "make_preact_resnet18",
    "make_resnet",
    "make_vgg19_bn",
    "make_vit",
    "make_wide_resnet",
    "preact_resnet18",
    "resnet",
    "vgg19_bn",
    "vit",
    "wide_resnet",
]
