"""Detection of a model file's kind by its content, not by its name."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Literal

from ..core.errors import CheckpointError

Kind = Literal["safetensors", "zip", "pickle"]
"""The kinds of files that hold a model.

"safetensors" is a `.safetensors`, "zip" is PyTorch's archive, and "pickle" is PyTorch's file from
before 1.6.
"""

OTHERS = (
    (
        0,
        b"version https://git-lfs",
        "is a Git LFS pointer and not the model: fetch it with `git lfs pull`",
    ),
    (0, b"\x1f\x8b", "is compressed by gzip: unpack it first"),
    (0, b"BZh", "is compressed by bzip2: unpack it first"),
    (0, b"\xfd7zXZ", "is compressed by xz: unpack it first"),
    (0, b"7z\xbc\xaf", "is a 7z archive: unpack it first"),
    (0, b"Rar!", "is a RAR archive: unpack it first"),
    (0, b"\x89HDF", "is an HDF5 file, as Keras writes: save the tensors as .safetensors"),
    (0, b"\x93NUMPY", "is a NumPy array, not a model's tensors by name"),
    (257, b"ustar", "is a tar archive: unpack it first"),
)
"""Files that hold no model: where they have which bytes, and the end of the error message."""
MOST_HEADER = 100 * 2**20
"""Most bytes that the header of a `.safetensors` may have, which is the format's own limit."""


def kind_of(path: Path) -> Kind:
    """Return "safetensors", "zip" or "pickle": the kind of a model file by its first bytes.

    Raises `CheckpointError` where the file is of no kind that holds a model, or cannot be read.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    if not start:
        raise CheckpointError(f"{path}: is empty")
    if start.startswith(b"PK\x03\x04"):
        return "zip"
    if start.startswith(b"\x80"):
        return "pickle"
    header = int.from_bytes(start[:8], "little")
    if start[8:9] == b"{" and header <= min(MOST_HEADER, max(size - 8, 0)):
        return "safetensors"
    if start[:200].lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError(
            f"{path}: is a web page and not the model; "
            "a download that needs a login gives such a file"
        )
    for at, mark, words in OTHERS:
        if start[at:].startswith(mark):
            raise CheckpointError(f"{path}: {words}")
    if start[8:9] == b"{":
        raise CheckpointError(f"{path}: cannot be read as safetensors (it is cut off)")
    raise CheckpointError(
        f"{path}: begins with {start[:8]!r}, as no model does; want a .safetensors, PyTorch's "
        "archive (PK) or a pickle of PyTorch"
    )


def check_archive(path: Path) -> None:
    """Raise `CheckpointError` if a PyTorch zip archive is damaged or expands beyond its size.

    PyTorch writes checksums but does not read them. It never compresses, so an archive that expands
    to more than its size is not PyTorch's.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            expanded = sum(member.file_size for member in members)
            if expanded > path.stat().st_size:
                raise CheckpointError(
                    f"{path}: expands to {expanded / 2**30:.2g} GiB; "
                    "PyTorch does not compress, so it did not write this file"
                )
            if not any(member.filename.endswith("data.pkl") for member in members):
                shown = ", ".join(member.filename for member in members[:4])
                raise CheckpointError(f"{path}: is a zip archive without a model; it holds {shown}")
            broken = archive.testzip()
    except CheckpointError:
        raise
    except Exception as error:  # a damaged archive makes the reader raise almost anything
        raise CheckpointError(
            f"{path}: cannot be read as a PyTorch file ({' '.join(str(error).split())[:160]})"
        ) from error
    if broken:
        raise CheckpointError(
            f"{path}: is damaged: the checksum of {broken} does not match its content"
        )
