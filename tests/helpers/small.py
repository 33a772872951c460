"""A network that compiles in a second, and a command line that knows it as the model `small`.

The command is `python -m tests.helpers.small --config …`.
"""

import contextlib
from collections.abc import Iterator

import flax.linen as nn

from d3jax import run
from d3jax.core.types import DataInfo, Model, NormLayer
from d3jax.interop.names import NAMES, Entry
from d3jax.models import PreActResNet18Config
from d3jax.models.layers.linen import Linear, model_of, normalise
from d3jax.models.layers.norm import BatchNorm
from d3jax.runtime.commands import program
from d3jax.study.registries import MODELS, REGISTRIES


class _Small(nn.Module):
    info: DataInfo

    @nn.compact
    def __call__(self, images, train, active):
        x = normalise(images, self.info)
        for i in range(2):
            x = active(f"conv{i}", nn.Conv(8 << i, (3, 3), 2, use_bias=False, name=f"conv{i}")(x))
            x = BatchNorm(train)(x)
            x = active(f"out{i}", nn.relu(x) if i == 0 else x)  # signed, like PreActResNet18's
        x = active("penultimate", x.reshape(len(x), -1))
        return Linear(self.info.num_classes, name="head")(x)


NORMS = tuple(
    NormLayer(
        (f"BatchNorm_{i}",), ((f"conv{i}",),), (f"conv{i}",), ((after,),), f"conv{i}", f"out{i}"
    )
    for i, after in enumerate(("conv1", "head"))
)


def small_model(info: DataInfo) -> Model:
    """Return a model of two strided convolutions with BatchNorm and a linear layer."""
    return model_of(_Small(info), info, NORMS)


def exported_names(config: object) -> Iterator[Entry]:
    """Yield an `Entry` for each tensor of the small model, under d3jax's own name."""
    layers = {"conv0": "k", "conv1": "k", "head": "kb", "BatchNorm_0": "sb", "BatchNorm_1": "sb"}
    parts = {"k": "kernel", "s": "scale", "b": "bias"}
    names = [f"params.{layer}.{parts[key]}" for layer, keys in layers.items() for key in keys]
    names += [f"batch_stats.BatchNorm_{i}.{part}" for i in range(2) for part in ("mean", "var")]
    for name in names:
        yield Entry(name, (name,), lambda x: (x,), lambda x: x)


@contextlib.contextmanager
def exportable() -> Iterator[None]:
    """Let the model `small` be exported and read as `.safetensors` within the block."""
    NAMES["small"] = exported_names
    try:
        yield
    finally:
        del NAMES["small"]


@contextlib.contextmanager
def registered() -> Iterator[None]:
    """Register the model `small` within the block, so that configs can name it.

    Its setting `width` changes only its hash.
    """
    MODELS["small"] = (PreActResNet18Config, lambda config, info, dtype: small_model(info))
    REGISTRIES["models"]["small"] = PreActResNet18Config
    try:
        yield
    finally:
        del MODELS["small"], REGISTRIES["models"]["small"]


if __name__ == "__main__":
    with registered():
        program(run.main)
