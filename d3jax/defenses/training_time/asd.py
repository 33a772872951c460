"""ASD, adaptively splitting the poisoned dataset (Gao et al., CVPR 2023, arXiv 2303.12993).

The model is trained by MixMatch on images that keep their labels and images that lose them. Before
every epoch the model splits the set again, by one of the rules in `splitting`:

1. Class-aware split: a few clean images of every class keep their labels. The images of every class
   with the lowest loss join them, more and more of them.
2. Class-agnostic split: half of all images keep their labels, those with the lowest loss.
3. Meta-split: half of all images keep their labels, those whose loss falls least in a short
   training of a virtual copy.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from ...config.fields import check_fields, option, presets
from ...config.recipes import OptimConfig, TrainConfig
from ...core.errors import refuse
from ...core.random import stream
from ...core.types import DataInfo, Model, Split, Trained, TrainingDefense, Variables
from ...metrics.sample_scores import ranking, scores_of
from ...runtime.distributed import same_arrays
from ...training.loop import Hooks, TrainLoop, trace_of
from ...training.optim import make_optimizer
from ...training.renewed import fit_renewed
from ...training.semi_supervised import Semi, SemiConfig, make_draw, mixmatch
from ...training.step import init_state, make_train_step
from .splitting import (
    Divide,
    Pools,
    lowest_of_all,
    lowest_of_each_class,
    no_pools,
    pools_of,
    with_seeds,
)
from .suspicion import check_batch
from .virtual_copy import make_copy


def _adam(lr: float) -> OptimConfig:
    return OptimConfig(name="adam", lr=lr, weight_decay=0.0, schedule="constant")


AUTHORS = SemiConfig(steps=1024, optimizer=_adam(2e-3))
"""The authors' MixMatch: epochs of 1,024 steps, and a λ_u that rises to 15 over all epochs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ASDConfig:
    """Settings of ASD, which trains by MixMatch on a split that is renewed before every epoch.

    The method assumes some reserved images of every class that are known to be clean, 10 by
    default. It ends with half of the images without labels, also if nothing is poisoned. In a clean
    set these are images that are hard to learn.

    The settings are a preset, and the values that differ from it. The preset `authors` is that of
    the authors' program: 60, 30 and 30 epochs of 1,024 steps. Stage 1 adds 10 images of every class
    every 5 epochs. The preset `short` has a tenth of the epochs and half of the steps in each, so
    6,144 steps instead of 122,880. Its stage 1 adds 20 images of every class every epoch. It ends
    with 110 labelled images of every class (authors: 120).

    A part in a config file takes the values that it leaves out from the preset. A part made in
    Python has the defaults of its class.
    """

    preset: Literal["authors", "short"] = option(
        "authors", "source of the lengths of the stages, growth, every and semi, if not given"
    )
    seeds: int = option(
        10, "reserved clean images of every class that join the training set", low=1
    )
    class_aware: int = option(60, "epochs of stage 1, with the class-aware split", low=0)
    class_agnostic: int = option(30, "epochs of stage 2, with the class-agnostic split", low=0)
    meta: int = option(30, "epochs of stage 3, with the meta-split", low=0)
    growth: int = option(10, "n, images of every class that stage 1 adds at a time", low=0)
    every: int = option(5, "t, epochs of stage 1 between two additions", low=1)
    kept: float = option(
        0.5, "share of the images that keep their labels in stages 2 and 3", above=0, high=1
    )
    semi: SemiConfig = option(
        AUTHORS, "MixMatch; `steps` are those of one epoch of ASD, and `epochs` is not read"
    )
    virtual: TrainConfig = option(
        TrainConfig(epochs=1, optimizer=_adam(0.015)),
        "training recipe of a virtual copy, of which the later half of the layers is trained",
    )

    def __post_init__(self) -> None:
        check_fields(self)
        wrong = f"semi.method: {self.semi.method!r} is not the method of ASD, want 'mixmatch'"
        refuse(self.semi.method != "mixmatch", wrong)
        refuse(not self.semi.steps, "semi.steps: 0, want the number of MixMatch steps in an epoch")
        refuse(not self.epochs, "class_aware, class_agnostic and meta are 0: there is no epoch")

    @property
    def epochs(self) -> int:
        """Return the number of epochs of all three stages."""
        return self.class_aware + self.class_agnostic + self.meta

    def build(self, info: DataInfo) -> TrainingDefense:
        """Build the training-time defence ASD for the data set that `info` describes."""
        return make_asd(self, info)


PRESETS = presets(
    "preset",
    ASDConfig(preset="authors"),
    ASDConfig(
        preset="short", class_aware=6, class_agnostic=3, meta=3, growth=20, every=1,
        semi=dataclasses.replace(AUTHORS, steps=512),
    ),
)  # fmt: skip


def mixmatch_loop(
    key: jax.Array, model: Model, variables: Variables, split: Split, config: ASDConfig,
    info: DataInfo,
) -> TrainLoop:  # fmt: skip
    """Build the `TrainLoop` of ASD's MixMatch over all epochs, whose carry is the split: `Pools`.

    The carry is empty at first, so `fit_renewed` must run the loop. λ_u and the learning rate are
    scheduled over all epochs.
    """
    steps, batch_size = config.semi.steps, config.semi.batch_size
    parts, total = ("labelled", "unlabelled"), config.epochs * steps
    sizes = dict.fromkeys(parts, steps * batch_size)
    plans = dict.fromkeys(parts, (steps, batch_size))
    draw = make_draw(config.semi, sizes, plans, config.semi.ramp * total, info)

    def view(data: Semi, carry: Pools) -> Semi:
        return data._replace(labelled=carry.labelled, unlabelled=carry.unlabelled)

    tx = make_optimizer(config.semi.optimizer, steps=total, steps_per_epoch=steps)
    step = make_train_step(tx, loss=mixmatch(config.semi, model), batches=draw, view=view)
    empty = no_pools(len(split.labels), steps * batch_size)
    data = Semi(Split(*map(jnp.asarray, split)), empty.labelled, empty.unlabelled)
    return TrainLoop(step, init_state(variables, tx, key, empty), data, total)


