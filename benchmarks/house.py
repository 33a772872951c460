"""Measure the structure of the package: its size, its imports, and the modules that a study runs.

    python benchmarks/house.py [TREE] [--study]

Prints for the checkout TREE (default: this one):

- the statements by area, counted on the syntax tree without docstrings;
- the number of modules and packages at the top of the package;
- the cycles among imports;
- the files to change for a new attack, repair or data set.

With --study it also runs one small BadNets × D3 study in TREE. It then prints which modules
executed a function between the command and the written page.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

AREAS = {
    "engine and tables": {
        "before": "lab cells tasks stages planning untrusted suspect extras exhibits lineages "
        "lineage_rows lines study study_rows trigger_rows journal rows report survival locks",
        "now": "study results runtime/locks.py runtime/files.py runtime/progress.py",
    },
    "page and figures": {
        "before": "page markup figures path_page sample_page suspect_page evolution_page "
        "filter_page findings terminal",
        "now": "report",
    },
    "config": {"before": "config config_file", "now": "config"},
}
"""Modules of each area: single modules at commit 2c4934d, folders and files now."""

ADDED = [
    "results/compare.py",
    "results/compared_runs.py",
    "results/ranking.py",
    "results/metric_sinks.py",
    "report/comparison.py",
]
"""Modules without a counterpart at commit 2c4934d, which are not counted.

They are the leaderboard, TensorBoard, and Weights & Biases.
"""

EXAMPLES = {
    "attack bpp": "BPPConfig",
    "repair finetune": "FinetuneConfig",
    "data set digits": "DigitsConfig",
}
"""A component of each kind and its config class, by which the files that name it are found."""

SCIENCE = [
    "analysis",
    "attacks",
    "core",
    "data",
    "defenses",
    "evolution",
    "interop",
    "inversion",
    "metrics",
    "models",
    "training",
]
"""Packages whose modules are the computation itself; all others surround it."""

STUDY = """
dataset: {name: digits, size: 16}
model: {name: preact_resnet18, width: 4}
attacks: [badnets]
train: {epochs: 1, batch_size: 64}
defenses: [{name: d3, schedule: {steps: 4, batch_size: 50}}]
"""

TRACER = """
import json, pathlib, sys, threading
root = str(pathlib.Path("d3jax").resolve()) + "/"
known, seen = set(), set()

def trace(frame, event, arg):
    code = frame.f_code
    if event != "call" or code in known:
        return
    known.add(code)
    made = code.co_name == "<module>" or "__qualname__" in code.co_names  # a class being made
    if code.co_filename.startswith(root) and code.co_filename.endswith(".py") and not made:
        seen.add(code.co_filename.removeprefix(root))

import d3jax.run
threading.setprofile(trace)
sys.setprofile(trace)
code = d3jax.run.main(["--config", sys.argv[1], "--workdir", sys.argv[2]])
sys.setprofile(None)
pathlib.Path(sys.argv[3]).write_text(json.dumps(sorted(seen)))
sys.exit(code)
"""


def statements(path: Path) -> int:
    """Return the number of statements in a file, without docstrings."""
    return sum(isinstance(node, ast.stmt) and not _is_text(node) for node in _nodes(path))


def _nodes(path: Path) -> Iterable[ast.AST]:
    return ast.walk(ast.parse(path.read_text(encoding="utf8")))


def _is_text(node: ast.AST) -> bool:
    value = getattr(node, "value", None) if isinstance(node, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def area(package: Path, parts: str) -> int:
    """Return the number of statements in modules and folders of a package.

    `parts` are their paths, separated by spaces.
    """
    total = 0
    for part in parts.split():
        place = package / part
        files = place.rglob("*.py") if place.is_dir() else [place.with_suffix(".py")]
        total += sum(statements(file) for file in files if _counts(package, file))
    return total


def _counts(package: Path, file: Path) -> bool:
    return file.exists() and str(file.relative_to(package)) not in ADDED


def naming(package: Path, config: str) -> list[str]:
    """Return the files of a package whose code names the class `config`."""
    return [
        str(path.relative_to(package))
        for path in sorted(package.rglob("*.py"))
        if any(
            config in (getattr(node, "id", ""), getattr(node, "name", "")) for node in _nodes(path)
        )
    ]


def modules(package: Path) -> dict[str, set[str]]:
    """Return for each module of a package the others that it imports, in any scope."""
    names = {_name(package, path): path for path in package.rglob("*.py")}
    return {
        name: _imported(package, names, path) & set(names) - {name} for name, path in names.items()
    }


def _name(package: Path, path: Path) -> str:
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(package: Path, names: dict[str, Path], path: Path) -> set[str]:
    here = _name(package, path).split(".")
    base = here if path.name == "__init__.py" else here[:-1]
    found = set()
    for node in _nodes(path):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = base[: len(base) - node.level + 1] if node.level else []
            target = ".".join([*start, *(node.module.split(".") if node.module else [])])
            inside = {f"{target}.{alias.name}" for alias in node.names}
            found |= inside & set(names) or {target}
    return found


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Return the sets of modules that import each other in a cycle."""
    reach = {name: _reachable(graph, name) for name in graph}
    found: list[set[str]] = []
    for name in graph:
        circle = {other for other in reach[name] if name in reach[other]}
        if circle and circle not in found:
            found.append(circle)
    return found


def _reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    found, queue = set(), list(graph[start])
    while queue:
        name = queue.pop()
        if name not in found:
            found.add(name)
            queue += graph.get(name, ())
    return found


def executed(tree: Path) -> list[str]:
    """Return the modules that a BadNets × D3 study executes, from the command to the page."""
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / name for name in ("study.yaml", "trace.py", "seen.json")}
        files["study.yaml"].write_text(STUDY)
        files["trace.py"].write_text(TRACER)
        words = [files["study.yaml"], Path(folder) / "run", files["seen.json"]]
        command = [sys.executable, files["trace.py"], *words]
        environment = {"PYTHONPATH": str(tree), "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
        subprocess.run(
            [str(word) for word in command],
            cwd=tree,
            env=os.environ | environment,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        return json.loads(files["seen.json"].read_text())


def main() -> int:
    """Print the measurements of a checkout."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tree", nargs="?", type=Path, default=Path(__file__).parents[1])
    parser.add_argument("--study", action="store_true", help="run a small study and trace it")
    options = parser.parse_args()
    tree = options.tree.resolve()
    package = tree / "d3jax"
    layout = "now" if (package / "core").is_dir() else "before"
    for name, parts in AREAS.items():
        print(f"statements of {name}: {area(package, parts[layout])}")
    top = [
        path
        for path in package.iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    ]
    print(f"modules and packages at the top: {len(top)}")
    found = circles(modules(package))
    print(f"import circles: {len(found)}" + "".join(f"\n  {sorted(circle)}" for circle in found))
    for what, config in EXAMPLES.items():
        print(f"files whose code knows the {what}: {', '.join(naming(package, config))}")
    if options.study:
        seen = executed(tree)
        around = [name for name in seen if name.split("/")[0] not in SCIENCE]
        print(f"modules executed by a BadNets × D3 study: {len(seen)}")
        print(f"  of these around the computation: {len(around)}\n    " + "\n    ".join(around))
    return 0


if __name__ == "__main__":
    sys.exit(main())
