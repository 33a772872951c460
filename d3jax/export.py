"""The command that exports a finished model for PyTorch, or the poisoned data set of an attack.

python -m d3jax.export --config FILE MODEL OUT.safetensors
python -m d3jax.export --dataset --config FILE ATTACK/seedS OUT
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from d3jax.config.loading import load
from d3jax.core.errors import CheckpointError, ConfigError, did_you_mean, names
from d3jax.core.paths import user_path
from d3jax.data.released import Released, write_released
from d3jax.deployment import write_model
from d3jax.runtime import checkpoint
from d3jax.runtime.commands import Parser, exit_code, program
from d3jax.runtime.progress import Progress
from d3jax.study.context import StudyContext, open_context
from d3jax.study.graph import make_nodes
from d3jax.study.registries import REGISTRIES
from d3jax.study.releasing import release, write_pictures


def export(
    config: str | Path, name: str, out: str | Path, workdir: str | Path | None = None
) -> int:
    """Write the finished model `name` of a study to the file `out`; return its number of tensors.

    The file also holds the trigger of a victim, and the recipe by which it was trained. A study
    that reads the file then knows the poisoned training set.

    `name` is the name of a node, such as badnets/seed0/train or badnets/seed0/d3-code. `workdir` is
    the run folder of the study. Without it, the run folder is the folder of `config` if that is
    called config.yaml, else runs/ and the name of the config. Raises `ConfigError` if there is no
    such node. Raises `CheckpointError` if it is not finished, or if its architecture has no names
    in PyTorch.
    """
    config, out = user_path(config, "--config"), user_path(out)
    if out.suffix != ".safetensors":
        raise ConfigError(f"{out}: want a name that ends in .safetensors")
    context, folder = _opened(config, out, workdir)
    settings = context.config
    models = {node.name: node for node in make_nodes(context) if node.role and not node.analysis}
    if name not in models:
        known = f"{config}, which has {names(models)}{did_you_mean(name, models)}"
        raise ConfigError(f"{name!r} is no model of {known}")
    node = models[name]
    if not checkpoint.exists(node.folder / "model"):
        resolved = folder / "config.yaml"
        other = f", or, if it ran with other settings, give --config {resolved}"
        hint = other if resolved.exists() and resolved != config else ""
        raise CheckpointError(f"{name} is not finished ({node.folder}): run the study first{hint}")
    tree, _ = checkpoint.load(node.folder / "model", node.like())
    repaired = node.network is not context.model
    return write_model(
        out,
        getattr(tree, "variables", tree),
        settings.model,
        context.dataset.info,
        node.chosen if repaired else None,
        getattr(tree, "trigger", ()),
        node.run.recipe | {"training_set": context.training_set},
    )


def export_dataset(
    config: str | Path, name: str, out: str | Path, workdir: str | Path | None = None
) -> Released:
    """Write the poisoned data set of the attack `name` of a study; return it.

    `out` is an .npz file (`d3jax.data.released`), or a new folder of pictures with a manifest.
    `name` is ATTACK/seedS, such as badnets/seed0. An attack that prepares its trigger must have
    done so in the run folder `workdir`. Raises what `release` raises.
    """
    config, out = user_path(config, "--config"), user_path(out)
    if out.suffix not in (".npz", ""):
        raise ConfigError(f"{out}: want a name that ends in .npz, or the name of a new folder")
    context, _ = _opened(config, out, workdir)
    released = release(context, name)
    if out.suffix:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_released(out, released)
    else:
        write_pictures(out, released)
    return released


def _opened(config: Path, out: Path, workdir: str | Path | None) -> tuple[StudyContext, Path]:
    """Return the context of a study and its run folder; raise `ConfigError` if `out` exists."""
    if out.exists():
        raise ConfigError(f"{out}: exists already; remove it, or give another name")
    folder = user_path(workdir, "--workdir") if workdir else _run_folder(config)
    settings = load(config, registries=REGISTRIES)
    return open_context(settings, folder, Progress(quiet=True)), folder


def _run_folder(config: Path) -> Path:
    """Return the run folder that a study's config file implies if none is given."""
    return config.parent if config.name == "config.yaml" else Path("runs") / config.stem


def main(argv: Sequence[str] | None = None) -> int:
    """Run the export command and return the exit code (see `runtime.commands`)."""
    return exit_code(lambda: _export(argv))


def _export(argv: Sequence[str] | None) -> int:
    parser = Parser(
        prog="python -m d3jax.export",
        description="Write a finished model of a study to .safetensors, with PyTorch's names, or "
        "the poisoned data set of an attack.",
    )
    parser.add_argument(
        "--dataset",
        action="store_true",
        help="write the poisoned data set of ATTACK/seedS to OUT: .npz, or a folder of pictures",
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        required=True,
        help="the config of the study, preferably the config.yaml in its run folder",
    )
    parser.add_argument(
        "--workdir",
        metavar="DIR",
        help="the run folder of the study (default: that of config.yaml, or runs/<name>)",
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="ATTACK/seedS/train (of an external model: read) or ATTACK/seedS/DEFENCE; with "
        "--dataset ATTACK/seedS",
    )
    parser.add_argument("out", metavar="OUT", help="the new file .safetensors; see --dataset")
    options, more = parser.parse_known_args(argv)
    if settings := [word for word in more if word.startswith("--")]:
        raise ConfigError(
            f"{settings[0]}: export takes no settings; give the config.yaml of the run folder"
        )
    if more:
        raise ConfigError(f"{more[0]!r}: want one MODEL and one OUT")
    if options.dataset:
        made = export_dataset(options.config, options.model, options.out, options.workdir)
        shown = 0 if made.triggered_rows is None else len(made.triggered_rows)
        covers = 0 if made.covers is None else int(made.covers.sum())
        poisoned = 0 if made.poisoned is None else int(made.poisoned.sum())
        print(
            f"{options.model}: {len(made.train.labels)} training images, {poisoned} poisoned, "
            f"{covers} covers, and {shown} triggered test images in {options.out}"
        )
        return 0
    count = export(options.config, options.model, options.out, options.workdir)
    print(f"{options.model}: {count} tensors in {options.out}")
    return 0


if __name__ == "__main__":
    program(main)
