"""What PyTorch calls the tensors of the architectures we share with it, and how it lays them out.

The names are those of the nets that suspicious models come as: PreActResNet18 as the field runs it (`layer1.0.conv1.weight`), torchvision's ResNets,
VGG19-BN and ViT-B/16, and the WideResNet of NAD's and ABL's experiments (`block1.layer.0.conv1.weight`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from ..models.resnet import BLOCKS, KERNELS
from ..models.vgg import POOLED, STAGES

Arrays = tuple[np.ndarray, ...]


class Entry(NamedTuple):
    """One tensor of PyTorch's, `theirs`, and the one or more of ours that it holds (dotted names): `split` makes ours of theirs, `join` theirs
    of ours."""

    theirs: str
    ours: tuple[str, ...]
    split: Callable[[np.ndarray], Arrays]
    join: Callable[..., np.ndarray]


def _same(theirs: str, ours: str) -> Entry:
    return Entry(theirs, (ours,), lambda x: (x,), lambda x: x)


def _conv(theirs: str, ours: str) -> Entry:
    """[out, in, h, w] and [h, w, in, out]."""
    return Entry(
        theirs, (ours,), lambda x: (x.transpose(2, 3, 1, 0),), lambda x: x.transpose(3, 2, 0, 1)
    )


def _matrix(theirs: str, ours: str) -> Entry:
    return Entry(theirs, (ours,), lambda x: (x.T,), lambda x: x.T)


def _linear(theirs: str, ours: str) -> Iterator[Entry]:
    yield _matrix(f"{theirs}.weight", f"params.{ours}.kernel")
    yield _same(f"{theirs}.bias", f"params.{ours}.bias")


def _norm(theirs: str, ours: str, running: bool = True) -> Iterator[Entry]:
    yield _same(f"{theirs}.weight", f"params.{ours}.scale")
    yield _same(f"{theirs}.bias", f"params.{ours}.bias")
    if running:
        yield _same(f"{theirs}.running_mean", f"batch_stats.{ours}.mean")
        yield _same(f"{theirs}.running_var", f"batch_stats.{ours}.var")


def _block(theirs: str, ours: str, shortcut: str) -> Iterator[Entry]:
    """Two convolutions behind their norms, and a shortcut, which not every block has."""
    for i in (0, 1):
        yield from _norm(f"{theirs}.bn{i + 1}", f"{ours}.BatchNorm_{i}")
        yield _conv(f"{theirs}.conv{i + 1}.weight", f"params.{ours}.Conv_{i}.kernel")
    yield _conv(f"{theirs}.{shortcut}.weight", f"params.{ours}.shortcut.kernel")


def _preact_resnet18(config: Any) -> Iterator[Entry]:
    yield _conv("conv1.weight", "params.stem.kernel")
    for stage in range(1, 5):
        for block in range(2):
            yield from _block(f"layer{stage}.{block}", f"block{stage}_{block + 1}", "shortcut.0")
    yield from _linear("linear", "head")


def _resnet(config: Any) -> Iterator[Entry]:
    yield _conv("conv1.weight", "params.stem.kernel")
    yield from _norm("bn1", "norm")
    for stage, count in enumerate(BLOCKS[config.depth], 1):
        for block in range(count):
            theirs, ours = f"layer{stage}.{block}", f"block{stage}_{block + 1}"
            for i in range(len(KERNELS[config.depth])):
                yield _conv(f"{theirs}.conv{i + 1}.weight", f"params.{ours}.Conv_{i}.kernel")
                yield from _norm(f"{theirs}.bn{i + 1}", f"{ours}.BatchNorm_{i}")
            yield _conv(f"{theirs}.downsample.0.weight", f"params.{ours}.shortcut.kernel")
            yield from _norm(f"{theirs}.downsample.1", f"{ours}.shortcut_norm")
    yield from _linear("fc", "head")


def _wide_resnet(config: Any) -> Iterator[Entry]:
    yield _conv("conv1.weight", "params.stem.kernel")
    for stage in range(1, 4):
        for block in range((config.depth - 4) // 6):
            yield from _block(
                f"block{stage}.layer.{block}", f"block{stage}_{block + 1}", "convShortcut"
            )
    yield from _norm("bn1", "norm")
    yield from _linear("fc", "head")


def _vgg19_bn(config: Any) -> Iterator[Entry]:
    at = 0
    for stage, (_, count) in enumerate(STAGES, 1):
        for i in range(count):
            yield _conv(f"features.{at}.weight", f"params.conv{stage}_{i + 1}.kernel")
            yield _same(f"features.{at}.bias", f"params.conv{stage}_{i + 1}.bias")
            yield from _norm(f"features.{at + 1}", f"norm{stage}_{i + 1}")
            at += 3  # the ReLU counts too
        at += 1
    if config.classifier == "linear":
        yield from _linear("classifier", "head")
        return
    channels = STAGES[-1][0] * config.width
    # Theirs flattens channels first, ours last.
    yield Entry(
        "classifier.0.weight", ("params.hidden1.kernel",),
        lambda x: (x.reshape(-1, channels, POOLED, POOLED).transpose(2, 3, 1, 0).reshape(-1, len(x)),),
        lambda x: x.reshape(POOLED, POOLED, channels, -1).transpose(3, 2, 0, 1).reshape(x.shape[1], -1),
    )  # fmt: skip
    yield _same("classifier.0.bias", "params.hidden1.bias")
    yield from _linear("classifier.3", "hidden2")
    yield from _linear("classifier.6", "head")


def _vit(config: Any) -> Iterator[Entry]:
    width, heads, patch = config.width, config.heads, config.patch
    size = width // heads
    yield Entry(
        "conv_proj.weight", ("params.patches.kernel",),
        lambda x: (x.transpose(2, 3, 1, 0).reshape(-1, len(x)),),
        lambda x: x.reshape(patch, patch, -1, width).transpose(3, 2, 0, 1),
    )  # fmt: skip
    yield _same("conv_proj.bias", "params.patches.bias")
    if config.pool == "token":
        yield _same("class_token", "params.token")
    yield _same("encoder.pos_embedding", "params.places")
    for i in range(config.depth):
        theirs, ours = f"encoder.layers.encoder_layer_{i}", f"layer{i + 1}"
        for k in (1, 2):
            yield from _norm(f"{theirs}.ln_{k}", f"{ours}.norm{k}", running=False)
        parts = ("query", "key", "value")
        yield Entry(
            f"{theirs}.self_attention.in_proj_weight", tuple(f"params.{ours}.attention.{part}.kernel" for part in parts),
            lambda x: tuple(part.T.reshape(width, heads, size) for part in np.split(x, 3)),
            lambda *x: np.concatenate([part.reshape(width, width).T for part in x]),
        )  # fmt: skip
        yield Entry(
            f"{theirs}.self_attention.in_proj_bias", tuple(f"params.{ours}.attention.{part}.bias" for part in parts),
            lambda x: tuple(part.reshape(heads, size) for part in np.split(x, 3)),
            lambda *x: np.concatenate([part.reshape(-1) for part in x]),
        )  # fmt: skip
        yield Entry(
            f"{theirs}.self_attention.out_proj.weight", (f"params.{ours}.attention.out.kernel",),
            lambda x: (x.T.reshape(heads, size, width),), lambda x: x.reshape(width, width).T,
        )  # fmt: skip
        yield _same(f"{theirs}.self_attention.out_proj.bias", f"params.{ours}.attention.out.bias")
        yield from _linear(f"{theirs}.mlp.0", f"{ours}.hidden")
        yield from _linear(f"{theirs}.mlp.3", f"{ours}.out")
    yield from _norm("encoder.ln", "norm", running=False)
    yield from _linear("heads.head", "head")


NAMES: dict[str, Callable[[Any], Iterator[Entry]]] = {
    "preact_resnet18": _preact_resnet18,
    "resnet": _resnet,
    "wide_resnet": _wide_resnet,
    "vgg19_bn": _vgg19_bn,
    "vit": _vit,
}
"""`NAMES[model](config)`: every tensor the architecture may have in PyTorch; a block has a shortcut or not."""

ALIASES = {
    "vit": (("mlp.linear_1.", "mlp.0."), ("mlp.linear_2.", "mlp.3."), ("heads.0.", "heads.head.")),
    "resnet": ((".shortcut.", ".downsample."), ("linear.", "fc.")),
}
"""Other names in files, older ones or those of nets for CIFAR-10, and those here, by architecture."""

PREFIXES = (
    "module.", "_orig_mod.", "model.", "net.", "netC.", "network.", "backbone.", "classifier_model.",
    "1.",
)  # fmt: skip
"""What wrappers put in front of every name, in any order and number: DataParallel, torch.compile, a class, a Sequential behind a resize."""

SIGNS = (
    ("Hugging Face's ViT", ("embeddings.patch_embeddings.", "encoder.layer.")),
    ("Hugging Face's ResNet", ("embedder.embedder.convolution.", "encoder.stages.")),
    ("timm's ViT", ("patch_embed.proj.", "blocks.0.attn.qkv.")),
    ("timm's ConvNeXt", ("stem.0.", "stages.0.blocks.0.")),
    ("torchvision's ConvNeXt", ("features.0.0.", "features.1.0.block.")),
    ("torchvision's DenseNet", ("features.denseblock1.",)),
    ("torchvision's EfficientNet or MobileNet", ("features.0.0.", "features.1.")),
    ("vgg19_bn", ("features.0.", "features.1.running_mean", "classifier.")),
    ("vit", ("conv_proj.", "encoder.layers.encoder_layer_0.")),
    ("wide_resnet", ("block1.layer.0.",)),
    ("resnet", ("layer1.0.conv1.", "bn1.", "fc.")),
    ("resnet", ("layer1.0.conv1.", "bn1.", "linear.")),
    ("preact_resnet18", ("layer1.0.bn1.", "layer1.0.conv1.", "linear.")),
)
"""Architectures, ours by the name that a config has, and the beginnings of names that only they have, the first that fits."""

IGNORED = ("num_batches_tracked",)
"""Ends of the names of tensors that hold no weight."""
