"""Functions that make odd data and model files at random, as inputs of `faults.py`."""

from __future__ import annotations

import copy
import gzip
import io
import os
import pickle
import random
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from odd_configs import BASE, VALUES, Odd, with_config
from PIL import Image


def _study(kind: str, what: str, folder: Path, **sections: Any) -> Odd:
    return with_config(kind, what, folder, {**copy.deepcopy(BASE), **sections})


def _arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "train_images": rng.integers(0, 256, (96, 8, 8, 3), np.uint8),
        "train_labels": np.arange(96) % 3,
        "test_images": rng.integers(0, 256, (30, 8, 8, 3), np.uint8),
        "test_labels": np.arange(30) % 3,
    }


ARRAYS = {
    "labels begin at 1": lambda a: a | {"train_labels": a["train_labels"] + 1},
    "labels below 0": lambda a: a | {"train_labels": a["train_labels"] - 1},
    "a class without images": lambda a: a | {"train_labels": a["train_labels"] * 2},
    "a label of 10¹²": lambda a: a | {"train_labels": a["train_labels"] * 10**12},
    "labels as floats": lambda a: a | {"train_labels": a["train_labels"] / 1},
    "labels as texts": lambda a: a | {"train_labels": a["train_labels"].astype(str)},
    "labels in a column": lambda a: a | {"train_labels": a["train_labels"][:, None]},
    "one-hot labels": lambda a: a | {"train_labels": np.eye(3)[a["train_labels"]]},
    "objects": lambda a: a | {"train_labels": a["train_labels"].astype(object)},
    "one label too few": lambda a: a | {"train_labels": a["train_labels"][1:]},
    "images as floats": lambda a: a | {"train_images": a["train_images"] / 255},
    "NaN": lambda a: a | {"train_images": a["train_images"] * np.nan},
    "images of 0 and 1": lambda a: a | {"train_images": a["train_images"] // 200},
    "all images equal": lambda a: a | {"train_images": a["train_images"] * 0 + 7},
    "no images": lambda a: (
        a | {"train_images": a["train_images"][:0], "train_labels": a["train_labels"][:0]}
    ),
    "channels first": lambda a: a | {"train_images": a["train_images"].transpose(0, 3, 1, 2)},
    "flat images": lambda a: a | {"train_images": a["train_images"].reshape(96, -1)},
    "two channels": lambda a: a | {k: a[k][..., :2] for k in ("train_images", "test_images")},
    "test images of another size": lambda a: a | {"test_images": a["test_images"][:, :4]},
    "test images of the target alone": lambda a: a | {"test_labels": a["test_labels"] * 0},
    "no array test_labels": lambda a: {
        key: value for key, value in a.items() if key != "test_labels"
    },
    "Fortran's order": lambda a: a | {"train_images": np.asfortranarray(a["train_images"])},
    "big-endian labels": lambda a: a | {"train_labels": a["train_labels"].astype(">i4")},
    "complex labels": lambda a: a | {"train_labels": a["train_labels"] + 1j},
    "dates": lambda a: a | {"train_labels": a["train_labels"].astype("datetime64[D]")},
}  # fmt: skip


def odd_arrays(chance: random.Random, folder: Path) -> Odd:
    """Make an .npz whose arrays are not a valid or usual data set."""
    what = chance.choice(sorted(ARRAYS))
    np.savez(folder / "data.npz", **ARRAYS[what](_arrays()))
    return _study("arrays", what, folder, dataset={"name": "npz", "path": str(folder / "data.npz")})


def damaged_npz(chance: random.Random, folder: Path) -> Odd:
    """Make an .npz with damaged bytes, or one whose headers announce 10¹² values an array."""
    path, content = folder / "data.npz", io.BytesIO()
    chance.choice([np.savez, np.savez_compressed])(content, **_arrays())
    what, damaged = damage(chance, content.getvalue())
    path.write_bytes(damaged)
    if chance.random() < 0.15:
        what = "a gigabyte of zeros, compressed"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for key in _arrays():
                header = {"descr": "|u1", "fortran_order": False, "shape": (10**12,)}
                with archive.open(f"{key}.npy", "w") as file:
                    np.lib.format.write_array_header_1_0(file, header)
                    file.write(bytes(10**6))
    return _study("damaged .npz", what, folder, dataset={"name": "npz", "path": str(path)})


def damage(chance: random.Random, content: bytes) -> tuple[str, bytes]:
    """Return a description of a random damage, and the damaged bytes."""
    changed = bytearray(content)
    for _ in range(3):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return chance.choice([
        ("cut off", content[: chance.randrange(1, len(content))]),
        ("three bits flipped", bytes(changed)), ("empty", b""),
        ("noise", chance.randbytes(5000)), ("a web page", b"<!DOCTYPE html><html>Sign in</html>"),
        ("compressed", gzip.compress(content)),
        ("a Git LFS pointer",
         b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"),
        ("more behind the end", content + bytes(100)), ("zeros", bytes(len(content))),
        ("a pickle", pickle.dumps({"a": 1})),
    ])  # fmt: skip


def odd_folder(chance: random.Random, folder: Path) -> Odd:
    """Make a folder of image files with one odd entry or property."""
    root = folder / "images"
    for name in ("cat", "dog", "fox"):
        (root / name).mkdir(parents=True)
        for i in range(24):
            pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    whole = (root / "cat" / "0.png").read_bytes()
    what, damaged = damage(chance, whole)
    cat, size = root / "cat", 8

    def save(mode: str, name: str) -> None:
        Image.new(mode, (9, 5)).save(cat / name)

    changes = {
        f"a picture: {what}": lambda: (cat / "0.png").write_bytes(damaged),
        "a text as .png": lambda: (cat / "x.png").write_text("hello"),
        "a named pipe": lambda: os.mkfifo(cat / "x.png"),
        "a link to nothing": lambda: (cat / "x.png").symlink_to("nope"),
        "a link to itself": lambda: (cat / "x.png").symlink_to("x.png"),
        "a link to its folder": lambda: (root / "loop").symlink_to(root),
        "a folder as .png": lambda: (cat / "x.png").mkdir(),
        "an empty class": lambda: (root / "cow").mkdir(),
        "a file beside the classes": lambda: (root / "list.txt").write_text("a"),
        "a name that is no UTF-8": lambda: os.mkdir(os.fsencode(root) + b"/\xff"),
        "a name with a line break": lambda: (root / "a\nb").mkdir(),
        "a name with HTML": lambda: (root / "cat").rename(root / "<b>cat"),
        "16 bits of grey": lambda: save("I;16", "x.png"),
        "CMYK": lambda: save("CMYK", "x.jpg"),
        "a palette": lambda: save("P", "x.gif"),
        "transparency": lambda: save("LA", "x.png"),
        "floats": lambda: save("F", "x.tiff"),
        "one class": lambda: [os.rename(root / one, folder / one) for one in ("dog", "fox")],
        "train/ alone": lambda: (root / "cat").rename(root / "train"),
        "files of other kinds": lambda: [
            (cat / f"x.{end}").write_bytes(b"1") for end in ("heic", "svg", "webm")
        ],
        "a bomb of 30,000 × 30,000 pixels": lambda: (
            Image.new("1", (30_000, 30_000)).save(cat / "x.png")
        ),
        "no folder": lambda: root.rename(folder / "away"),
        "one image": lambda: [path.unlink() for path in sorted(cat.iterdir())[1:]],
        "digits as names": lambda: [
            (root / one).rename(root / str(i)) for i, one in enumerate(["cat", "dog", "fox"], 9)
        ],
    }  # fmt: skip
    change = chance.choice(sorted(changes))
    changes[change]()
    if chance.random() < 0.1:
        change, size = f"{change}; a giant size", 10**9
    return _study(
        "image folder", change, folder, dataset={"name": "folder", "path": str(root), "size": size}
    )


def odd_pattern(chance: random.Random, folder: Path) -> Odd:
    """Make an image of an odd mode or size, or a damaged one, as the pattern of Blended."""
    content = io.BytesIO()
    mode, side = chance.choice(["RGB", "L", "I;16", "RGBA", "1"]), chance.choice([1, 3, 8, 9, 50])
    Image.new(mode, (side, side)).save(content, "png")
    what, damaged = damage(chance, content.getvalue())
    if chance.random() < 0.5:
        what, damaged = f"{mode}, {side} pixels", content.getvalue()
    path = folder / "pattern.png"
    path.write_bytes(damaged)
    attack = {"name": "blended", "image": str(path)}
    return _study("pattern", what, folder, attacks=[attack])


def _safetensors(header: Any, data: bytes) -> bytes:
    import json

    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def odd_model(chance: random.Random, folder: Path) -> Odd:
    """Make a checkpoint file of an external model that does not fit the configured net."""

    def tensor(shape: list[int], kind: str = "F32", end: int = 0) -> dict[str, Any]:
        return {"dtype": kind, "shape": shape, "data_offsets": [0, end or 4 * int(np.prod(shape))]}

    files = {
        "one tensor": _safetensors({"conv1.weight": tensor([8, 3, 3, 3])}, bytes(864)),
        "no tensors": _safetensors({}, b""),
        "a header that is no JSON": _safetensors(b"{" * 50, b""),
        "a header of 10⁸ depth": _safetensors(b"[" * 10**5, b""),
        "a length of 2⁶³": struct.pack("<Q", 2**63) + b"{}",
        "a tensor of 40 GB": _safetensors({"a": tensor([10**10])}, bytes(8)),
        "offsets that overlap": _safetensors({"a": tensor([2]), "b": tensor([2])}, bytes(8)),
        "negative offsets": _safetensors(
            {"a": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}, bytes(8)
        ),
        "an unknown type": _safetensors({"a": tensor([2], "F99")}, bytes(8)),
        "bfloat16": _safetensors({"a": tensor([4], "BF16", 8)}, bytes(8)),
        "names of HTML": _safetensors({"<script>alert(1)</script>": tensor([2])}, bytes(8)),
        "a name of 5,000 letters": _safetensors({"a" * 5000: tensor([2])}, bytes(8)),
        "terminal codes in a name": _safetensors({"\x1b[31mred\u202e": tensor([2])}, bytes(8)),
        "a pickle that would run": b"\x80\x04cposix\nsystem\n(S'touch /tmp/d3jax-was-here'\ntR.",
        "a pickle of a number": pickle.dumps(3),
        "an array": b"\x93NUMPY" + bytes(100),
        "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(100),
    }  # fmt: skip
    if chance.random() < 0.1:
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as file:
            file.addfile(tarfile.TarInfo("x"))
        files = {"a tar archive": archive.getvalue()}
    what = chance.choice(sorted(files))
    content = files[what]
    if chance.random() < 0.3:
        more, content = damage(chance, content)
        what = f"{what}, {more}"
    path = (
        folder / f"model.{chance.choice(['pt', 'pth', 'safetensors', 'bin', 'ckpt', 'PTH', 'tar'])}"
    )
    path.write_bytes(content)
    net = {
        "name": chance.choice(["preact_resnet18", "wide_resnet"]),
        "checkpoint": str(path),
    }
    return _study("checkpoint", f"{path.suffix}: {what}", folder, model=net, detections=[])


def odd_path(chance: random.Random, folder: Path) -> Odd:
    """Make a config whose data or checkpoint path is malformed, or names another kind of file."""
    strange = [value for value in VALUES if isinstance(value, str)]
    path = chance.choice(
        [
            *strange,
            "/dev/zero",
            "/dev/null",
            "/proc/self/mem",
            "/",
            str(folder),
            "/root/\u00e9" * 50,
        ]
    )
    if chance.random() < 0.5:
        dataset = {"name": chance.choice(["npz", "folder"]), "path": path}
        return _study("path", f"dataset.path: {path!r:.40}", folder, dataset=dataset)
    model = {"name": "preact_resnet18", "checkpoint": path}
    return _study("path", f"model.checkpoint: {path!r:.40}", folder, model=model, detections=[])


FILES = [odd_arrays, damaged_npz, odd_folder, odd_pattern, odd_model, odd_path]
"""Makers of odd files, each a function `maker(chance, folder) -> Odd`."""
