"""The command line: `python -m d3jax.run --config experiments/quickstart.yaml [--section.key value …]`."""

from __future__ import annotations

import argparse
import os
import re
import sys
import traceback
import typing
from collections.abc import Sequence
from pathlib import Path

from d3jax.config.loading import Registries, describe, dumps, load
from d3jax.config.study import StudyConfig
from d3jax.core.errors import ConfigError, names
from d3jax.core.paths import user_path
from d3jax.runtime import huge_pages
from d3jax.runtime.commands import Parser, exit_code, program
from d3jax.runtime.files import check_writable

ENTRY = (
    ("label", "null", "its name in the results (null: its own name, and its preset)"),
    (
        "sweep",
        "null",
        "{setting: [values], …}: an entry for each combination, such as {schedule.optimizer.lr: [0.003, 0.01]}",
    ),
)
"""What every entry of the lists (attacks, detections, evolutions, defenses) takes besides its settings, as `describe` has them."""

READ = (
    (
        "checkpoint",
        "null",
        "a trained one instead of training one: a checkpoint's folder, a .safetensors or a PyTorch file, whatever its name",
    ),
    (
        "checkpoint_key",
        "null",
        "which state dict of a PyTorch file, where it has several, such as netC",
    ),
    ("ignore", "[]", "globs of the names of tensors to leave out, such as [fc_aux.*]"),
)
"""What every model takes besides its settings."""

USAGE = "python -m d3jax.run --config FILE [--workdir DIR] [--section.key VALUE …]"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one study; returns the exit code (see `runtime.commands`)."""
    options: list[argparse.Namespace] = []

    def work() -> int:
        known, rest = _parser().parse_known_args(argv)
        options.append(known)
        return _run(known, _overrides(rest))

    try:
        code = exit_code(work)
    except Exception:
        if not _several(options):
            raise
        traceback.print_exc()
        print(
            "d3jax: stopped, perhaps as another process did; run all of them again to continue",
            file=sys.stderr,
        )
        _leave(1)
    return _leave(code) if code == 130 and _several(options) else code


def _several(options: Sequence[argparse.Namespace]) -> bool:
    return any(one.distributed is not None for one in options)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m d3jax.run", usage=USAGE, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
        description="Plants a backdoor, repairs the model, reports. A rerun continues where the last one stopped.", epilog=_settings(),
    )  # fmt: skip
    parser.add_argument("--config", metavar="FILE", help="the study, in YAML (see experiments/)")
    parser.add_argument(
        "--workdir", metavar="DIR", help="the run folder (default: runs/<name of the config file>)"
    )
    parser.add_argument(
        "--part",
        metavar="I/N",
        help="run the I-th of N shares of the study's models and detections (array jobs); no report",
    )
    parser.add_argument(
        "--report",
        action="store_true",
        help="compute nothing: gather what is finished into tables and report",
    )
    parser.add_argument(
        "--distributed",
        metavar="WHERE",
        help="one of several processes: auto (TPU pod, SLURM) or HOST:PORT,COUNT,INDEX",
    )
    parser.add_argument(
        "--profile", metavar="DIR", help="write a trace of each loop's second logged period there"
    )
    parser.add_argument(
        "--list",
        nargs="?",
        const="",
        metavar="NAME",
        help="every data set, model, attack, detection, evolution and defence with its settings, or those of one name",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="read config and data, print the config in full and stop",
    )
    return parser


def _leave(code: int) -> typing.NoReturn:
    """Ends one of several processes at once: a regular end would wait for the others, which wait for this one."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _run(options: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    if not options.config and options.list is None:
        raise ConfigError(f"no --config given; usage: {USAGE}")
    from d3jax.runtime.distributed import bring_up, check_place
    from d3jax.study import run as study  # imports jax: after the command line has been understood

    if options.list is not None:
        _list(study.REGISTRIES, options.list)
        return 0
    part = _part(options.part)
    if part and options.report:
        raise ConfigError("--report gathers all parts: leave --part out")
    several = options.distributed is not None
    if several:
        check_place(options.distributed)
    config = load(options.config, overrides, registries=study.REGISTRIES)
    if several and not options.check:  # a check needs no others, and mistakes are said without them
        bring_up(options.distributed)
    workdir = options.workdir or Path("runs") / user_path(options.config).stem
    if options.check:
        count = study.check_study(config, workdir, options.profile or "")
        print(f"{dumps(config)}# nothing wrong found; {count} models and detections")
        return 0
    _cache_compilations()
    rows = study.run_study(
        config,
        workdir,
        part=part,
        compute=not options.report,
        profile=options.profile or "",
    )
    return 0 if all(row["status"] == "ok" for row in rows) else 1


def _list(registries: Registries, wanted: str) -> None:
    """Prints every component, or those of one name or registry. Raises `ConfigError` where there is none."""
    every = sorted({name for entries in registries.values() for name in entries} | set(registries))
    if wanted and wanted not in every:
        raise ConfigError(
            f"--list: no component is called {wanted!r}; the choices are {names(every)}"
        )
    for registry, entries in registries.items():
        shown = {name: cls for name, cls in entries.items() if wanted in ("", name, registry)}
        if shown and (also := {"datasets": (), "models": READ}.get(registry, ENTRY)):
            print(f"{registry}: each also takes\n{_table(also, '    ')}")
        for name, cls in shown.items():
            print(f"{registry}: {name}\n" + _table(describe(cls), "    "))


def _part(text: str | None) -> tuple[int, int] | None:
    """`3/8` as (3, 8). Raises `ConfigError` for anything else."""
    if text is None:
        return None
    match = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", text)
    if not match or int(match[1]) > int(match[2]):
        raise ConfigError(f"--part: want I/N with I from 1 to N, such as 3/8, got {text!r}")
    return int(match[1]), int(match[2])


def _overrides(words: Sequence[str]) -> list[tuple[str, str]]:
    """`--a.b value` and `--a.b=value` as (key, value) pairs. Raises `ConfigError` for anything else."""
    pairs, queue = [], list(words)
    while queue:
        word = queue.pop(0)
        key, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not key:
            raise ConfigError(f"{word!r} is not a setting; usage: {USAGE}")
        if not equals:
            if not queue:
                raise ConfigError(f"{word} has no value; usage: {USAGE}")
            value = queue.pop(0)
        pairs.append((key, value))
    return pairs


def _cache_compilations() -> None:
    """Keeps compiled programs between runs, so that a rerun starts at once."""
    import jax

    home = user_path(os.environ.get("D3JAX_CACHE") or "~/.cache/d3jax", "D3JAX_CACHE")
    try:
        (home / "compiled").mkdir(parents=True, exist_ok=True)
        check_writable(home / "compiled")
    except OSError as error:
        print(
            f"d3jax: {home} cannot be written ({error.strerror}): compiled programs are not kept; "
            "D3JAX_CACHE names another folder",
            file=sys.stderr,
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(home / "compiled"))
    jax.config.update(
        "jax_persistent_cache_min_compile_time_secs", 0.0
    )  # a study has 150 small ones, 7 s together


def _settings() -> str:
    return (
        "settings (dotted, with their defaults; --list shows those of every component):\n"
        + _table(describe(StudyConfig), "  ")
    )


def _table(rows: Sequence[tuple[str, str, str]], indent: str) -> str:
    return (
        "\n".join(f"{indent}--{key} {default}\n{indent}      {doc}" for key, default, doc in rows)
        + "\n"
    )


def command() -> typing.NoReturn:
    """Run as the whole program, as `d3jax` and `python -m d3jax.run` start it."""
    huge_pages.start_again()
    program(main)


if __name__ == "__main__":
    command()
