"""The command that runs a study: `python -m d3jax.run --config FILE [--section.key VALUE …]`.

For a first study, FILE is experiments/quickstart.yaml.
"""

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
from d3jax.core.errors import ConfigError, did_you_mean, names
from d3jax.core.paths import user_path
from d3jax.runtime import huge_pages
from d3jax.runtime.commands import Parser, exit_code, program
from d3jax.runtime.files import check_writable

ENTRY = (
    ("label", "null", "name in the results (null: its name and preset)"),
    (
        "sweep",
        "null",
        (
            "{setting: [values], …}: one entry for each combination, such as "
            "{schedule.optimizer.lr: [0.003, 0.01]}"
        ),
    ),
)
"""Keys of every entry of attacks, detections, evolutions and defenses besides its settings.

A row is (key, default, help text), as in `describe`.
"""

READ = (
    (
        "checkpoint",
        "null",
        (
            "an external model to use instead of training one: the folder of a checkpoint, a "
            ".safetensors file, a PyTorch file of any name, or a victim of the shelf such as "
            "victim:wrn/badnets-10/0"
        ),
    ),
    (
        "checkpoint_key",
        "null",
        "the key of the state dict in a PyTorch file with several, such as netC",
    ),
    ("ignore", "[]", "globs of tensors in the file to leave out, such as [fc_aux.*]"),
)
"""Keys of every model besides its settings, as rows (key, default, help text)."""

READ_BY_ATTACK = (
    (
        "checkpoint",
        "null",
        (
            "the external model of this attack, in place of that of `model`; in place of `name`, "
            "victim:wrn/badnets-10/0 reads a victim of the shelf with its attack"
        ),
    ),
)
"""Keys of every attack besides its settings and those of `ENTRY`."""

KEYS = {"datasets": (), "models": READ, "attacks": (*ENTRY, *READ_BY_ATTACK)}
"""Keys besides the settings by registry; those of `ENTRY` for all other registries."""

OPTIONS = ("config", "workdir", "part", "report", "distributed", "profile", "list", "check", "help")
"""The options of the command line, which are no settings of a study."""

