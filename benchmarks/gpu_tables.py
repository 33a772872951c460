"""The tables of the GPU benchmark: one attack of an experiment at full size.

A piece is one study: a defence with all seeds where these share a backdoored model, else a defence
with one seed. The first of them also has the rows of the backdoored model. Studies of one `--work`
folder share their backdoored models.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from gpu_pieces import Part, Result

from d3jax.config.loading import load
from d3jax.config.study import StudyConfig
from d3jax.study import run as study

EXPERIMENTS = Path(__file__).parents[1] / "experiments"


def table(study_of: str, attack: str) -> Part:
    """Return the part that runs one attack of the experiment `study_of`; its result has the rows.

    `cifar10_d3` trains at full width for 100 epochs, then applies FT and both D3 presets.
    `dlp_cifar10_full` has the same training, ABL with BackdoorBench's settings, and DLP. Both have
    three seeds. `abl_cifar10` runs ABL with its authors' settings on their net.
    """
    given = (study_of, attack)
    return Part(functools.partial(pieces, *given), functools.partial(measure, *given))


def config_of(study_of: str, attack: str, options: argparse.Namespace) -> StudyConfig:
    """Return the config of one attack of an experiment."""
    settings = [("dataset.path", str(options.data))]
    settings += [tuple(word.split("=", 1)) for word in options.set]
    config = load(EXPERIMENTS / f"{study_of}.yaml", settings, registries=study.REGISTRIES)
    only = tuple(choice for choice in config.attacks if choice.label == attack)
    mine = {name: text for name, text in config.published.items() if name.startswith(f"{attack}/")}
    cache = config.cache or str(options.work / "models")
    return dataclasses.replace(config, attacks=only, published=mine, cache=cache)


def pieces(study_of: str, attack: str, options: argparse.Namespace) -> list[str]:
    """Return the names of a table's pieces, `<defence>` or `<defence>/seed<n>`.

    The last defence of an experiment comes first, because it is the one that the experiment is
    about. Without defences the only one is `none`.
    """
    config = config_of(study_of, attack, options)
    labels = [choice.label for choice in reversed(config.defenses)] or ["none"]
    if config.attack_seed is not None:
        return labels
    return [f"{label}/seed{seed}" for seed in config.seeds for label in labels]


def measure(
    study_of: str, attack: str, options: argparse.Namespace, pieces: Iterable[str], kept: Result
) -> Iterator[tuple[str, Result]]:
    """Run the study of each piece, and yield the rows of the table so far, with their seconds."""
    config, folder = config_of(study_of, attack, options), options.work / study_of / attack
    for piece in pieces:
        began = time.perf_counter()
        # A part of a study makes no report page, which nobody would see here.
        found = study.run_study(of_piece(config, piece), folder, part=(1, 1))
        if bad := [f"{row['defense']}: {row['status']}" for row in found if row["status"] != "ok"]:
            raise SystemExit("\n".join(bad))
        seconds = kept.get("seconds", 0.0) + time.perf_counter() - began
        kept = kept | {"seconds": seconds, "rows": merged(config, kept.get("rows", []), found)}
        yield piece, kept


def of_piece(config: StudyConfig, piece: str) -> StudyConfig:
    """Return the config of one piece of a table."""
    label, _, seed = piece.partition("/seed")
    defenses = tuple(choice for choice in config.defenses if choice.label == label)
    seeds = (int(seed),) if seed else config.seeds
    rows = {f"{choice.label}/{row}" for choice in config.attacks for row in ("none", label)}
    mine = {row: text for row, text in config.published.items() if row in rows}
    return dataclasses.replace(config, defenses=defenses, seeds=seeds, published=mine)


def merged(
    config: StudyConfig, kept: list[dict[str, Any]], found: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return all rows of a table in the order of its experiment.

    A kept row stays: a backdoored model that a later machine trained again differs by rounding.
    """
    labels = ["none", *(choice.label for choice in config.defenses)]
    rows = {(row["seed"], row["defense"]): row for row in [*found, *kept]}
    return sorted(
        rows.values(),
        key=lambda row: (config.seeds.index(row["seed"]), labels.index(row["defense"])),
    )
