"""The command that examines a model: `python -m d3jax.examine --model FILE`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from d3jax.core.errors import ConfigError
from d3jax.core.paths import user_path
from d3jax.examine import examine, read_given, write_examination
from d3jax.runtime import huge_pages
from d3jax.runtime.commands import Parser, exit_code, program
from d3jax.runtime.environment import environment
from d3jax.runtime.files import check_writable, make_folder
from d3jax.runtime.progress import Progress


def main(argv: Sequence[str] | None = None) -> int:
    """Run the examine command and return the exit code (see `runtime.commands`)."""
    return exit_code(lambda: _examine(argv))


def _examine(argv: Sequence[str] | None) -> int:
    options, began = parser().parse_args(argv), time.perf_counter()
    out = user_path(options.out, "--out")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out: {out} is a file, want a folder")
    make_folder(out)
    check_writable(out)
    progress = Progress()
    given = read_given(
        options.model,
        options.data,
        options.samples,
        options.inputs,
        size=options.size,
        mean=tuple(options.mean),
        std=tuple(options.std),
        checkpoint_key=options.checkpoint_key,
        ignore=tuple(options.ignore),
    )
    given = given._replace(facts=[*given.facts, ("Run", _run(options.seed))])
    for what, text in given.facts:
        progress.say(f"{what}: {text}")
    checks, conclusions = examine(
        given, seed=options.seed, thorough=options.thorough, progress=progress
    )
    page = write_examination(out, Path(options.model).name, given, checks, conclusions)
    for one in conclusions:
        progress.say(one.text)
    progress.say(f"d3jax: page after {time.perf_counter() - began:.0f} s: {page}")
    return 0


def _run(seed: int) -> str:
    """Return the date, the versions and the seed of an examination as text."""
    found = environment()
    now = time.strftime("%Y-%m-%d %H:%M")
    return (
        f"{now}, d3jax {found['d3jax']} (commit {found['commit']}), jax {found['jax']} on "
        f"{found['device']}, seed {seed}"
    )


def parser() -> Parser:
    """Return the parser of the command line."""
    found = Parser(
        prog="python -m d3jax.examine",
        description="Examine a model, a training set and inputs for backdoors, and write one page.",
    )
    found.add_argument(
        "--model",
        required=True,
        metavar="FILE",
        help="a .safetensors or PyTorch file, or a victim of the shelf such as "
        "victim:wrn/badnets-10/0",
    )
    found.add_argument(
        "--data",
        metavar="CLEAN",
        help="images that are known to be clean, with labels: a folder of one folder for each "
        "class, or an .npz with images and labels (or test_images and test_labels)",
    )
    found.add_argument(
        "--samples",
        metavar="SUSPECTS",
        help="the training set of the model: as --data (an .npz may have train_images and "
        "train_labels)",
    )
    found.add_argument(
        "--inputs",
        metavar="FOLDER",
        help="inputs of the model: a folder of pictures, or an .npz with images",
    )
    found.add_argument(
        "--out", default="examination", metavar="DIR", help="folder of the page (%(default)s)"
    )
    found.add_argument(
        "--thorough",
        action="store_true",
        help="run trigger inversion as long as published, many times as long",
    )
    found.add_argument(
        "--size",
        type=int,
        default=32,
        metavar="PIXELS",
        help="side to which pictures in folders are resized (%(default)s)",
    )
    for name, what in (("mean", "mean"), ("std", "standard deviation")):
        found.add_argument(
            f"--{name}",
            type=float,
            nargs="+",
            default=(),
            metavar="VALUE",
            help=f"{what} of each channel, in [0, 1] (default: the most accurate of the usual)",
        )
    found.add_argument(
        "--checkpoint_key",
        default="",
        metavar="KEY",
        help="the key of the state dict in a PyTorch file with several, such as netC",
    )
    found.add_argument(
        "--ignore",
        nargs="+",
        default=(),
        metavar="GLOB",
        help="globs of tensors in the file to leave out, such as 'fc_aux.*'",
    )
    found.add_argument(
        "--seed", type=int, default=0, help="seed of the checks' draws (%(default)s)"
    )
    return found


if __name__ == "__main__":
    huge_pages.start_again()
    program(main)
