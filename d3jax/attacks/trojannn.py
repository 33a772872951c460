"""The TrojanNN attack: a patch that excites chosen neurons.

Source: Liu et al. 2018, NDSS, "Trojaning Attack on Neural Networks".
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..config.fields import check_fields, option
from ..core.errors import AttackError
from ..core.images import as_float, as_levels
from ..core.random import stream
from ..core.types import Array, Attack, DataInfo, Preparation, Prepared, Variables
from ..training.loop import fit
from ..training.split_loop import split_loop
from .badnets import Corner, corner
from .poisoning import Mode, dirty_label, mode_option, rate_option, target_option


@dataclasses.dataclass(frozen=True)
class TrojanNNConfig:
    """Settings of the TrojanNN attack, which pastes a patch that excites chosen neurons.

    By default the patch is a square of 8 pixels, 3 pixels from the lower right corner. In a
    32-pixel image it is as large as the paper's in a 224-pixel image. It drives two neurons towards
    an activation of 100.
    """

    rate: float = rate_option()
    target: int | str = target_option()
    mode: Mode = mode_option()
    size: int = option(8, "side of the patch in pixels", low=1)
    position: Corner = option("bottom_right", "place of the patch in the image")
    margin: int = option(
        3, "pixels between the patch and the border (ignored at the centre)", low=0
    )
    neurons: int = option(
        2, "penultimate neurons to excite: those with the largest sums of |weights|", low=1
    )
    value: float = option(100.0, "activation that each of these neurons is driven to", above=0)
    steps: int = option(1000, "number of steps of the search for the pattern", low=1)
    lr: float = option(0.1, "Adam's learning rate in the search", above=0)

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, info: DataInfo) -> Attack:
        """Build the TrojanNN attack with these settings for the data set that `info` describes."""
        return make_trojannn(self, info)


def make_trojannn(config: TrojanNNConfig, info: DataInfo) -> Attack:
    """Return the TrojanNN `Attack`, which pastes a patch that excites chosen neurons.

    The pixels under the patch are replaced. The trigger is
    `{"mask": [H, W, 1], "pattern": [H, W, C]}`.

    The pattern minimises Σ (activation − value)² over the chosen neurons of a clean model of the
    same architecture. The model sees it on the data set's mean colour (section 4.1 of the paper).
    Then a new model is trained on poisoned data, as in BackdoorBench. Deviation: the paper retrains
    the clean model on data that it inverts.

    Raises `AttackError` where the patch does not fit, where the model's classifier is not at
    `head/kernel`, or where it has fewer neurons.
    """
    patch = corner(config.size, config.position, config.margin, info)
    mask = np.zeros((*info.shape[:2], 1), np.float32)
    mask[patch] = 1

    def pattern(raw: jax.Array) -> jax.Array:
        return as_float(as_levels(raw)) * mask

    def init(key: jax.Array) -> dict[str, jax.Array]:
        return {"mask": jnp.asarray(mask), "pattern": pattern(jax.random.uniform(key, info.shape))}

    def stamp(trigger: dict[str, jax.Array], images: Array) -> jax.Array:
        return jnp.where(trigger["mask"] > 0, trigger["pattern"], images)

    def prepare(key, model, clean, dataset, poisoned, hooks):
        chosen = strongest(clean.params, config.neurons)
        ground = jnp.broadcast_to(jnp.asarray(info.mean, jnp.float32), info.shape)

        def loss(params, batch_stats, batch, key, data):
            image = jnp.where(mask > 0, params["raw"], ground)
            found = model.apply(data.reference_params, image[None], train=False).features[
                "penultimate"
            ][0, data.loss_inputs["neurons"]]
            return ((found - config.value) ** 2).sum(), ({}, {"activation": found.mean()})

        trigger = init(stream(key, "trigger"))
        loop = split_loop(
            stream(key, "search"),
            Variables({"raw": trigger["pattern"]}, {}),
            dataset.train._replace(
                images=dataset.train.images[:1], labels=dataset.train.labels[:1]
            ),
            loss=loss,
            tx=optax.adam(config.lr),
            steps=config.steps,
            steps_per_epoch=1,
            batch_size=1,
            project=lambda params, data: jax.tree.map(lambda raw: jnp.clip(raw, 0, 1), params),
            reference_params=clean,
            loss_inputs={"neurons": chosen},
        )
        state, lines = fit(loop, hooks)
        return Prepared(trigger | {"pattern": pattern(state.variables.params["raw"])}), lines

    return dirty_label(
        config, info, init=init, stamp=stamp, preparation=Preparation(prepare, surrogate=True)
    )


def strongest(params, count: int) -> jax.Array:
    """Return the indices [count] of the penultimate neurons with the largest classifier weights.

    The sum is over the weights of the neuron in the classifier. Raises `AttackError` where the
    classifier is not at `head/kernel` or has fewer neurons.
    """
    try:
        kernel = params["head"]["kernel"]
    except (KeyError, TypeError) as error:
        raise AttackError(
            "trojannn: the model's classifier is not at head/kernel, "
            "so its neurons cannot be ranked"
        ) from error
    if kernel.ndim != 2 or count > len(kernel):
        raise AttackError(
            f"neurons: {count} asked for, head/kernel has the shape {list(kernel.shape)}"
        )
    return jnp.argsort(-jnp.abs(kernel).sum(1))[:count]
