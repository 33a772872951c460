"""PyTorch's names and layouts of the tensors of the architectures that d3jax shares with it.

The names are those of the nets in which suspicious models are published. These are PreActResNet18
as the field uses it (`layer1.0.conv1.weight`), torchvision's ResNets, VGG19-BN and ViT-B/16, and
the WideResNet of NAD's and ABL's experiments (`block1.layer.0.conv1.weight`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from ..models.resnet import BLOCKS, KERNELS
from ..models.vgg import POOLED, STAGES

Arrays = tuple[np.ndarray, ...]


class Entry(NamedTuple):
    """A tensor of PyTorch and the d3jax tensors that it holds: the names and the conversions.

    `theirs` is its name in PyTorch. `ours` are the dotted names of one or more d3jax tensors.
    `split` turns PyTorch's tensor into d3jax's, and `join` turns them back.
    """

    theirs: str
    ours: tuple[str, ...]
    split: Callable[[np.ndarray], Arrays]
    join: Callable[..., np.ndarray]


def _same(theirs: str, ours: str) -> Entry:
    """Return the `Entry` of a tensor that has the same layout in PyTorch and d3jax."""
    return Entry(theirs, (ours,), lambda x: (x,), lambda x: x)


def _conv(theirs: str, ours: str) -> Entry:
    """Return the `Entry` of a convolution: [out, in, h, w] in PyTorch, [h, w, in, out] in d3jax."""
    return Entry(
        theirs, (ours,), lambda x: (x.transpose(2, 3, 1, 0),), lambda x: x.transpose(3, 2, 0, 1)
    )


def _matrix(theirs: str, ours: str) -> Entry:
    """Return the `Entry` of a matrix that d3jax holds transposed."""
    return Entry(theirs, (ours,), lambda x: (x.T,), lambda x: x.T)


def _linear(theirs: str, ours: str) -> Iterator[Entry]:
    """Yield the `Entry` of the weight and of the bias of a linear layer."""
    yield _matrix(f"{theirs}.weight", f"params.{ours}.kernel")
    yield _same(f"{theirs}.bias", f"params.{ours}.bias")


def _norm(theirs: str, ours: str, running: bool = True) -> Iterator[Entry]:
    """Yield the `Entry` of each tensor of a norm layer, with `running` also the statistics."""
    yield _same(f"{theirs}.weight", f"params.{ours}.scale")
    yield _same(f"{theirs}.bias", f"params.{ours}.bias")
    if running:
        yield _same(f"{theirs}.running_mean", f"batch_stats.{ours}.mean")
        yield _same(f"{theirs}.running_var", f"batch_stats.{ours}.var")


def _block(theirs: str, ours: str, shortcut: str) -> Iterator[Entry]:
    """Yield the `Entry` of each tensor of a pre-activation residual block.

    These are two convolutions, each after its norm, and a shortcut. Not every block has a shortcut;
    `entries_of` leaves out what the net does not have.
    """
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
    # PyTorch flattens the channels first, d3jax last.
    yield Entry(
        "classifier.0.weight",
        ("params.hidden1.kernel",),
        lambda x: (
            x.reshape(-1, channels, POOLED, POOLED).transpose(2, 3, 1, 0).reshape(-1, len(x)),
        ),
        lambda x: (
            x.reshape(POOLED, POOLED, channels, -1).transpose(3, 2, 0, 1).reshape(x.shape[1], -1)
        ),
    )
    yield _same("classifier.0.bias", "params.hidden1.bias")
    yield from _linear("classifier.3", "hidden2")
    yield from _linear("classifier.6", "head")


def _vit(config: Any) -> Iterator[Entry]:
    width, heads, patch = config.width, config.heads, config.patch
    size = width // heads
    yield Entry(
        "conv_proj.weight",
        ("params.patches.kernel",),
        lambda x: (x.transpose(2, 3, 1, 0).reshape(-1, len(x)),),
        lambda x: x.reshape(patch, patch, -1, width).transpose(3, 2, 0, 1),
    )
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
            f"{theirs}.self_attention.in_proj_weight",
            tuple(f"params.{ours}.attention.{part}.kernel" for part in parts),
            lambda x: tuple(part.T.reshape(width, heads, size) for part in np.split(x, 3)),
            lambda *x: np.concatenate([part.reshape(width, width).T for part in x]),
        )
        yield Entry(
            f"{theirs}.self_attention.in_proj_bias",
            tuple(f"params.{ours}.attention.{part}.bias" for part in parts),
            lambda x: tuple(part.reshape(heads, size) for part in np.split(x, 3)),
            lambda *x: np.concatenate([part.reshape(-1) for part in x]),
        )
        yield Entry(
            f"{theirs}.self_attention.out_proj.weight",
            (f"params.{ours}.attention.out.kernel",),
            lambda x: (x.T.reshape(heads, size, width),),
            lambda x: x.reshape(width, width).T,
        )
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
"""`NAMES[model](config)` yields every tensor that the architecture may have in PyTorch.

It includes a shortcut for every block, although not every block has one.
"""

ALIASES = {
    "vit": (("mlp.linear_1.", "mlp.0."), ("mlp.linear_2.", "mlp.3."), ("heads.0.", "heads.head.")),
    "resnet": ((".shortcut.", ".downsample."), ("linear.", "fc.")),
}
"""Other names in files and the names used here, by architecture.

The other names are older ones, or those of nets for CIFAR-10.
"""

PREFIXES = (
    "module.",
    "_orig_mod.",
    "model.",
    "net.",
    "netC.",
    "network.",
    "backbone.",
    "classifier_model.",
    "1.",
)
"""Prefixes that wrappers put before every name, in any order and number.

The wrappers are DataParallel, torch.compile, a class, or a Sequential that resizes first.
"""

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
"""Architectures, and beginnings of names that only they have; the first that fits counts.

d3jax's architectures have the names that they have in a config.
"""

IGNORED = ("num_batches_tracked",)
"""Endings of the names of tensors that hold no weights."""
