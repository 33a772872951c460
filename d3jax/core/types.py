"""The contracts every piece of d3jax is written against: what a model, an attack, a defence and a data set are.

Shapes use `B` images of `H`×`W`×`C` in `K` classes; `N` is the size of a data set. Images rest as uint8 NHWC and are
float32 in [0, 1] inside functions; models normalise for themselves, so triggers live in pixel space.
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

from .errors import ConfigError, did_you_mean, refuse
from .records import LogRecord

Array = np.ndarray | jax.Array
"""An array that may lie on the host or on the device."""

Device: TypeAlias = jax.Device  # pyright: ignore[reportInvalidTypeForm]  # jaxlib has no stubs
"""One device of an accelerator, or a CPU."""

Params = Any
"""A nested dict of arrays."""

Metrics = dict[str, jax.Array]


class Variables(NamedTuple):
    """What a model is: trainable `params` and running `batch_stats` (an empty dict where there are none)."""

    params: Params
    batch_stats: Params


class Outputs(NamedTuple):
    """What a model returns for `B` images: `logits [B, K]`, `features`, and the updated `batch_stats`.

    `features` holds every named activation, after its edit if it has one. "penultimate" is what the
    classifier sees; the architecture names the others, such as "block1" or "block1_1/relu2". Those
    that nobody reads cost nothing in a compiled program.
    """

    logits: Float[jax.Array, "B K"]
    features: dict[str, jax.Array]
    batch_stats: Params


Path = tuple[str, ...]
"""Keys of a layer in `Variables.params`, such as ("block1_1", "Conv_0")."""


class NormLayer(NamedTuple):
    """A BatchNorm layer at `path` and the layers around it.

    `producers` are the convolutions whose outputs are summed and normalised; with `identity` the
    input of the residual block is part of that sum. `previous` is the convolution before it in the
    order in which PyTorch's net registers its layers, the pairing of published code. `consumers`
    are the layers that read its channels. `input` and `output` name the activations before it and
    after it and its ReLU.
    """

    path: Path
    producers: tuple[Path, ...]
    previous: Path
    consumers: tuple[Path, ...]
    input: str
    output: str
    identity: bool = False


class Model(NamedTuple):
    """A network as functions. Any framework's net fits by writing the first two.

    `init(key) -> Variables`; `apply(variables, images, *, train) -> Outputs` with float32 images
    [B, H, W, C] in [0, 1].

    Methods that read or change activations need more, and say so before any work where it is
    missing: `activations() -> {name: shape}` of one image; `apply(..., edit={name: function})`,
    which replaces the named activations [B, ...] by what the functions return of them; and
    `channels`, every BatchNorm layer with the layers around it.
    """

    init: Callable[[jax.Array], Variables]
    apply: Callable[..., Outputs]
    activations: Callable[[], Mapping[str, jax.ShapeDtypeStruct]] | None = None
    channels: tuple[NormLayer, ...] = ()


class Batch(NamedTuple):
    """`images [B, H, W, C]` float32 in [0, 1], `labels [B]` int32, `poisoned [B]` bool: the rows the attacker owns.

    `joint` is what the poisoning by a trigger adds that is trained with the model: a `Joint`, else None. `rows [B]` int32 says which
    of the set they are, where the set is on the device.
    """

    images: Float32[Array, "B H W C"]
    labels: Int32[Array, " B"]
    poisoned: Bool[Array, " B"]
    joint: Any = None
    rows: Int32[jax.Array, " B"] | None = None


class Joint(NamedTuple):
    """`penalty` float32 [], added to the model's loss, and the `trigger` with its running statistics moved on."""

    penalty: Float32[jax.Array, ""]
    trigger: Any


class Split(NamedTuple):
    """Labelled images at rest: `images [N, H, W, C]` uint8, `labels [N]` int32."""

    images: UInt8[Array, "N H W C"]
    labels: Int32[Array, " N"]


