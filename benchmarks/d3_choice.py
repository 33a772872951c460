"""Measure settings of D3 as a defender can: by accuracy on held-out reserved images, and distance.

    python benchmarks/d3_choice.py run CONFIG --out ROWS.jsonl [--settings NAME…] [--seeds 0 …]
    python benchmarks/d3_choice.py choose ROWS.jsonl
    python benchmarks/d3_choice.py reveal ROWS.jsonl

CONFIG is a study whose attacks name victims (victim:wrn/badnets-10/0) or whose model is external.
D3 runs on the first 80 % of the reserved images, in random order. The accuracy on the other 20 % is
the held-out accuracy. `choose` prints it with the cosine of the head to its initial weights, and
names the setting with the largest distance among those whose mean held-out accuracy is within
3 points of fine-tuning's. It reads no test image and no trigger. `reveal` prints ACC, ASR and RA on
the test images beside them. `run` measures them too, but `choose` does not read them. Rows that
ROWS has are not computed again.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from d3jax.config.loading import load
from d3jax.config.recipes import OptimConfig, ScheduleConfig
from d3jax.core.errors import ConfigError, names
from d3jax.core.random import stream
from d3jax.core.types import Repair, Split
from d3jax.defenses import D3Config, FinetuneConfig
from d3jax.metrics.attack_success import predict
from d3jax.runtime import huge_pages
from d3jax.runtime.environment import environment
from d3jax.runtime.progress import Progress
from d3jax.study import REGISTRIES
from d3jax.study.attack_run import AttackRun, evaluator, make_run
from d3jax.study.context import StudyContext, open_context, reserved_split
from d3jax.study.nodes.external_model import stored_trigger
from d3jax.study.registries import ATTACKS

HELD_OUT = 0.2
"""Share of the reserved images that D3 does not see."""
TOLERANCE = 0.03
"""Most held-out accuracy that a chosen setting may lose against fine-tuning."""

SLOW = ScheduleConfig(optimizer=OptimConfig(lr=0.001, weight_decay=0.0))
DIVIDED = D3Config(preset="code", lam=10.0)
ADAPTIVE = D3Config(preset="code", multiplier="adaptive", lam=1.0, hinge="none")
SETTINGS: dict[str, Any] = {
    "finetune": FinetuneConfig(),
    "code": D3Config(preset="code"),
    "paper": D3Config(preset="paper"),
    "paper lr/10": D3Config(preset="paper", schedule=SLOW),
    "λ 2 divided": replace(DIVIDED, lam=2.0),
    "λ 4 divided": D3Config(preset="ours"),
    "λ 10 divided": DIVIDED,
    "λ 30 divided": replace(DIVIDED, lam=30.0),
    "λ 10 divided, near": replace(DIVIDED, start="near"),
    "λ 10 divided, mean": replace(DIVIDED, hinge="mean"),
    "λ 10 divided, ε model": replace(DIVIDED, bound="model"),
    "λ adaptive": ADAPTIVE,
    "λ adaptive, hinge": replace(ADAPTIVE, hinge="mean"),
    "λ adaptive, near": replace(ADAPTIVE, start="near"),
    "λ adaptive, ε model": replace(ADAPTIVE, bound="model"),
    "λ adaptive, ε 0.5": replace(ADAPTIVE, eps=0.5),
}
"""The settings to choose from, by name; fine-tuning is the reference of the held-out accuracy."""


def divide(split: Split, seed: int) -> tuple[Split, Split]:
    """Divide the reserved images at random into those that D3 sees and the held-out ones."""
    order = np.random.default_rng(seed).permutation(len(split.labels))
    cut = round((1 - HELD_OUT) * len(order))
    parts = [Split(*(np.asarray(each)[rows] for each in split)) for rows in np.split(order, [cut])]
    return parts[0], parts[1]


def measure(context: StudyContext, run: AttackRun, name: str, seed: int) -> dict[str, Any]:
    """Repair a victim by one setting; return held-out accuracy, geometry and test rates."""
    assert run.external is not None
    seen, held_out = divide(reserved_split(context, seed), seed)
    repair: Repair = SETTINGS[name].build(context.dataset.info)
    key, began = stream(jax.random.key(seed), "repair"), time.perf_counter()
    found = repair.repair(key, context.model, run.external.variables, seen)
    seconds = time.perf_counter() - began
    predicted = jax.jit(functools.partial(predict, context.model))
    labels = predicted(found.variables, held_out.images)
    counts = run.evaluate(found.variables, stored_trigger(run), context.dataset.test)
    trace = {key: float(values[-1]) for key, values in found.trace.items() if len(values)}
    kept = {key: trace.get(key) for key in ("cosine", "distance_ratio", "clean_loss", "lam")}
    return {
        "setting": name,
        "model": context.config.model.name,
        "net": repr(context.config.model.config),
        "victim": run.label,
        "seed": seed,
        "held_out": float((np.asarray(labels) == held_out.labels).mean()),
        **kept,
        "test": {"acc": counts.acc, "asr": counts.asr, "ra": counts.ra, "moved": counts.moved},
        "seconds": seconds,
        "environment": environment(),
    }


KEY = ("setting", "net", "victim", "seed")


def read(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSONL file; none if it does not exist."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def run_all(options: argparse.Namespace) -> None:
    """Measure every setting on every victim and seed that the output lacks; append each row."""
    huge_pages.start_again()
    config = load(options.config, [("defenses", "[]")], registries=REGISTRIES)
    context = open_context(config, Path(options.out).parent, Progress())
    done = {tuple(row[name] for name in KEY) for row in read(options.out)}
    for seed in options.seeds:
        for choice in config.attacks:
            attack = ATTACKS[choice.name][1](choice.config, context.dataset.info)
            run = make_run(context, choice, attack, evaluator(context, attack), seed)
            for name in options.settings:
                if (name, repr(config.model.config), run.label, seed) in done:
                    continue
                row = measure(context, run, name, seed)
                with options.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print({key: row[key] for key in (*KEY, "held_out", "cosine")}, flush=True)


def mean(rows: Sequence[dict[str, Any]], name: str) -> float:
    """Return the mean of a column, of which `test.asr` is in the column `test`."""
    outer, _, inner = name.rpartition(".")
    found = [row[outer][inner] if outer else row[name] for row in rows]
    return statistics.mean(value for value in found if value is not None)


def table(rows: Sequence[dict[str, Any]], revealed: bool) -> str:
    """Return a Markdown table of every net, victim and setting: means over the seeds."""
    columns = ["held_out", "cosine", *(["test.acc", "test.asr", "test.ra"] if revealed else [])]
    lines = [
        f"| net | victim | setting | runs | {' | '.join(columns)} |",
        "| --- " * (4 + len(columns)) + "|",
    ]
    keys = ("net", "victim", "setting")
    for place in sorted({tuple(row[key] for key in keys[:2]) for row in rows}):
        for name in SETTINGS:
            own = [row for row in rows if tuple(row[key] for key in keys) == (*place, name)]
            if own:
                cells = [_cell(own, column) for column in columns]
                lines.append(f"| {' | '.join(place)} | {name} | {len(own)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(rows: Sequence[dict[str, Any]], column: str) -> str:
    """Return the mean of a column over rows as text: a share in percent, a cosine as it is."""
    if column != "cosine":
        return f"{100 * mean(rows, column):.1f}"
    return "–" if rows[0]["cosine"] is None else f"{mean(rows, column):.2f}"


def places(rows: Sequence[dict[str, Any]], name: str = "") -> set[tuple[str, str]]:
    """Return the pairs (net, victim) of all rows, or of those of one setting."""
    return {(row["net"], row["victim"]) for row in rows if name in ("", row["setting"])}


def choice(rows: Sequence[dict[str, Any]]) -> str:
    """Return the setting with the lowest mean cosine among those that keep the accuracy.

    A setting keeps it if on every net its mean held-out accuracy is at most `TOLERANCE` below that
    of fine-tuning. Only settings that were measured on all victims of all nets are compared.
    """
    nets = dict.fromkeys(row["net"] for row in rows)

    def own(net: str, name: str) -> list[dict[str, Any]]:
        return [row for row in rows if (row["net"], row["setting"]) == (net, name)]

    kept = {}
    for name in dict.fromkeys(row["setting"] for row in rows):
        found = [(mean(own(net, name), "held_out"), net) for net in nets if own(net, name)]
        limits = [mean(own(net, "finetune"), "held_out") - TOLERANCE for net in nets]
        whole = name != "finetune" and places(rows, name) == places(rows)
        if whole and all(acc >= limit for (acc, _), limit in zip(found, limits, strict=True)):
            kept[name] = mean([row for row in rows if row["setting"] == name], "cosine")
    return min(kept, key=lambda name: kept[name]) if kept else "none keeps the accuracy"


def main(argv: Sequence[str] | None = None) -> None:
    """Run, choose or reveal."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("config")
    running.add_argument("--out", type=Path, required=True)
    running.add_argument("--settings", nargs="+", default=list(SETTINGS))
    running.add_argument("--seeds", nargs="+", type=int, default=[0])
    for name in ("choose", "reveal"):
        commands.add_parser(name).add_argument("rows", type=Path)
    options = parser.parse_args(argv)
    if options.command == "run":
        unknown = [name for name in options.settings if name not in SETTINGS]
        if unknown:
            raise ConfigError(f"--settings: {names(unknown)}; the settings are {names(SETTINGS)}")
        run_all(options)
        return
    rows = read(options.rows)
    print(table(rows, revealed=options.command == "reveal"))
    print(f"\nchosen: {choice(rows)}")


if __name__ == "__main__":
    main()
