"""`python -m d3jax.export --config FILE CELL OUT.safetensors`: a finished model of a study, under PyTorch's names."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from .config.fields import did_you_mean, names
from .config.loading import load
from .core.errors import CheckpointError, ConfigError, D3JaxError
from .interop import to_torch, write_tensors
from .runtime import checkpoint
from .runtime.progress import Progress
from .study.attack_run import make_cells
from .study.context import open_lab
from .study.nodes.model_detection import variables_of
from .study.nodes.repair import task_of
from .study.run import REGISTRIES


def export(
    config: str | Path, name: str, out: str | Path, workdir: str | Path | None = None
) -> int:
    """Writes the model of the cell `name` (such as badnets/seed0/train or badnets/seed0/d3-code) of a study to `out`; how many tensors.

    `workdir` is the study's run folder: without it the one that `config` lies in as config.yaml, or runs/ and the config's name. Raises
    `ConfigError` where there is no such cell, `CheckpointError` where it is not finished, or its architecture has no names in PyTorch.
    """
    config, out = Path(config), Path(out)
    if out.suffix != ".safetensors":
        raise ConfigError(f"{out}: want a name that ends on .safetensors")
    folder = (
        Path(workdir)
        if workdir
        else config.parent
        if config.name == "config.yaml"
        else Path("runs") / config.stem
    )
    settings = load(config, registries=REGISTRIES)
    lab = open_lab(settings, folder, Progress(quiet=True))
    models = {
        cell.name: cell for cell in make_cells(lab) if cell.kind in ("model", "repair", "training")
    }
    if name not in models:
        raise ConfigError(
            f"{name!r} is no model of {config}, which has {names(models)}{did_you_mean(name, models)}"
        )
    where = task_of(lab, models[name], {}).folder
    if not checkpoint.exists(where / "model"):
        resolved = folder / "config.yaml"
        other = (
            f", or, if it ran with other settings, give --config {resolved}"
            if resolved.exists() and resolved != config
            else ""
        )
        raise CheckpointError(f"{name} is not finished ({where}): run the study first{other}")
    tensors = to_torch(
        variables_of(lab, models[name], {}), settings.model.name, settings.model.config
    )
    write_tensors(out, tensors)
    return len(tensors)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 done, 2 a mistake."""
    parser = argparse.ArgumentParser(
        prog="python -m d3jax.export",
        description="Writes a finished model of a study as .safetensors, under PyTorch's names.",
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        required=True,
        help="the study, best the config.yaml in its run folder",
    )
    parser.add_argument(
        "--workdir",
        metavar="DIR",
        help="its run folder (default: that of config.yaml, or runs/<name>)",
    )
    parser.add_argument("cell", metavar="CELL", help="ATTACK/seedS/train, or ATTACK/seedS/DEFENCE")
    parser.add_argument("out", metavar="OUT.safetensors")
    options = parser.parse_args(argv)
    try:
        count = export(options.config, options.cell, options.out, options.workdir)
    except D3JaxError as error:
        print(f"d3jax: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{options.cell}: {count} tensors in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