USAGE = "python -m d3jax.run --config FILE [--workdir DIR] [--section.key VALUE …]"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one study from the command line `argv` and return the exit code."""
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
            "d3jax: stopped, perhaps because another process did; "
            "run all of them again to continue",
            file=sys.stderr,
        )
        _leave(1)
    return _leave(code) if code == 130 and _several(options) else code


def _several(options: Sequence[argparse.Namespace]) -> bool:
    """Return whether --distributed was given, so that this is one of several processes."""
    return any(one.distributed is not None for one in options)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m d3jax.run",
        usage=USAGE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        description="Run a study: train backdoored models, apply defences and write a report. "
        "A rerun continues where the last run stopped.",
        epilog=_settings(),
    )
    parser.add_argument("--config", metavar="FILE", help="the study, in YAML (see experiments/)")
    parser.add_argument(
        "--workdir", metavar="DIR", help="the run folder (default: runs/<name of the config file>)"
    )
    parser.add_argument(
        "--part",
        metavar="I/N",
        help="run the I-th of N shares of the study's models and detections, for array jobs, "
        "without a report",
    )
    parser.add_argument(
        "--report",
        action="store_true",
        help="compute nothing, and make tables and report from the finished results",
    )
    parser.add_argument(
        "--distributed",
        metavar="WHERE",
        help="run as one of several processes: auto (TPU pod, SLURM) or HOST:PORT,COUNT,INDEX",
    )
    parser.add_argument(
        "--profile",
        metavar="DIR",
        help="write a profiler trace of each train loop's second logged period to DIR",
    )
    parser.add_argument(
        "--list",
        nargs="?",
        const="",
        metavar="NAME",
        help="list every data set, model, attack, detection, evolution and defence with its "
        "settings, or those called NAME, and stop",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="check the config and the data, print the full config and stop",
    )
    return parser


def _leave(code: int) -> typing.NoReturn:
    """End this process of a multi-process study at once, without waiting for the others.

    A regular exit would wait for the other processes, which wait for this one.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _run(options: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    """Do what the parsed command line of `d3jax.run` asks for, and return the exit code."""
    if not options.config and options.list is None:
        raise ConfigError(f"no --config given; usage: {USAGE}")
    from d3jax.runtime.distributed import bring_up, check_place
    from d3jax.study import run as study  # imports jax, so only for a valid command line

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
    if several and not options.check:  # a check needs no other processes
        bring_up(options.distributed)
    if options.workdir == "":
        raise ConfigError("--workdir: want a folder, got ''")
    workdir = options.workdir or Path("runs") / user_path(options.config).stem
    if options.report and not user_path(workdir, "--workdir").is_dir():
        raise ConfigError(f"--report: {workdir} is no folder: nothing was computed there")
    if options.check:
        count, done = study.check_study(config, workdir, options.profile or "")
        print(
            f"{dumps(config)}# nothing wrong found; {done} of {count} models and detections are "
            "finished"
        )
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
    """Print all attacks, defences, models, … with settings, or those of one name or registry.

    Raises `ConfigError` if no component or registry is called `wanted`.
    """
    every = sorted({name for entries in registries.values() for name in entries} | set(registries))
    if wanted and wanted not in every:
        raise ConfigError(
            f"--list: no component is called {wanted!r}; the choices are {names(every)}"
            f"{did_you_mean(wanted, every)}"
        )
    for registry, entries in registries.items():
        shown = {name: cls for name, cls in entries.items() if wanted in ("", name, registry)}
        if shown and (also := KEYS.get(registry, ENTRY)):
            print(f"{registry}: each also takes\n{_table(also, '    ', '')}")
        for name, cls in shown.items():
            print(f"{registry}: {name}\n" + _table(describe(cls), "    ", ""))


def _part(text: str | None) -> tuple[int, int] | None:
    """Parse the option --part: return "3/8" as (3, 8), and None as None.

    Raises `ConfigError` for anything else.
    """
    if text is None:
        return None
    match = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", text)
    if not match or int(match[1]) > int(match[2]):
        raise ConfigError(f"--part: want I/N with I from 1 to N, such as 3/8, got {text!r}")
    return int(match[1]), int(match[2])


def _overrides(words: Sequence[str]) -> list[tuple[str, str]]:
    """Parse command-line overrides such as `--a.b value` and `--a.b=value` to pairs (key, value).

    Raises `ConfigError` for anything else.
    """
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
        if key in dict(pairs):
            raise ConfigError(f"--{key} is given twice")
        pairs.append((key, value))
    known = {name.split(".")[0] for name, _, _ in describe(StudyConfig)}
    for key, _ in pairs:
        hint = "" if key.split(".")[0] in known else did_you_mean(key, OPTIONS)
        if hint:
            raise ConfigError(f"--{key} is no option and no setting{hint}")
    return pairs


def _cache_compilations() -> None:
    """Let JAX keep compiled programs on disk, so that a rerun need not compile them again."""
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
    # Small programs are cached too: a study has 150 of them, which take 7 s together.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _settings() -> str:
    """Return the help text of all settings of a study."""
    return (
        "settings with dotted keys and their defaults (--list shows those of every component):\n"
        + _table(describe(StudyConfig), "  ")
    )


def _table(rows: Sequence[tuple[str, str, str]], indent: str, flag: str = "--") -> str:
    """Return rows (key, default, help text) of settings as indented lines, as flags or plain."""
    lines = (f"{indent}{flag}{key} {default}\n{indent}      {doc}" for key, default, doc in rows)
    return "\n".join(lines) + "\n"


def command() -> typing.NoReturn:
    """Run a study as the whole program: the entry of `d3jax` and `python -m d3jax.run`."""
    huge_pages.start_again()
    program(main)


if __name__ == "__main__":
    command()
