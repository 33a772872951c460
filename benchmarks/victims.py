"""Train victims for the shelf, and print the table of the shelf.

    python benchmarks/victims.py train ADDRESS… --data cifar10.npz [--work FOLDER]
    python benchmarks/victims.py table

An ADDRESS such as wrn/badnets-10/0 names the experiment (experiments/victims_wrn_cifar10.yaml), the
label of an attack there, and the seed. A trained victim is exported to
benchmarks/victims/ADDRESS.safetensors. Its rates are written to ADDRESS.json there. A victim that
is on the shelf already is left alone. An attack that finds its trigger on a clean model takes the
clean victim of the same seed from the shelf. FOLDER keeps the run folders, so that a training that
was cut off goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from d3jax.config.loading import load
from d3jax.config.stored_model import shelf
from d3jax.config.study import StudyConfig
from d3jax.core.errors import ConfigError, names
from d3jax.core.records import Row
from d3jax.export import export
from d3jax.interop.external_model import read_external_model
from d3jax.runtime import checkpoint, huge_pages
from d3jax.runtime.progress import Progress
from d3jax.study import REGISTRIES, run_study
from d3jax.study.context import open_context
from d3jax.study.graph import make_nodes
from d3jax.study.node_checkpoint import save_finished
from d3jax.study.nodes.base import Inputs
from d3jax.study.nodes.victim import Victim, VictimNode

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
WORKS = 0.9
"""The lowest ASR of a backdoor that works; methods are not ranked on a weaker one."""
COLUMNS = ("acc", "asr", "ra", "poison_rate", "seconds", "device", "commit", "net", "published")


def study_of(address: str, data: str) -> StudyConfig:
    """Return the study that trains one victim; raise `ConfigError` if there is none."""
    name, _, rest = address.partition("/")
    label, _, seed = rest.rpartition("/")
    path = EXPERIMENTS / f"victims_{name}_cifar10.yaml"
    if not path.is_file() or not seed.isdecimal():
        raise ConfigError(f"{address}: want NET/ATTACK/SEED, such as wrn/badnets-10/0")
    config = load(path, [("dataset.path", data)], registries=REGISTRIES)
    chosen = tuple(attack for attack in config.attacks if attack.label == label)
    if not chosen:
        known = names(attack.label for attack in config.attacks)
        raise ConfigError(f"{address}: {path.name} has no attack {label!r}; it has {known}")
    return dataclasses.replace(config, attacks=chosen, seeds=(int(seed),))


def restore_clean(config: StudyConfig, address: str, work: Path) -> None:
    """Put the clean victim of the shelf where the attack of a study expects its clean model."""
    path = shelf() / address.split("/")[0] / "clean" / f"{config.seeds[0]}.safetensors"
    context = open_context(config, work, Progress(quiet=True))
    known: list[VictimNode] = [
        surrogate
        for node in make_nodes(context)
        if isinstance(node, VictimNode) and node.prepared
        for surrogate in node.prepared.needs.values()
        if isinstance(surrogate, VictimNode)
    ]
    for node in known:
        if not path.exists():
            raise ConfigError(f"{address}: needs the clean victim {path}; train it first")
        if not checkpoint.exists(node.folder / "model"):
            choice = dataclasses.replace(config.model, checkpoint=str(path))
            external = read_external_model(choice, context.model)
            save_finished(node, Inputs(), Victim(external.variables, {}), [], 1, 0.0)


def train(address: str, data: str, work: Path) -> None:
    """Train one victim and put it on the shelf, with its rates in a JSON file."""
    out = shelf() / f"{address}.safetensors"
    if out.exists():
        print(f"{address}: on the shelf")
        return
    folder = work / address.replace("/", "-")
    config = dataclasses.replace(study_of(address, data), cache=str(work / "cache"))
    restore_clean(config, address, folder)
    (row,) = run_study(config, folder)
    if row["status"] != "ok":
        raise SystemExit(f"{address}: {row['status']}")
    (attack,), (seed,) = config.attacks, config.seeds
    export(folder / "config.yaml", f"{attack.label}/seed{seed}/train", out)
    made = {
        "address": address,
        "epochs": config.train.epochs,
        "precision": config.precision,
        "model": config.model.name,
    }
    row = made | {name: row[name] for name in COLUMNS}
    out.with_suffix(".json").write_text(json.dumps(row, indent=1) + "\n", encoding="utf8")


def rows_of_shelf() -> list[Row]:
    """Return the rates and origin of each victim of the shelf, by address."""
    files = sorted(shelf().rglob("*.json"))
    return [json.loads(path.read_text(encoding="utf8")) for path in files]


def table(rows: Sequence[Row]) -> str:
    """Return the table of the shelf in Markdown; rates in percent."""
    lines = [
        "| victim | net | ACC | ASR | RA | backdoor | epochs | precision | minutes | commit |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        rates = [f"{100 * row[name]:.2f}" if row[name] is not None else "–" for name in COLUMNS[:3]]
        asr = row["asr"]
        works = "none" if asr is None else "works" if asr >= WORKS else "**weak**: rank nothing"
        minutes = f"{row['seconds'] / 60:.0f}"
        net = f"{row['model']} {row['net']}"
        how = [row[name] for name in ("epochs", "precision")]
        cells = [row["address"], net, *rates, works, *how, minutes, row["commit"]]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Train victims or print the table; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train")
    training.add_argument("addresses", nargs="+", metavar="ADDRESS")
    training.add_argument("--data", required=True, help="cifar10.npz")
    training.add_argument("--work", type=Path, default=Path("runs/victims"))
    commands.add_parser("table")
    options = parser.parse_args(argv)
    if options.command == "table":
        print(table(rows_of_shelf()))
        return 0
    huge_pages.start_again()
    for address in options.addresses:
        study_of(address, options.data)
    for address in options.addresses:
        train(address, options.data, options.work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