@dataclasses.dataclass(frozen=True)
class DataInfo:
    """What code must know of a data set without its pixels.

    `mean` and `std` are per channel, in [0, 1] units; `crop` is the padding in pixels of the random crop that suits the
    images (0: none) and `flip` says whether a mirrored image keeps its class.
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
        """How many classes there are."""
        return len(self.classes)

    def class_of(self, target: int | str) -> int:
        """Return the class that a number or a name means. Raises `ConfigError` where it is none."""
        if isinstance(target, str):
            known = self.classes.count(target) == 1
            several = f"is the name of several classes of {self.name}"
            none = f"is no class of {self.name}{did_you_mean(target, self.classes)}"
            refuse(not known, f"target: {target!r} {several if target in self.classes else none}")
            return self.classes.index(target)
        top = self.num_classes - 1
        refuse(
            not 0 <= target <= top,
            f"target: {target} is not a class of {self.name}, want 0 to {top} or a name",
        )
        return target


class Dataset(NamedTuple):
    """A training set, a test set and what is known of them."""

    train: Split
    test: Split
    info: DataInfo


class Prepared(NamedTuple):
    """What an attack computed before the training: its `trigger`, and `images` [n, H, W, C] uint8 that take the places of the
    n poisoned training images (None: they stay)."""

    trigger: Any
    images: UInt8[Array, "n H W C"] | None = None


class Preparation(NamedTuple):
    """Work that an attack does before the training.

    `run(key, model, clean, dataset, poisoned, hooks) -> (Prepared, lines)` with `poisoned [N]` bool; `clean` are the variables of
    a model trained on the clean set where `surrogate` is true, else None. `replaces` says whether there will be images.
    `check(count)` raises `ConfigError` where a set of `count` training images does not allow it.
    """

    run: Callable[..., tuple[Prepared, list[Any]]]
    surrogate: bool = False
    replaces: bool = False
    check: Callable[[int], object] = lambda count: None


class Attack(NamedTuple):
    """A backdoor attack as pure functions; `trigger` is a pytree made once by `init`.

    `init(key) -> trigger`; `stamp(trigger, images) -> images` is what the attacker does at test time (batch-wise,
    range-keeping); `select(key, labels [N]) -> bool [N]` draws the training rows to poison; `relabel(labels) -> labels`
    is the label the attacker wants for each true label; `poison(trigger, key, batch) -> Batch` is what training sees.

    A trigger that is found before the training comes from a `preparation`; `init` then gives its structure. One that is trained
    with the model has an `optimizer`: `poison` is differentiable in it and fills `Batch.joint`. `per_batch_rate` is the share of every
    batch that `poison` takes by position, drawn again in each epoch, instead of the rows of `select`. `eligible(labels) -> bool [N]` says which
    images it can poison at all: those of one class where the attack leaves labels right.
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


class Repaired(NamedTuple):
    """What a repair returns: the new `variables` and a `trace` of arrays over logged steps, for plots.

    `model` is the network that the variables belong to, where that is another than before: a plug,
    caps or a purifier was added (`Repair.network` says which).
    """

    variables: Variables
    trace: dict[str, np.ndarray]
    model: Model | None = None


Need = Literal["target", "training_set", "test_set"]
"""What a defence may need besides clean images; `Repair` says what each is."""


class Repair(NamedTuple):
    """A post-training repair, and what it must check before any work starts.

    `repair(key, model, variables, reserved, hooks=Hooks(), **given) -> Repaired` with `reserved` a
    clean `Split`. `given` has a keyword for each of `needs`:

    - "target": `defenses.repair.target.Found`, the class that a backdoor leads to and its trigger,
      as `search` asks for it; without the keyword the repair searches for itself.
    - "training_set": the training images as a `Split`, which may be poisoned.
    - "test_set": the test images as a `Split`, for a published rule that reads them (`rule:
      oracle`); such a rule stands beside its defender twin.

    `check(model, shapes, size)` raises `ConfigError` where the repair cannot run on such a model,
    whose variables have these shapes, or with `size` reserved images. `loop(key, model, variables,
    reserved) -> TrainLoop` is the loop of a repair that is nothing but one
    (`defenses.repair.one_loop`): such repairs run together, as members of one program.
    `network(model) -> Model` is the network of the repaired variables. `rule` says which data a
    choice within the method reads, where there is one ("" for none).
    """

    repair: Callable[..., Repaired]
    check: Callable[[Model, Variables, int], None] = lambda model, shapes, size: None
    loop: Callable[..., Any] | None = None
    needs: tuple[Need, ...] = ()
    search: Any = None
    network: Callable[[Model], Model] = lambda model: model
    rule: Literal["", "defender", "oracle"] = ""


class Trained(NamedTuple):
    """What a training-time defence returns: the `variables`, what it `found` out about the training images, arrays [N] by name, and a
    `trace` of arrays over logged steps."""

    variables: Variables
    found: dict[str, Shaped[np.ndarray, " N"]]
    trace: dict[str, np.ndarray]


class TrainingDefense(NamedTuple):
    """A training from scratch on images that may be poisoned, nobody says which; the defender controls it.

    `begin(key, model, data) -> TrainLoop` is its first stage on a `Split`, from its own start; `settings` say all of it as plain data, and
    defences that agree in them share what it leaves. `train(key, model, data, begun, hooks=Hooks()) -> Trained` goes on from the
    variables `begun`; `found(size)` is what it finds, as shapes. `check(size)` raises `ConfigError` where it cannot run on so many images;
    `epoch(size)` is how many steps an epoch of the first stage has.
    """

    begin: Callable[..., Any]
    settings: Any
    train: Callable[..., Trained]
    found: Callable[[int], dict[str, jax.ShapeDtypeStruct]]
    check: Callable[[int], None] = lambda size: None
    epoch: Callable[[int], int] = lambda size: 1


