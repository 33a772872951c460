"""The command that makes an .npz of a data set: `python -m d3jax.data cifar10 --out cifar.npz`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from d3jax.core.errors import ConfigError
from d3jax.core.paths import user_path
from d3jax.data.arrays import NPZ_KEYS, check_split, write_npz
from d3jax.data.published import (
    PUBLISHED,
    altered,
    config_line,
    download,
    local_files,
    read_published,
)
from d3jax.runtime.commands import Parser, exit_code, program
from d3jax.runtime.files import check_writable


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command `python -m d3jax.data` with the arguments `argv`; return the exit code."""
    return exit_code(lambda: _make(argv))


def _make(argv: Sequence[str] | None) -> int:
    options = _parser().parse_args(argv)
    published = PUBLISHED[options.name]
    if options.size and not published.size:
        raise ConfigError(f"--size: the images of {options.name} have one size already")
    out = user_path(options.out, "--out")
    if out.suffix != ".npz":
        raise ConfigError(f"--out: want a file that ends in .npz, got {options.out!r}")
    if out.exists():
        raise ConfigError(f"--out: {out} exists; remove it, or name another file")
    out.parent.mkdir(parents=True, exist_ok=True)
    check_writable(out.parent)
    if options.source:
        files = local_files(options.name, user_path(options.source, "--from"))
        for name in altered(options.name, files):
            _say(f"{files[name]}: not the published checksum of {name}; used as it is")
    else:
        home = user_path(os.environ.get("D3JAX_CACHE") or "~/.cache/d3jax", "D3JAX_CACHE")
        files = download(options.name, home / "downloads", _say)
    arrays = read_published(options.name, files, options.size)
    for part in ("train", "test"):
        images, labels = (arrays[f"{part}_{what}"] for what in ("images", "labels"))
        check_split(str(out), part, images, labels, len(arrays["class_names"]))
    write_npz(out, arrays)
    shape = "×".join(map(str, arrays["train_images"].shape[1:]))
    counts = [len(arrays[key]) for key in NPZ_KEYS[1::2]]
    print(f"{out}: {counts[0]} training and {counts[1]} test images of {shape}")
    print(config_line(options.name, str(out)))
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="python -m d3jax.data",
        description="Make an .npz of a published data set, and print the YAML line that reads it.",
        allow_abbrev=False,
    )
    parser.add_argument("name", choices=list(PUBLISHED), help="the data set")
    parser.add_argument("--out", required=True, metavar="FILE", help="the .npz to write")
    parser.add_argument(
        "--from",
        dest="source",
        metavar="PATH",
        help="its archive, or the folder that holds its archives (default: download them)",
    )
    parser.add_argument(
        "--size",
        type=int,
        default=0,
        metavar="PIXELS",
        help="the side of the images of gtsrb (default 32) and tiny_imagenet (default 64)",
    )
    return parser


def _say(text: str) -> None:
    print(f"d3jax: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    program(main)
