"""The types of d3jax's building blocks: data sets, models, attacks, defences and detectors.

In shapes, `B` is the number of images of a batch, and `H`×`W`×`C` the size of an image. `K` is the
number of classes, and `N` the size of a data set. Images are stored as uint8 NHWC, and are float32
in [0, 1] inside functions. Models normalise their inputs themselves. Triggers are in pixel space.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Bool, Float, Float32, Int32, Shaped, UInt8

from .errors import did_you_mean, refuse
from .records import LogRecord

Array = np.ndarray | jax.Array
"""An array on the host or on a device."""

Device: TypeAlias = jax.Device  # pyright: ignore[reportInvalidTypeForm]  # jaxlib has no stubs
"""One device of an accelerator, or a CPU."""

Params = Any
"""A nested dict of arrays."""

Metrics = dict[str, jax.Array]
"""Float32 scalars by name, which a step reports for the log."""


class Variables(NamedTuple):
    """The variables of a model: the trained `params` and the running statistics `batch_stats`.

    `batch_stats` is an empty dict for a model without running statistics.
    """

    params: Params
    batch_stats: Params


class Outputs(NamedTuple):
    """The outputs of a model for `B` images: logits [B, K], activations by name, `batch_stats`.

    `features` holds every named activation, after its edit if it has one. "penultimate" is the
    input of the classifier. The architecture names the others, such as "block1" or
    "block1_1/relu2". Unused activations cost nothing in a compiled program. `batch_stats` are the
    updated running statistics.
    """

    logits: Float[jax.Array, "B K"]
    features: dict[str, jax.Array]
    batch_stats: Params


Path = tuple[str, ...]
"""The keys of a layer in `Variables.params`, such as ("block1_1", "Conv_0")."""


class NormLayer(NamedTuple):
    """The place of a BatchNorm layer in a network: `path`, and the layers before and after it.

    `producers` are the convolutions whose outputs are summed and then normalised. With `identity`
    the input of the residual block is part of that sum. `previous` is the convolution before the
    layer in the order in which the PyTorch network registers its layers. Published code pairs
    convolutions and BatchNorm layers in that order. `consumers` are the layers that read the
    normalised channels. `input` names the activation before the layer, and `output` the activation
    after the layer and its ReLU.
    """

    path: Path
    producers: tuple[Path, ...]
    previous: Path
    consumers: tuple[Path, ...]
    input: str
    output: str
    identity: bool = False


class Model(NamedTuple):
    """A neural network as pure functions `init` and `apply`, with facts about its activations.

    A network of any framework can be used by writing the first two:

    - `init(key) -> Variables` draws the initial variables.
    - `apply(variables, images, *, train) -> Outputs` takes float32 images [B, H, W, C] in [0, 1].

    Methods that read or change activations need more. They raise before any work where it is
    missing:

    - `activations() -> {name: shape}` gives the shapes for one image.
    - `apply(..., edit={name: function})` replaces each named activation [B, ...] by
      `function(activation)`.
    - `channels` describes every BatchNorm layer with the layers around it.
    """

    init: Callable[[jax.Array], Variables]
    apply: Callable[..., Outputs]
    activations: Callable[[], Mapping[str, jax.ShapeDtypeStruct]] | None = None
    channels: tuple[NormLayer, ...] = ()


class Batch(NamedTuple):
    """A batch of training images, with their labels and a mask of the attacker's rows.

    `images` [B, H, W, C] are float32 in [0, 1], `labels` [B] int32, and `poisoned` [B] bool marks
    the rows that the attacker owns. `joint` is a `Joint` if the trigger is trained with the model,
    else None. `rows` [B] int32 are the indices of the images in the training set. `covers` [B] bool
    marks the cover rows of an attack that has `Attack.covers`, else None.
    """

    images: Float32[Array, "B H W C"]
    labels: Int32[Array, " B"]
    poisoned: Bool[Array, " B"]
    joint: Any = None
    rows: Int32[Array, " B"] | None = None
    covers: Bool[Array, " B"] | None = None


class Joint(NamedTuple):
    """The result of poisoning a batch with a trigger trained with the model: `penalty`, `trigger`.

    `penalty` (float32 []) is added to the loss of the model. `trigger` is the trigger with its
    running statistics updated.
    """

    penalty: Float32[jax.Array, ""]
    trigger: Any


class Split(NamedTuple):
    """A set of labelled images: `images` [N, H, W, C] uint8 and `labels` [N] int32."""

    images: UInt8[Array, "N H W C"]
    labels: Int32[Array, " N"]


@dataclasses.dataclass(frozen=True)
class DataInfo:
    """The facts about a data set: name, image shape, class names, channel statistics, augmentation.

    `mean` and `std` are per channel, for pixels in [0, 1]. `crop` is the padding, in pixels, of the
    random crop that suits the images (0: no crop). `flip` says whether a mirrored image keeps its
    class.
    """

    name: str
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: int = 0
    flip: bool = False

    @property
    def num_classes(self) -> int:
        """Return the number of classes of the data set."""
        return len(self.classes)

    def class_of(self, target: int | str, setting: str = "target") -> int:
        """Return the index of a class of the data set, which is given by index or by name.

        `setting` names the value in errors. Raises `ConfigError` if there is no such class, if
        several classes have that name, or if an index is also the name of another class.
        """
        if isinstance(target, str):
            known = self.classes.count(target) == 1
            several = f"is the name of several classes of {self.name}"
            known_names = ", ".join(self.classes[:8]) + (", …" if self.num_classes > 8 else "")
            close = did_you_mean(target, self.classes) or f"; the classes are {known_names}"
            none = f"is no class of {self.name}{close}"
            refuse(
                not known, f"{setting}: {target!r} {several if target in self.classes else none}"
            )
            return self.classes.index(target)
        top = self.num_classes - 1
        refuse(
            not 0 <= target <= top,
            f"{setting}: {target} is not a class of {self.name}, want 0 to {top} or a name in "
            "quotes",
        )
        own = self.classes[target]
        refuse(
            str(target) in self.classes and own != str(target),
            f"{setting}: {target} is unclear: the class with that index is {own!r}, and another "
            f"class is called {str(target)!r}; give the name in quotes",
        )
        return target


class Dataset(NamedTuple):
    """A data set: the training `Split`, the test `Split` and the `DataInfo` of both."""

    train: Split
    test: Split
    info: DataInfo


class Prepared(NamedTuple):
    """The result of an attack's `Preparation` before training: the trigger and poisoned images.

    `images` [n, H, W, C] uint8 replace the n poisoned training images. With None those images stay.
    """

    trigger: Any
    images: UInt8[Array, "n H W C"] | None = None


class Preparation(NamedTuple):
    """The computation of an attack before the model is trained, such as a search for the trigger.

    `run(key, model, clean, dataset, poisoned, hooks) -> (Prepared, log records)` does it. The mask
    `poisoned` [N] marks the rows to poison. If `surrogate` is true, `clean` are the variables of a
    model trained on the clean set, else None. `replaces` says whether `Prepared.images` is given.
    `check(count)` raises `ConfigError` if a set of `count` training images does not allow it.
    `uses_model` says whether the result depends on the architecture `model`, also without a
    surrogate.
    """

    run: Callable[..., tuple[Prepared, list[Any]]]
    surrogate: bool = False
    replaces: bool = False
    check: Callable[[int], object] = lambda count: None
    uses_model: bool = False


class Attack(NamedTuple):
    """A backdoor attack as pure functions that make the trigger, stamp images and poison batches.

    - `init(key) -> trigger` makes the trigger, a pytree.
    - `stamp(trigger, images) -> images` adds the trigger to a batch at test time and stays in
      [0, 1].
    - `select(key, labels [N]) -> bool [N]` draws the training rows to poison.
    - `relabel(labels) -> labels` gives the label that the attacker wants for each true label.
    - `poison(trigger, key, batch) -> Batch` poisons a training batch.
    - `eligible(labels) -> bool [N]` marks the images that the attack can poison. A clean-label
      attack can poison those of one class only.

    A trigger that is computed before the training comes from the `preparation`. `init` then only
    gives its structure. A trigger that is trained with the model has an `optimizer`: `poison` is
    differentiable in the trigger and fills `Batch.joint`. With `per_batch_rate`, `poison` ignores
    the rows of `select`. It poisons that share of every batch by position, so that the poisoned
    images differ from epoch to epoch.

    `covers(key, labels [N]) -> bool [N]` draws the cover rows, which get a trigger and keep their
    labels, for the key of `select`. No row is both poisoned and a cover. `objective(loss) -> loss`
    replaces the training loss (`training.step.Loss`), for an attacker who changes the training
    code. If such an attack poisons no image, its `per_batch_rate` is 0.

    With `copies_only`, the trigger is known only by triggered copies of the test images, and
    `stamp` returns other images as they are.
    """

    init: Callable[[jax.Array], Any]
    stamp: Callable[[Any, Float32[Array, "B H W C"]], Float32[Array, "B H W C"]]
    select: Callable[[jax.Array, Int32[Array, " N"]], Bool[Array, " N"]]
    relabel: Callable[[Int32[Array, " N"]], Int32[Array, " N"]]
    poison: Callable[[Any, jax.Array, Batch], Batch]
    preparation: Preparation | None = None
    optimizer: optax.GradientTransformation | None = None
    per_batch_rate: float | None = None
    eligible: Callable[[Int32[Array, " N"]], Bool[Array, " N"]] = lambda labels: jnp.ones(
        len(labels), bool
    )
    covers: Callable[[jax.Array, Int32[Array, " N"]], Bool[Array, " N"]] | None = None
    objective: Callable[[Any], Any] | None = None
    copies_only: bool = False


class Repaired(NamedTuple):
    """The result of a repair: the model's new `variables` and a `trace` of arrays over steps.

    The trace is for plots. `model` is the network of the variables if the repair changed it, by
    adding a plug, caps or a purifier. It is the network that `Repair.network` returns.
    """

    variables: Variables
    trace: dict[str, np.ndarray]
    model: Model | None = None


Need = Literal["target", "training_set", "test_set", "triggered_set"]
"""An input that a repair may need besides clean images; `Repair` describes each."""


class Repair(NamedTuple):
    """A repair: a function that removes a backdoor from a trained model, and its requirements.

    `repair(key, model, variables, reserved, hooks=Hooks(), **given) -> Repaired` with `reserved` a
    clean `Split`. `given` has one keyword for each of `needs`:

    - "target": the backdoor's target class and an inverted trigger, as a
      `defenses.repair.target.Found`. `search` says how they are found. Without the keyword the
      repair does the search itself.
    - "training_set": the training images as a `Split`, which may be poisoned.
    - "test_set": the test images as a `Split`, for a published rule that reads them (`rule:
      oracle`). Such a method also has a variant whose rule is "defender".
    - "triggered_set": the triggered test images, with the labels that the attacker wants. Images
      that have the wanted label without the trigger are left out. For the same rules.

    `check(model, shapes, size)` raises `ConfigError` if the repair cannot run on the model, whose
    variables have these shapes, or with `size` reserved images. `loop(key, model, variables,
    reserved) -> TrainLoop` is given if the repair is a single train loop
    (`defenses.repair.one_loop`). Such repairs can run together, as members of one program.
    `network(model) -> Model` is the network of the repaired variables. `rule` says which data the
    method reads to make a choice: the defender's, or also test data ("oracle"); "" if it makes no
    such choice.
    """

    repair: Callable[..., Repaired]
    check: Callable[[Model, Variables, int], None] = lambda model, shapes, size: None
    loop: Callable[..., Any] | None = None
    needs: tuple[Need, ...] = ()
    search: Any = None
    network: Callable[[Model], Model] = lambda model: model
    rule: Literal["", "defender", "oracle"] = ""


class Trained(NamedTuple):
    """The result of a training-time defence: model `variables`, findings per image and a `trace`.

    `found` holds what the defence found out about the training images, as arrays [N] by name.
    `trace` holds arrays over logged steps.
    """

    variables: Variables
    found: dict[str, Shaped[np.ndarray, " N"]]
    trace: dict[str, np.ndarray]


class TrainingDefense(NamedTuple):
    """A training-time defence: trains a model from scratch on images that may be poisoned.

    The defender controls the training, but does not know which images are poisoned.
    `begin(key, model, data) -> TrainLoop` is the train loop of the first stage on a `Split`.
    `settings` describe that stage completely, as plain data, so that defences with equal `settings`
    share its result. `train(key, model, data, begun, hooks=Hooks(), **given) -> Trained` continues
    from `begun`, the variables after the first stage. `given` has one keyword for each of `needs`:
    "reserved" is a clean `Split`. "test_set" and "triggered_set" are those of `Repair`, for a
    published rule that reads them. `rule` is also that of `Repair`.

    `found(size)` gives the shapes of `Trained.found` for `size` training images. `check(model,
    shapes, size, reserved)` raises `ConfigError` if the defence cannot run on the model, whose
    variables have these shapes, or with these numbers of training and reserved images.
    `epoch(size)` is the number of steps of an epoch of the first stage. `first_network(model) ->
    Model` is the network whose variables the first stage trains, and `network(model) -> Model` that
    of `Trained.variables`.
    """

    begin: Callable[..., Any]
    settings: Any
    train: Callable[..., Trained]
    found: Callable[[int], dict[str, jax.ShapeDtypeStruct]]
    check: Callable[[Model, Variables, int, int], None] = lambda model, shapes, size, reserved: None
    epoch: Callable[[int], int] = lambda size: 1
    needs: tuple[Literal["reserved", "test_set", "triggered_set"], ...] = ()
    first_network: Callable[[Model], Model] = lambda model: model
    network: Callable[[Model], Model] = lambda model: model
    rule: Literal["", "defender", "oracle"] = ""


class Scored(NamedTuple):
    """The result of a sample or input detector: `scores` [N] float32 and `flagged` [N] bool.

    A higher score is more suspicious. `flagged` follows the method's own rule, which reads only
    data that a defender has.
    """

    scores: Float32[np.ndarray, " N"]
    flagged: Bool[np.ndarray, " N"]


class SampleDetector(NamedTuple):
    """A detector of poisoned training samples: scores and flags every image of a training set.

    `score(key, model, variables, samples, reserved, hooks=Hooks()) -> Scored` scores the training
    set `samples`, a `Split`, with the help of a clean `Split` `reserved`. `variables` are those of
    the model that was trained on the samples. With a `first_stage` they are those after the first
    stage of that training-time defence. `check(model, shapes, samples, reserved)` raises
    `ConfigError` if the detector cannot run on the model or with these numbers of images.
    """

    score: Callable[..., Scored]
    check: Callable[[Model, Variables, int, int], None] = lambda model, shapes, n, size: None
    first_stage: TrainingDefense | None = None


class InputDetector(NamedTuple):
    """A detector of triggered inputs at test time: scores images, rejects those above a threshold.

    `prepare(key, model, variables, reserved, hooks=Hooks()) -> state` runs once, on clean images.
    `state` is a dict of arrays, or of such dicts, so that it can be saved. `score(model, variables,
    state, images) -> [B]` gives float32 scores of uint8 images; higher is more suspicious.
    `threshold(state) -> float` is the score above which an input is rejected. `check` has the
    contract of `Repair.check`. `batch_size` is the number of images scored at once.
    """

    prepare: Callable[..., Any]
    score: Callable[[Model, Variables, Any, UInt8[Array, "B H W C"]], Float32[jax.Array, " B"]]
    threshold: Callable[[Any], float]
    check: Callable[[Model, Variables, int], None] = lambda model, shapes, size: None
    batch_size: int = 500


class Verdict(NamedTuple):
    """The conclusion of a model detector on a model: a score and a flag for each of K classes.

    `scores` [K] float are the evidence that each class is a target; higher is more suspicious.
    `flagged` [K] bool marks the classes that the method takes for targets. `statistic` is the
    number that the method compares with its `threshold`. `columns` holds further arrays [K] by
    name, and `facts` further numbers about the model.
    """

    scores: Float[np.ndarray, " K"]
    flagged: Bool[np.ndarray, " K"]
    statistic: float
    threshold: float
    columns: dict[str, Shaped[np.ndarray, " K"]]
    facts: Mapping[str, float] = MappingProxyType({})

    @property
    def target(self) -> int:
        """Return the flagged class with the highest score, or −1 if no class is flagged."""
        scores = np.where(self.flagged, self.scores, -np.inf)
        return int(scores.argmax()) if self.flagged.any() else -1


class ModelDetector(NamedTuple):
    """A model detector: decides whether a model is backdoored, and towards which class.

    `detect(key, model, variables, reserved, hooks=Hooks()) -> (evidence, log records)` does the
    computation. `evidence` is a pytree of arrays [K, …] with the shapes of
    `like(num_classes, image_shape)`. `judge(evidence) -> Verdict` draws the conclusion.
    `trigger(evidence, label) -> stamp` is optional. It returns the trigger found for a class, as a
    function of float images in [0, 1]. `check` has the contract of `Repair.check`.
    """

    detect: Callable[..., tuple[Any, list[LogRecord]]]
    judge: Callable[[Any], Verdict]
    like: Callable[[int, tuple[int, int, int]], Any]
    check: Callable[[Model, Variables, int], None] = lambda model, shapes, size: None
    trigger: Callable[[Any, int], Callable[[Array], Array]] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The state of a train loop: step, model variables, optimiser state, random key and `carry`.

    `step` (int32 []) counts the steps; batches depend on (key, step) alone. `carry` is a pytree of
    what changes besides the model and its optimiser, and () if there is nothing. Examples are a
    trained trigger with its optimiser's state, the parameters at the start of an update, and the
    progress of a search. `training.step.make_train_step` describes how a step uses it.
    """

    step: jax.Array
    variables: Variables
    opt_state: optax.OptState
    key: jax.Array
    carry: Any = ()
