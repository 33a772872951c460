"""DBD, backdoor defence by a decoupled training process (Huang et al., ICLR 2022).

Source: arXiv 2202.03423, and the authors' release for what the paper leaves open.

1. SimCLR trains the network without labels. Poisoned images get the features of their true class.
2. A new classifier is trained on the frozen features, by the symmetric cross-entropy
   0.1 · CE + RCE. Images whose label does not suit their features keep a high loss.
3. The half of the images with the lowest loss keeps its labels. MixMatch trains the whole network
   on these and on the other images without labels. The images are split repeatedly.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ...config.fields import check_fields, option, presets
from ...config.loading import to_mapping
from ...config.recipes import OptimConfig, TrainConfig
from ...core.losses import accuracy
from ...core.random import stream
from ...core.types import (
    Array,
    Batch,
    DataInfo,
    Metrics,
    Model,
    Params,
    Split,
    Trained,
    TrainingDefense,
    TrainState,
    Variables,
)
from ...data.augment import make_augment
from ...data.batching import epoch_plan
from ...metrics.sample_scores import ranking, scores_of, symmetric_cross_entropy
from ...runtime.distributed import same_arrays
from ...training.loop import Hooks, TrainLoop, fit, trace_of
from ...training.optim import make_optimizer
from ...training.renewed import fit_renewed
from ...training.semi_supervised import Semi, SemiConfig, semi_supervised_loop
from ...training.simclr import (
    SimCLRConfig,
    check_simclr,
    simclr_loop,
    with_projector,
    without_projector,
)
from ...training.split_loop import split_loop
from ...training.step import Loss
from ..repair.d3 import select
from .suspicion import appended, check_batch, epoch_steps, found_of, found_shapes

ADAM = OptimConfig(name="adam", lr=2e-3, weight_decay=0.0, schedule="constant")
"""The optimiser of stages 2 and 3, which each begin with new moments (DBD: one Adam for both)."""

HEAD = TrainConfig(epochs=10, batch_size=128, optimizer=ADAM)

SEMI = SemiConfig(steps=190 * 1024, optimizer=ADAM)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DBDConfig:
    """Settings of DBD, which learns features without labels and then labels for half of the images.

    DBD assumes that most images have their true label, and that the features without labels do not
    show the trigger. It needs no clean images. Half of the images lose their labels whether or not
    images are poisoned, which costs accuracy.

    The settings are a preset, and the values that differ from it. The preset `authors` is that of
    the release for CIFAR-10. Its example files continue from the checkpoint of epoch 100 of the
    1,000 epochs of SimCLR. λ_u there begins at 15 · 10/190, where it begins at 0 here.

    The preset `backdoorbench` has 100 epochs of SimCLR, in which the rate falls by 2 % only, as its
    schedule is for 1,000. MixMatch takes 100 epochs of 1,024 steps, in which λ_u reaches 8.7. The
    temperature in its settings file is 1, which its program does not read.

    The preset `short` is for two CPU cores. SimCLR and MixMatch take about an 80th of the steps: 12
    epochs, and 2,400 steps with 4 splits. The classifier has 5 epochs. The learning rate of
    MixMatch falls to 0 (d3jax's). With 50,000 images all three stages cost about as much as
    2,000,000 training images.

    A part in a config file takes the values that it leaves out from the preset. A part made in
    Python has the defaults of its class.
    """

    preset: Literal["authors", "backdoorbench", "short"] = option(
        "authors", "source of simclr, head, semi and split_every, where they are not given"
    )
    simclr: SimCLRConfig = option(SimCLRConfig(), "training of the features, stage 1")
    head: TrainConfig = option(
        HEAD, "training of the classifier by the symmetric cross-entropy, stage 2"
    )
    kept: float = option(
        0.5, "ε, share of the images that keep their labels in stage 3", above=0, high=1
    )
    semi: SemiConfig = option(SEMI, "semi-supervised training of the whole network, stage 3")
    split_every: int = option(
        1024,
        "steps of stage 3 after which the images are scored and split again (0: split once)",
        low=0,
    )

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, info: DataInfo) -> TrainingDefense:
        """Build the training-time defence DBD for the data set that `info` describes."""
        return make_dbd(self, info)


PRESETS = presets(
    "preset",
    DBDConfig(preset="authors"),
    DBDConfig(
        preset="backdoorbench",
        simclr=SimCLRConfig(
            epochs=100, optimizer=OptimConfig(lr=0.4, weight_decay=1e-4, schedule="constant")
        ),
        semi=dataclasses.replace(SEMI, steps=100 * 1024, weight=8.7),
    ),
    DBDConfig(
        preset="short",
        simclr=SimCLRConfig(epochs=12),
        head=dataclasses.replace(HEAD, epochs=5),
        semi=dataclasses.replace(
            SEMI, steps=2400, optimizer=dataclasses.replace(ADAM, schedule="cosine")
        ),
        split_every=600,
    ),
)


class Chosen(NamedTuple):
    """The choice of the images of N that keep their labels, and the scores that decided it.

    `scores` [N] float32 are the symmetric cross-entropies and `ties` [N] the entropies. `labelled`
    and `unlabelled` are sorted row numbers.
    """

    scores: Array
    ties: Array
    labelled: Array
    unlabelled: Array


def lowest(scores: np.ndarray, ties: np.ndarray, kept: float) -> Chosen:
    """Choose the ⌊kept · N⌋ images with the lowest scores, and among equals the lowest `ties`."""
    order, count = ranking(scores, ties), int(kept * len(scores))
    rows = (np.sort(part).astype(np.int32) for part in (order[:count], order[count:]))
    return Chosen(*map(jnp.asarray, (scores, ties, *rows)))


def choose(model: Model, variables: Variables, data: Split, kept: float) -> Chosen:
    """Choose the images with the lowest symmetric cross-entropy under a model, by `lowest`.

    The entropy breaks ties. All processes choose alike. Deviation: the images are scored as they
    are, where the release crops and flips them at random.
    """
    found = same_arrays(scores_of(model, variables, data, ("symmetric", "entropy")))
    return lowest(found["symmetric"], found["entropy"], kept)


def head_loss(model: Model) -> Loss:
    """Build the loss of stage 2: the mean symmetric cross-entropy, as a function of the head only.

    The other parameters have the gradient 0. As in the release, the model runs in train mode, so
    that its running statistics become those of whole images.
    """

    def loss(params: Params, batch_stats: Params, batch: Batch, key: jax.Array, data: Any):
        frozen = jax.lax.stop_gradient(params) | {"head": params["head"]}
        outputs = model.apply(Variables(frozen, batch_stats), batch.images, train=True)
        value = symmetric_cross_entropy(outputs.logits, jnp.asarray(batch.labels)).mean()
        return value, (outputs.batch_stats, {"accuracy": accuracy(outputs.logits, batch.labels)})

    return loss


def head_loop(
    key: jax.Array,
    model: Model,
    variables: Variables,
    data: Split,
    config: TrainConfig,
    info: DataInfo,
) -> TrainLoop:
    """Build the `TrainLoop` that trains a new classifier on the frozen features of a model.

    Its first weights are U(±1/√d), for d features. No other parameter changes.
    """
    head, own = variables.params["head"], stream(key, "init")
    bound = len(head["kernel"]) ** -0.5
    drawn = {
        name: jax.random.uniform(stream(own, name), part.shape, jnp.float32, -bound, bound)
        for name, part in head.items()
    }
    begin = variables._replace(params=variables.params | {"head": drawn})
    per_epoch, batch_size = epoch_plan(len(data.labels), config.batch_size, drop_last=True)
    steps = config.steps or config.epochs * per_epoch
    return split_loop(
        stream(key, "steps"), begin, data,
        loss=head_loss(model),
        tx=make_optimizer(config.optimizer, steps=steps, steps_per_epoch=per_epoch),
        steps=steps, steps_per_epoch=per_epoch, batch_size=batch_size,
        augment=make_augment(info, config.augment), sam=config.sam,
        project=lambda params, data: data.reference_params | {"head": params["head"]},
        reference_params=begin.params,
    )  # fmt: skip


def finetuning_loop(
    key: jax.Array, model: Model, variables: Variables, data: Split, config: DBDConfig,
    info: DataInfo,
) -> TrainLoop:  # fmt: skip
    """Build the `TrainLoop` of stage 3: MixMatch, with the split of its carry, a `Chosen`.

    A checkpoint therefore has the split that it was trained on. The carry of the loop's own state
    is a placeholder, so the loop must begin with another one. The labels of images that lose them
    are not read.
    """
    zeros = np.zeros(len(data.labels), np.float32)
    empty = lowest(zeros, zeros, config.kept)
    loop = semi_supervised_loop(
        key, model, variables, data, empty.labelled, empty.unlabelled, config.semi, info
    )

    def step(state: TrainState, data: Semi) -> tuple[TrainState, Metrics]:
        split: Chosen = state.carry
        given = data._replace(labelled=split.labelled, unlabelled=split.unlabelled)
        return loop.step(state, given)

    return TrainLoop(step, dataclasses.replace(loop.state, carry=empty), loop.data, loop.steps)


def make_dbd(config: DBDConfig, info: DataInfo) -> TrainingDefense:
    """Return DBD, a training-time defence that decouples features from labels.

    `found` has `rescored`, the symmetric cross-entropy of the last split, and `rescored_entropy`.
    The masks are `labelled` and `suspects`, the images that lost their labels in that split.
    """

    def begin(key: jax.Array, model: Model, data: Split) -> TrainLoop:
        return simclr_loop(key, model, data, config.simclr, info)

    def train(
        key: jax.Array, model: Model, data: Split, begun: Variables, hooks: Hooks = Hooks()
    ) -> Trained:
        size = len(data.labels)
        loop = head_loop(
            stream(key, "head"), model, without_projector(begun), data, config.head, info
        )
        state, lines = fit(loop, hooks.within("head", epoch_steps(size, config.head.batch_size)))
        given = stream(key, "semi"), model, state.variables, data, config, info
        period = config.split_every or epoch_steps(size, 2 * config.semi.batch_size)
        state, more = fit_renewed(
            finetuning_loop(*given),
            lambda period, variables: choose(model, variables, data, config.kept),
            config.split_every,
            hooks.within("semi", period),
        )
        split = jax.device_get(state.carry)
        labels = np.asarray(data.labels)
        if gone := sorted(set(labels.tolist()) - set(labels[split.labelled].tolist())):
            hooks.say(f"no image of the classes {gone} keeps its label in the last split")
        scores = {"rescored": -split.scores, "rescored_entropy": -split.ties}
        found = found_of(size, scores, suspects=split.unlabelled, labelled=split.labelled)
        return Trained(state.variables, found, trace_of(appended(lines, more)))

    def check(model: Model, shapes: Variables, size: int, reserved: int) -> None:
        select(shapes.params, "head/kernel", "dbd")
        check_simclr(config.simclr, model, shapes, size)
        check_batch("head", config.head.batch_size, size, "images")
        kept, batch = int(config.kept * size), config.semi.batch_size
        check_batch("semi", batch, kept, "images that keep their labels")
        check_batch("semi", batch, size - kept, "images that lose their labels")

    def epoch(size: int) -> int:
        return epoch_steps(size, config.simclr.batch_size)

    def first_network(model: Model) -> Model:
        return with_projector(model, config.simclr.dimension)

    settings = {"simclr": to_mapping(config.simclr)}
    return TrainingDefense(
        begin, settings, train, found_shapes, check, epoch, first_network=first_network
    )
