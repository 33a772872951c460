"""The command that reads a saved attack of BackdoorBench, and writes it as files of d3jax.

python -m d3jax.interop.backdoorbench RECORD --data cifar10.npz --out FOLDER

RECORD is the folder of an attack, with `attack_result.pt` and the poisoned pictures. FOLDER gets
the poisoned set (`poison.npz`), the model (`model.safetensors`) and the config of a study
(`study.yaml`). The format is that of https://github.com/SCLBD/BackdoorBench.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import yaml

from d3jax.config.loading import build, to_mapping
from d3jax.config.study import Choice, StudyConfig
from d3jax.core.errors import CheckpointError, ConfigError, DataError, names
from d3jax.core.images import as_float
from d3jax.core.paths import user_path
from d3jax.core.types import Array, Dataset, Model, Variables
from d3jax.data.batched import batched_map
from d3jax.data.npz import NpzConfig, make_npz
from d3jax.data.released import Released, write_released
from d3jax.interop.architecture import recognise
from d3jax.interop.backdoorbench_data import DAMAGED, check_keys, released_of_record
from d3jax.interop.content import check_archive, kind_of
from d3jax.interop.convert import from_torch, to_torch
from d3jax.interop.external_model import ABOUT, write_external_model
from d3jax.interop.read import read_pickle
from d3jax.interop.state_dict import tensors_in
from d3jax.models import MODELS
from d3jax.runtime.commands import Parser, exit_code, program
from d3jax.runtime.files import write_text

NORMALISATION = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "mnist": ((0.5,), (0.5,)),
    "tiny": ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
    "gtsrb": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "celeba": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""The mean and standard deviation of each channel by BackdoorBench's name of a data set."""
CROP = 4
"""The padding in pixels of BackdoorBench's random crop."""
FLIPPED = ("cifar10",)
"""The data sets whose images BackdoorBench mirrors."""
FILE = "attack_result.pt"


class Record(NamedTuple):
    """A saved attack: its poisoned set, its model, and the clean data set that was poisoned."""

    released: Released
    clean: Dataset
    choice: Choice
    model: Model
    variables: Variables


def read_record(folder: str | Path, data: str | Path) -> Record:
    """Read a `Record` from the folder of an attack of BackdoorBench and the clean data set `data`.

    `data` is an .npz with the images in torchvision's order. No code of a file is run, and no file
    outside of the folder is read. Raises `CheckpointError` or `DataError` where the record is
    damaged, of an earlier version or of an unknown architecture, or the data set is not that of the
    record. Raises `CheckpointError` without PyTorch.
    """
    folder = user_path(folder, "RECORD")
    file = folder / FILE
    if not file.is_file():
        raise CheckpointError(
            f"{folder}: want the folder of an attack of BackdoorBench, with {FILE}"
        )
    if kind_of(file) == "zip":
        check_archive(file)
    found = read_pickle(file)
    check_keys(file, found)
    clean = _clean(file, found, user_path(data, "--data"))
    released = released_of_record(found, folder, clean)
    return Record(released, clean, *_model(file, found, clean))


def _clean(file: Path, found: Mapping[str, Any], data: Path) -> Dataset:
    """Read the clean data set of a record with the normalisation of BackdoorBench.

    Raises `CheckpointError` for an unknown data set, and `DataError` where its images have another
    size or its classes another number than the record says.
    """
    name = str(found["clean_data"])
    if name not in NORMALISATION:
        raise CheckpointError(f"{file}: clean_data: {name!r} is not one of {names(NORMALISATION)}")
    mean, std = NORMALISATION[name]
    clean = make_npz(NpzConfig(path=str(data), mean=mean, std=std, crop=CROP, flip=name in FLIPPED))
    try:
        wanted = (*map(int, found["img_size"][:2]), int(found["num_classes"]))
    except DAMAGED as error:
        raise CheckpointError(f"{file}: img_size or num_classes is damaged") from error
    height, width, _ = clean.info.shape
    there = (height, width, clean.info.num_classes)
    if there != wanted:
        raise DataError(
            f"{data}: has images of {height}×{width} in {there[2]} classes, "
            f"{file} is of {'×'.join(map(str, wanted[:2]))} in {wanted[2]}"
        )
    return clean


def _model(file: Path, found: Mapping[str, Any], clean: Dataset) -> tuple[Choice, Model, Variables]:
    """Return the model of a record as a `Choice`, the network and its variables."""
    tensors = tensors_in(found, file, "model")
    seen = recognise(tensors, str(file))
    info = clean.info
    if (seen.channels, seen.classes) != (info.shape[2], info.num_classes):
        raise DataError(
            f"{file}: its model is for {seen.channels} channels and {seen.classes} classes, the "
            f"data set (--data) has {info.shape[2]} and {info.num_classes}"
        )
    config = build(MODELS[seen.name][0], seen.settings, f"{file}: ")
    model = config.build(info)
    variables, _ = from_torch(tensors, seen.name, config, model, str(file))
    return Choice(seen.name, seen.name, config), model, variables


