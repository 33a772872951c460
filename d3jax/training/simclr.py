"""SimCLR: contrastive training of a model on images without labels.

Source: Chen et al., ICML 2020 (arXiv 2002.05709). Two random views of an image should have similar
features, and views of other images different ones. A small network, the *projector*, maps the
features to the vectors that are compared. It is dropped after the training.

A defence that begins with SimCLR builds its first stage by `simclr_loop`. Its `first_network` is
`with_projector`, and its `settings` are `{"simclr": to_mapping(config)}`. Defences with equal
settings then share the result.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..config.fields import check_fields, option
from ..config.recipes import OptimConfig
from ..core.checks import check_labelled
from ..core.errors import ConfigError
from ..core.images import as_float
from ..core.losses import accuracy, cross_entropy
from ..core.random import stream
from ..core.types import Array, DataInfo, Model, Outputs, Params, Split, Variables
from ..data.batching import epoch_plan
from ..data.contrastive_views import make_views
from ..runtime.sharding import shard_batch
from .loop import TrainLoop
from .optim import make_optimizer
from .step import Batches, Loss, Rows, init_state, make_rows, make_train_step

PROJECTOR, PROJECTION = "projector", "projection"
"""The name of the projector among parameters and statistics, and of its output among features."""

EPSILON, MOMENTUM = 1e-5, 0.9
"""ε and momentum of the projector's BatchNorm, which are those of d3jax's models."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimCLRConfig:
    """Settings of SimCLR, which trains a model to map two views of an image to similar features.

    The defaults are those of DBD's release (Huang et al., arXiv 2202.03423) for CIFAR-10.
    """

    epochs: int = option(1000, "passes over the training set", low=1)
    steps: int = option(0, "length in steps instead of epochs (0: use epochs)", low=0)
    batch_size: int = option(
        512, "images per step, each in two views; the last short batch is dropped", low=2
    )
    temperature: float = option(0.5, "τ, temperature of the contrastive loss", above=0)
    dimension: int = option(128, "length of the vectors that the projector returns", low=1)
    blur: float = option(
        0.5,
        "share of the views that are blurred (DBD's release; SimCLR blurs none at CIFAR size)",
        low=0,
        high=1,
    )
    optimizer: OptimConfig = option(
        OptimConfig(lr=0.4, weight_decay=1e-4, schedule="cosine_epoch"), "optimiser and schedule"
    )

    __post_init__ = check_fields


def feature_count(model: Model) -> int:
    """Return the number of penultimate features of a model, the input of its classifier.

    Raises `ConfigError` if the model does not name such features.
    """
    known = model.activations() if model.activations else {}
    if "penultimate" not in known:
        raise ConfigError(
            "simclr: needs the input of the classifier, and the model's `activations` name no "
            "'penultimate'"
        )
    return int(np.prod(known["penultimate"].shape))


@functools.lru_cache(maxsize=8)
def with_projector(model: Model, dimension: int = 128) -> Model:
    """Return the network of a model with SimCLR's projector beside its classifier.

    `features["projection"]` [B, dimension] is Linear, BatchNorm, ReLU and Linear of the penultimate
    features. The hidden layer is as wide as these. The logits are those of the model. The
    projector's parameters and statistics are an entry "projector" of the model's own. Raises
    `ConfigError` if the model does not name penultimate features.
    """
    width = feature_count(model)

    def init(key: jax.Array) -> Variables:
        variables = model.init(key)
        own = stream(key, PROJECTOR)
        projector = {
            "first": _drawn(stream(own, "first"), width, width),
            "norm": {"scale": jnp.ones(width), "bias": jnp.zeros(width)},
            "second": _drawn(stream(own, "second"), width, dimension),
        }
        stats = {"mean": jnp.zeros(width), "var": jnp.ones(width)}
        return Variables(
            variables.params | {PROJECTOR: projector},
            dict(variables.batch_stats) | {PROJECTOR: stats},
        )

    def apply(variables: Variables, images: Array, *, train: bool, **given: Any) -> Outputs:
        params, stats = dict(variables.params), dict(variables.batch_stats)
        projector, own = params.pop(PROJECTOR), stats.pop(PROJECTOR)
        outputs = model.apply(Variables(params, stats), images, train=train, **given)
        features = outputs.features["penultimate"].reshape(len(images), -1).astype(jnp.float32)
        projection, own = _projected(projector, own, features, train)
        return outputs._replace(
            features=outputs.features | {PROJECTION: projection},
            batch_stats=dict(outputs.batch_stats) | {PROJECTOR: own},
        )

    def activations() -> Mapping[str, jax.ShapeDtypeStruct]:
        assert model.activations is not None  # `feature_count` has checked it
        shape = jax.ShapeDtypeStruct((dimension,), jnp.float32)
        return dict(model.activations()) | {PROJECTION: shape}

    return Model(init, apply, activations, model.channels)


def without_projector(variables: Variables) -> Variables:
    """Return the variables of a model without those of SimCLR's projector, if they have one."""
    return Variables(
        *({name: one for name, one in part.items() if name != PROJECTOR} for part in variables)
    )


def _drawn(key: jax.Array, inputs: int, outputs: int) -> Params:
    """Return the initial weights of a linear layer, PyTorch's U(±1/√inputs)."""
    bound = inputs**-0.5
    shapes = {"kernel": (inputs, outputs), "bias": (outputs,)}
    return {
        name: jax.random.uniform(stream(key, name), shape, jnp.float32, -bound, bound)
        for name, shape in shapes.items()
    }