def make_divide(
    key: jax.Array, model: Model, variables: Variables, split: Split, seeds: np.ndarray,
    config: ASDConfig, info: DataInfo, hooks: Hooks,
) -> Divide:  # fmt: skip
    """Build ASD's `Divide`, which splits a set with a mask of `seeds` by the rule of an epoch.

    The entropy breaks ties between scores.
    """
    labels, length = np.asarray(split.labels), config.semi.steps * config.semi.batch_size
    given = stream(key, "virtual"), model, variables, split, config.virtual, info, hooks
    copy = make_copy(*given) if config.meta else None

    def losses(variables: Variables) -> dict[str, np.ndarray]:
        return same_arrays(scores_of(model, variables, split, ("symmetric", "entropy")))

    def divide(epoch: int, variables: Variables) -> Pools:
        found = losses(variables)
        scores = found["symmetric"]
        if copy and epoch >= config.class_aware + config.class_agnostic:
            scores = scores - losses(copy(epoch, variables))["symmetric"]
        ranked = ranking(scores, found["entropy"])
        if epoch < config.class_aware:
            added = config.growth * (epoch // config.every)
            kept = lowest_of_each_class(ranked, labels, seeds, added)
        else:
            kept = lowest_of_all(ranked, config.kept)
        return pools_of(jax.random.fold_in(stream(key, "pools"), epoch), kept, scores, length)

    return divide


def make_asd(config: ASDConfig, info: DataInfo) -> TrainingDefense:
    """Return ASD, a training-time defence that keeps the labels of the images that it trusts.

    `found` has `split`, minus the score of the last split, and the masks `labelled` and `suspects`.
    The suspects are the images without labels in the last split. They are not dropped.

    The first stage makes no step, as all of ASD needs the reserved images. Deviations:

    - The seeds are reserved images, added to the set. The authors take them from the set by its
      true flags. As in their program, stages 2 and 3 may take the labels of seeds.
    - Images are scored without augmentation (authors: with it).
    - In an epoch each image of a part is drawn equally often, up to one. The authors shuffle a part
      again whenever it is used up.
    - MixMatch draws a mixing weight for each image (authors: for a batch). Only one of its forward
      passes updates BatchNorm's running statistics (authors: all).
    """

    def begin(key: jax.Array, model: Model, data: Split) -> TrainLoop:
        own = stream(key, "asd")
        variables = model.init(stream(own, "init"))
        return mixmatch_loop(own, model, variables, data, config, info)._replace(steps=0)

    def train(
        key: jax.Array,
        model: Model,
        data: Split,
        begun: Variables,
        hooks: Hooks = Hooks(),
        *,
        reserved: Split,
    ) -> Trained:
        own, size, given = stream(key, "asd"), len(data.labels), (config.seeds, info.num_classes)
        split, seeds = with_seeds(stream(own, "seeds"), data, reserved, *given)
        split = Split(*map(jnp.asarray, split))
        loop = mixmatch_loop(stream(own, "mixmatch"), model, begun, split, config, info)
        divide = make_divide(own, model, begun, split, seeds, config, info, hooks)
        part = hooks.within("mixmatch", loop.steps)
        state, lines = fit_renewed(loop, divide, config.semi.steps, part)
        kept, scores = (np.asarray(one)[:size] for one in (state.carry.kept, state.carry.scores))
        hooks.say(f"{kept.sum()} of {size} images keep their labels in the last epoch")
        found = {"split": -scores, "suspects": ~kept, "labelled": kept}
        return Trained(state.variables, found, trace_of(lines))

    def check(model: Model, shapes: Variables, size: int, reserved: int) -> None:
        check_sizes(config, info.num_classes, size, reserved)

    settings = {"asd": {"steps": 0}}
    return TrainingDefense(begin, settings, train, found_by_split, check, needs=("reserved",))


def check_sizes(config: ASDConfig, num_classes: int, size: int, reserved: int) -> None:
    """Raise `ConfigError` where ASD has too few reserved images, or a part is below a batch.

    Only the labelled part of stage 1 may be smaller. Its images are then repeated in a batch.
    """
    seeds, batch_size = config.seeds * num_classes, config.semi.batch_size
    needed = f"seeds: {config.seeds} images of each of the {num_classes} classes are {seeds}"
    refuse(seeds > reserved, f"{needed}, more than the {reserved} reserved images")
    added = config.growth * (max(0, config.class_aware - 1) // config.every) * num_classes
    check_batch("semi", batch_size, max(0, size - added), "images without labels after stage 1")
    if config.class_agnostic or config.meta:
        kept = int(config.kept * (size + seeds))
        for count, part in ((kept, "with labels"), (size + seeds - kept, "without labels")):
            check_batch("semi", batch_size, count, f"images {part} in stages 2 and 3")
    if config.meta:
        check_batch("virtual", config.virtual.batch_size, size + seeds, "images")


def found_by_split(size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes of what ASD reports on `size` training images, by name."""
    kinds = {"split": jnp.float32, "suspects": jnp.bool_, "labelled": jnp.bool_}
    return {name: jax.ShapeDtypeStruct((size,), kind) for name, kind in kinds.items()}