def write_record(record: Record, folder: Path, data: Path) -> None:
    """Write a record as `poison.npz`, `model.safetensors` and `study.yaml` into a new folder.

    `data` is the file of the clean data set. The study takes the reserved images from it.
    """
    choice, info = record.choice, record.clean.info
    folder.mkdir(parents=True)
    write_released(folder / "poison.npz", record.released)
    about = {
        "model": {"name": choice.name, "settings": to_mapping(choice.config)},
        "defense": None,
        "info": asdict(info),
    }
    write_external_model(
        folder / "model.safetensors",
        to_torch(record.variables, choice.name, choice.config),
        (),
        {},
        {ABOUT: json.dumps(about, sort_keys=True)},
    )
    write_text(folder / "study.yaml", study_text(record, folder.resolve(), data.resolve()))


def study_text(record: Record, folder: Path, data: Path) -> str:
    """Return the config of a study of a record, whose files are in `folder`, as YAML.

    The defences are those that a study has by default.
    """
    choice, info = record.choice, record.clean.info
    defaults = {field.name: field.metadata.get("default") for field in fields(StudyConfig)}
    poison = str(folder / "poison.npz")
    recipe = {"mean": list(info.mean), "std": list(info.std), "crop": info.crop, "flip": info.flip}
    config = {
        "dataset": {"name": "npz", "path": poison, **recipe},
        "model": {
            "name": choice.name,
            **to_mapping(choice.config),
            "checkpoint": str(folder / "model.safetensors"),
        },
        "attacks": [{"name": "released", "path": poison}],
        "reserved": {"from": {"name": "npz", "path": str(data)}},
        "defenses": defaults["defenses"],
    }
    return (
        "# Repairs of a model that BackdoorBench saved; the reserved images come from the clean\n"
        f"# data set. Command: python -m d3jax.run --config {folder / 'study.yaml'}\n"
        + yaml.safe_dump(config, sort_keys=False, allow_unicode=True, default_flow_style=None)
    )


def measured(record: Record, batch_size: int = 250) -> tuple[float, float]:
    """Return the ACC and ASR of a record's model on its clean and triggered test images."""
    released = record.released
    predict = functools.partial(_predicted, record.model, record.variables)
    labels, shown = np.asarray(released.test.labels), released.triggered_images
    wanted = np.asarray(released.wanted_labels)[labels[released.triggered_rows]]
    clean = batched_map(predict, np.asarray(released.test.images), batch_size=batch_size)
    return float((clean == labels).mean()), float(
        (batched_map(predict, shown, batch_size=batch_size) == wanted).mean()
    )


@functools.partial(jax.jit, static_argnums=0)
def _predicted(model: Model, variables: Variables, images: Array) -> jax.Array:
    return model.apply(variables, as_float(images), train=False).logits.argmax(-1)


def described(record: Record) -> str:
    """Return lines that say what was read: images, poison and network."""
    released, settings = record.released, to_mapping(record.choice.config)
    trained = f"{len(released.train.labels)} training images, "
    if released.poisoned is None:
        trained += "all clean: the attack released no training set"
    else:
        covers = 0 if released.covers is None else int(released.covers.sum())
        trained += f"{int(released.poisoned.sum())} poisoned, {covers} covers"
    shown = 0 if released.triggered_rows is None else len(released.triggered_rows)
    network = names(f"{key} {value}" for key, value in settings.items())
    return (
        f"{trained}\n{len(released.test.labels)} test images, "
        f"{shown} triggered\nnetwork: {record.choice.name} ({network})"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with the arguments `argv`; return the exit code (see `runtime.commands`)."""
    return exit_code(lambda: _convert(argv))


def _convert(argv: Sequence[str] | None) -> int:
    parser = Parser(
        prog="python -m d3jax.interop.backdoorbench",
        description="Read a saved attack of BackdoorBench: data, model, and a study of both.",
        allow_abbrev=False,
    )
    parser.add_argument("record", metavar="RECORD", help=f"the folder of the attack, with {FILE}")
    parser.add_argument("--data", required=True, metavar="FILE", help="the clean data set, an .npz")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="the folder to make")
    options = parser.parse_args(argv)
    out, data = user_path(options.out, "--out"), user_path(options.data, "--data")
    if out.exists():
        raise ConfigError(f"--out: {out} exists; remove it, or name another folder")
    record = read_record(options.record, data)
    write_record(record, out, data)
    print(described(record), flush=True)
    print("ACC {:.2%}, ASR {:.2%}".format(*measured(record)))
    print(f"python -m d3jax.run --config {out / 'study.yaml'}")
    return 0


if __name__ == "__main__":
    program(main)