def _projected(
    params: Params, stats: Params, features: jax.Array, train: bool
) -> tuple[jax.Array, Params]:
    """Return the projector's vectors [B, dimension] of features [B, D], and its new statistics."""
    hidden = features @ params["first"]["kernel"] + params["first"]["bias"]
    mean, var = stats["mean"], stats["var"]
    if train:
        mean, var = hidden.mean(0), hidden.var(0)
        new = {"mean": mean, "var": var}
        stats = {name: MOMENTUM * stats[name] + (1 - MOMENTUM) * new[name] for name in new}
    scale = params["norm"]["scale"] * jax.lax.rsqrt(var + EPSILON)
    hidden = jax.nn.relu((hidden - mean) * scale + params["norm"]["bias"])
    return hidden @ params["second"]["kernel"] + params["second"]["bias"], stats


def nt_xent(first: jax.Array, second: jax.Array, temperature: float) -> tuple[jax.Array, jax.Array]:
    """Return SimCLR's loss of the vectors [B, D] of two views, and the share of matched views.

    The loss (NT-Xent) is the mean over all 2B views i, with the other view j of the same image, of

        −log( exp(cos(zᵢ, zⱼ)/τ) / Σ_{k≠i} exp(cos(zᵢ, zₖ)/τ) )

    A view is matched if zⱼ is nearest to zᵢ. Deviation: DBD's release only takes the B first views
    as i, which has the same mean over random views.
    """
    z = jnp.concatenate([first, second]).astype(jnp.float32)
    square = (z * z).sum(-1, keepdims=True)
    z = z * jax.lax.rsqrt(jnp.maximum(square, 1e-24))
    count = len(z)
    cosines = jnp.matmul(z, z.T, precision="highest")
    logits = jnp.where(jnp.eye(count, dtype=bool), -jnp.inf, cosines / temperature)
    others = (jnp.arange(count) + count // 2) % count
    return cross_entropy(logits, others).mean(), accuracy(logits, others)


def simclr_loss(network: Model, temperature: float) -> Loss:
    """Build SimCLR's loss of a batch of views [2B, H, W, C], of a network with a projector.

    The views i and B + i are of the same image. The loss reports `matched`, the share of views
    whose nearest vector is that of their image's other view.
    """

    def loss(params: Params, batch_stats: Params, views: jax.Array, key: jax.Array, data: Any):
        outputs = network.apply(Variables(params, batch_stats), views, train=True)
        z = outputs.features[PROJECTION]
        value, matched = nt_xent(z[: len(z) // 2], z[len(z) // 2 :], temperature)
        return value, (outputs.batch_stats, {"matched": matched})

    return loss


def make_draw(rows: Rows, info: DataInfo, blur: float) -> Batches:
    """Build `draw(key, step, images) -> [2B, H, W, C]`, which draws two views of a step's images.

    `images` are all training images, as uint8. The views i and B + i are of the same image.
    """
    view = make_views(info, blur)

    def draw(key: jax.Array, step: jax.Array, images: jax.Array) -> jax.Array:
        drawn = as_float(images[shard_batch(rows(key, step))])
        keys = jax.random.split(jax.random.fold_in(stream(key, "views"), step))
        return shard_batch(jnp.concatenate([view(keys[0], drawn), view(keys[1], drawn)]))

    return draw


def simclr_loop(
    key: jax.Array, model: Model, split: Split, config: SimCLRConfig, info: DataInfo
) -> TrainLoop:
    """Build the `TrainLoop` that trains a model from scratch by SimCLR on the images of `split`.

    The labels are not read, and are not in the loop's data. The variables are those of
    `with_projector(model, config.dimension)`. The classifier gets no gradient. Raises `ConfigError`
    where a batch is larger than the set.
    """
    check_labelled("images", split)
    own, size = stream(key, "simclr"), len(split.images)
    network = with_projector(model, config.dimension)
    per_epoch, batch_size = epoch_plan(size, config.batch_size, drop_last=True)
    steps = config.steps or config.epochs * per_epoch
    tx = make_optimizer(config.optimizer, steps=steps, steps_per_epoch=per_epoch)
    rows = make_rows(size=size, steps_per_epoch=per_epoch, batch_size=batch_size)
    draw = make_draw(rows, info, config.blur)
    step = make_train_step(tx, loss=simclr_loss(network, config.temperature), batches=draw)
    variables = network.init(stream(own, "init"))
    state = init_state(variables, tx, stream(own, "train"))
    return TrainLoop(step, state, jnp.asarray(split.images), steps)


def check_simclr(config: SimCLRConfig, model: Model, shapes: Variables, size: int) -> None:
    """Raise `ConfigError` if SimCLR cannot run on a model or with `size` images.

    `shapes` are the shapes of the model's variables. The model must name its penultimate features,
    and have no part called "projector".
    """
    feature_count(model)
    if PROJECTOR in shapes.params:
        raise ConfigError(f"simclr: the model has a part {PROJECTOR!r}, which SimCLR adds")
    if config.batch_size > size:
        raise ConfigError(f"simclr.batch_size: {config.batch_size} is more than the {size} images")
