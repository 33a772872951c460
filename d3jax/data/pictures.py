"""Pictures from files: one reader for everything that takes one, with the same rules everywhere."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from ..core.errors import DataError

SUFFIXES = frozenset(
    [
        ".png",
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".bmp",
        ".gif",
        ".webp",
        ".avif",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".tif",
        ".tiff",
        ".jp2",
    ]
)
"""Endings of the files that are read as pictures, in lower case."""


def read_picture(path: Path, height: int, width: int, channels: int) -> UInt8[np.ndarray, "h w c"]:
    """Return a picture [height, width, channels] uint8; `channels` is 1 (grey) or 3 (RGB).

    It is turned as its EXIF orientation says, loses an alpha channel, and is resized bilinearly. Of
    an animation it is the first frame. Raises `DataError` where the file is no picture, or has more
    than 8 bits a channel, which a conversion would clip to white.
    """
    from PIL import Image, ImageOps

    try:
        if not path.is_file():
            raise OSError("no such file" if not path.exists() else "it is no regular file")
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                if image.mode[0] in "IF":
                    raise ValueError(f"it has mode {image.mode}, want 8 bits a channel")
                plain = ImageOps.exif_transpose(image).convert("L" if channels == 1 else "RGB")
                pixels = np.asarray(plain.resize((width, height), Image.Resampling.BILINEAR))
    # Pillow says SyntaxError for a broken PNG.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Warning) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise DataError(f"{path}: not a readable image: {reason}") from error
    return pixels.reshape(height, width, channels)
