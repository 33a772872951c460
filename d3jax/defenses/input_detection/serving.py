"""Input detectors that are prepared once, saved to a file, and score inputs as they arrive."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float32, UInt8

from ...config.loading import build, to_mapping
from ...config.stored_model import header_text
from ...core.errors import CheckpointError, ConfigError, names
from ...core.paths import user_path
from ...core.types import Array, DataInfo, InputDetector, Model, Split, Variables
from ...data.batched import batched_map
from ...interop import read_tensors, write_tensors
from . import INPUT_DETECTORS

ABOUT = "d3jax.detector"
"""The key of the JSON text in the header of a detector's file."""


@dataclasses.dataclass(frozen=True, eq=False)
class PreparedDetector:
    """An input detector with its state, for one model: `score`, `reject` and `save`.

    `config` is the config of the detector, such as `STRIPConfig`. `info` describes the data set.
    """

    config: Any
    info: DataInfo
    model: Model
    variables: Variables
    state: dict[str, Any]

    @property
    def detector(self) -> InputDetector:
        """Return the functions of the detector."""
        return self.config.build(self.info)

    @property
    def threshold(self) -> float:
        """Return the score above which an input is rejected."""
        return self.detector.threshold(self.state)

    def score(self, images: UInt8[Array, "B H W C"]) -> Float32[np.ndarray, " B"]:
        """Return the scores [B] of uint8 images [B, H, W, C]; higher is more suspicious."""
        detector = self.detector
        compute = functools.partial(detector.score, self.model, self.variables, self.state)
        return batched_map(compute, np.asarray(images), batch_size=detector.batch_size)

    def reject(self, images: UInt8[Array, "B H W C"]) -> Bool[np.ndarray, " B"]:
        """Return which images [B] have a score above the threshold."""
        return self.score(images) > self.threshold

    def save(self, path: str | Path) -> None:
        """Write the settings and the state to a `.safetensors` file; the model is not in it.

        Raises `ConfigError` for another ending, and `CheckpointError` if it cannot be written.
        """
        file = user_path(path)
        if file.suffix != ".safetensors":
            raise ConfigError(f"{file}: want a name that ends in .safetensors")
        about = {
            "name": _name_of(self.config),
            "settings": to_mapping(self.config),
            "info": dataclasses.asdict(self.info),
        }
        write_tensors(file, _flat(self.state), {ABOUT: json.dumps(about, sort_keys=True)})


def prepare_detector(
    config: Any,
    info: DataInfo,
    key: jax.Array,
    model: Model,
    variables: Variables,
    reserved: Split,
) -> PreparedDetector:
    """Prepare an input detector for a model with clean images, after its `check`.

    For a model that is known by its answers, see `models.black_box`.
    """
    detector = config.build(info)
    shapes = jax.eval_shape(lambda: variables)
    detector.check(model, shapes, len(reserved.labels))
    state = detector.prepare(key, model, variables, reserved)
    return PreparedDetector(config, info, model, variables, state)


def load_detector(path: str | Path, model: Model, variables: Variables) -> PreparedDetector:
    """Read a detector that `PreparedDetector.save` wrote, for the model that it was prepared with.

    Raises `CheckpointError` if the file is missing, damaged, or no file of a detector.
    """
    file = user_path(path)
    state, text = _nested(read_tensors(file)), header_text(file, ABOUT)
    if text is None:
        raise CheckpointError(f"{file}: holds no input detector of d3jax")
    try:
        about = json.loads(text)
        facts = {key: _tuple(value) for key, value in about["info"].items()}
        name, settings, info = about["name"], about["settings"], DataInfo(**facts)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{file}: its description of the detector is damaged") from error
    if name not in INPUT_DETECTORS:
        raise CheckpointError(f"{file}: {name!r} is not one of {names(INPUT_DETECTORS)}")
    config = build(INPUT_DETECTORS[name][0], settings, f"{file}: ")
    return PreparedDetector(config, info, model, variables, state)


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _name_of(config: Any) -> str:
    return next(name for name, (cls, _) in INPUT_DETECTORS.items() if cls is type(config))


def _flat(state: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return the arrays of a state by their paths, such as "expert/params/head/kernel"."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in leaves
    }


def _nested(flat: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return the state whose arrays have these paths."""
    state: dict[str, Any] = {}
    for path, value in flat.items():
        *parts, last = path.split("/")
        place = state
        for part in parts:
            place = place.setdefault(part, {})
        place[last] = jnp.asarray(value)
    return state
