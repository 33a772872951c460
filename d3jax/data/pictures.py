"""The reader of picture files (PNG, JPEG and others) that all data sets and attacks use."""

from __future__ import annotations

import io
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
"""Name endings of the files that are read as pictures, in lower case."""


def read_picture(path: Path, height: int, width: int, channels: int) -> UInt8[np.ndarray, "h w c"]:
    """Read a picture file as uint8 [height, width, channels]; see `decode_picture`."""
    if not path.is_file():
        reason = "no such file" if not path.exists() else "it is no regular file"
        raise DataError(f"{path}: not a readable image: {reason}")
    return decode_picture(path, str(path), height, width, channels)


def read_overlay(
    path: Path, height: int, width: int, channels: int
) -> tuple[UInt8[np.ndarray, "h w c"], UInt8[np.ndarray, "h w 1"]]:
    """Read a picture file and its opacity, both uint8, resized; see `decode_picture`.

    The opacity is the alpha channel: 255 is opaque. A picture without one is opaque.
    """
    from PIL import Image

    pixels = read_picture(path, height, width, channels)
    with Image.open(path) as image:
        plain = image.convert("RGBA").getchannel("A")
        alpha = np.asarray(plain.resize((width, height), Image.Resampling.BILINEAR))
    return pixels, alpha.reshape(height, width, 1)


def decode_picture(
    source: Path | io.BytesIO,
    name: str,
    height: int,
    width: int,
    channels: int,
    exact: bool = False,
) -> UInt8[np.ndarray, "h w c"]:
    """Decode a picture as uint8 [height, width, channels], resized bilinearly.

    `channels` is 1 (grey) or 3 (RGB). The picture is rotated as its EXIF orientation says, and an
    alpha channel is dropped. Of an animation, the first frame is read. Raises `DataError`, which
    names the picture `name`, where it cannot be decoded; where it has more than 8 bits a channel,
    because a conversion would clip it to white; and with `exact` where it has another size.
    """
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(source) as image:
                if image.mode[0] in "IF":
                    raise ValueError(f"it has mode {image.mode}, want 8 bits a channel")
                plain = ImageOps.exif_transpose(image).convert("L" if channels == 1 else "RGB")
                if exact and plain.size != (width, height):
                    raise ValueError(
                        f"it is {plain.height}×{plain.width}, the others are {height}×{width}; "
                        "`size` resizes all"
                    )
                pixels = np.asarray(plain.resize((width, height), Image.Resampling.BILINEAR))
    # Pillow raises SyntaxError for a broken PNG.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Warning) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise DataError(f"{name}: not a readable image: {reason}") from error
    return pixels.reshape(height, width, channels)