class Scored(NamedTuple):
    """What a detector finds out about N samples: `scores` [N] float32 and `flagged` [N] bool.

    A higher score is more suspicious. `flagged` follows the method's own rule, which reads nothing
    but what a defender has.
    """

    scores: Float32[np.ndarray, " N"]
    flagged: Bool[np.ndarray, " N"]


class SampleDetector(NamedTuple):
    """A detector of poisoned training samples.

    `score(key, model, variables, samples, reserved, hooks=Hooks()) -> Scored` with the training set
    `samples` and a clean `reserved` Split. `variables` are those of the model that was trained on
    the samples, or with a `first_stage` those that the first stage of that training leaves.
    `check(model, shapes, samples, reserved)` raises `ConfigError` where the detector cannot run on
    such a model or with so many images.
    """

    score: Callable[..., Scored]
    check: Callable[[Model, Variables, int, int], None] = lambda model, shapes, n, size: None
    first_stage: TrainingDefense | None = None


class InputDetector(NamedTuple):
    """A detector of triggered inputs at test time.

    `prepare(key, model, variables, reserved, hooks=Hooks()) -> state` does what is done once, on
    clean images: `state` is a pytree. `score(model, variables, state, images) -> [B]` float32 of
    uint8 images, higher is more suspicious. `threshold(state) -> float`: an input with a higher
    score is rejected. `check` is `Repair.check`. `batch_size` images are scored at once.
    """

    prepare: Callable[..., Any]
    score: Callable[[Model, Variables, Any, UInt8[Array, "B H W C"]], Float32[jax.Array, " B"]]
    threshold: Callable[[Any], float]
    check: Callable[[Model, Variables, int], None] = lambda model, shapes, size: None
    batch_size: int = 500


class Verdict(NamedTuple):
    """What a detector concludes of a model with K classes.

    `scores` [K] float are the evidence against each class, higher is more suspicious, and `flagged`
    [K] bool those that the method takes for targets. `statistic` is the number that the method
    compares with its `threshold`. `columns` have more numbers of each class, arrays [K] by name;
    `facts` more numbers of the model.
    """

    scores: Float[np.ndarray, " K"]
    flagged: Bool[np.ndarray, " K"]
    statistic: float
    threshold: float
    columns: dict[str, Shaped[np.ndarray, " K"]]
    facts: Mapping[str, float] = MappingProxyType({})

    @property
    def target(self) -> int:
        """The class with the highest score among the flagged, −1 where none is."""
        scores = np.where(self.flagged, self.scores, -np.inf)
        return int(scores.argmax()) if self.flagged.any() else -1


class ModelDetector(NamedTuple):
    """A detector of backdoored models, and of the class that a backdoor leads to.

    `detect(key, model, variables, reserved, hooks=Hooks()) -> (evidence, records)` does the work:
    `evidence` is a pytree of arrays [K, …], of shapes `like(num_classes, image_shape)`; `records`
    were logged on the way. `judge(evidence) -> Verdict`. `trigger(evidence, label) -> stamp`, where
    there is one, gives the trigger found for a class as a function of float images in [0, 1].
    `check` is `Repair.check`.
    """

    detect: Callable[..., tuple[Any, list[LogRecord]]]
    judge: Callable[[Any], Verdict]
    like: Callable[[int, tuple[int, int, int]], Any]
    check: Callable[[Model, Variables, int], None] = lambda model, shapes, size: None
    trigger: Callable[[Any, int], Callable[[Array], Array]] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Hold everything that an optimiser loop moves. `step` (int32 []) is the only cursor: batches follow from (key, step).

    `carry` is a pytree of whatever moves besides the model and its optimiser, () where nothing does: a trained trigger with its
    optimiser's state, the parameters at the start of an update, the progress of a search. `training.step.make_train_step` says
    what a step does with it.
    """

    step: jax.Array
    variables: Variables
    opt_state: optax.OptState
    key: jax.Array
    carry: Any = ()


def check_built(**values: Any) -> None:
    """Raise `ConfigError` where a `model` or an `attack` is not one, such as a config that was not built."""
    for name, value in values.items():
        kind = {"model": Model, "attack": Attack}[name]
        if not isinstance(value, kind):
            hint = "; call its build(info)" if hasattr(value, "build") else ""
            given = type(value).__name__
            raise ConfigError(f"{name}: want a d3jax.{kind.__name__}, got a {given}{hint}")
