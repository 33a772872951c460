"""Make the generated pages of the documentation, and the results table of the README.

Pages come from `docs/templates/*.md.j2`. Their tables are read from `benchmarks/results/`, from
the config classes and from `d3jax.results.columns`, so that no number is copied by hand.

Command: python docs/generate.py [--check]
    --check writes nothing, and exits with 1 if a page is out of date.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from published import page as published_page
from victims import rows_of_shelf
from victims import table as victims_table

from d3jax.config.loading import describe
from d3jax.config.study import StudyConfig
from d3jax.core.records import Row
from d3jax.results.columns import COLUMNS_OF
from d3jax.results.tables import read_csv
from d3jax.run import ENTRY, READ, READ_BY_ATTACK
from d3jax.study.registries import REGISTRIES

ROOT = Path(__file__).parents[1]
TEMPLATES = ROOT / "docs" / "templates"
RESULTS = ROOT / "benchmarks" / "results"
FROM_PAGE = "../../benchmarks/results"
"""The results folder as seen from a page of docs/results or docs/reference."""

MARKS = "<!-- table of docs/generate.py -->", "<!-- end of the table -->"
"""What stands before and after the generated table of the README."""


def rows_of(name: str) -> list[Row]:
    """Return the rows of a CSV file, or of a JSON file with `rows`, in benchmarks/results."""
    path = RESULTS / name
    if path.suffix == ".json":
        return json.loads(path.read_text(encoding="utf8"))["rows"]
    return read_csv(path)


def load(name: str) -> dict[str, Any]:
    """Return a JSON file of benchmarks/results."""
    return json.loads((RESULTS / name).read_text(encoding="utf8"))


def percent(values: Iterable[float | None], digits: int = 1) -> str:
    """Return the mean in percent, with the standard deviation if there are several values."""
    known = [100 * value for value in values if value is not None]
    if not known:
        return "–"
    spread = f" ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else ""
    return f"{statistics.fmean(known):.{digits}f}{spread}".replace("-", "−")


def markdown(head: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    """Return a Markdown table."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)


def rates(
    name: str,
    attacks: Mapping[str, str],
    defenses: Mapping[str, str],
    published: bool = True,
) -> str:
    """Return a table of ACC / ASR in percent: attacks down, defences across.

    `attacks` and `defenses` map labels in the file to titles. With `published`, a second line
    for each attack has the published numbers that the rows name.
    """
    rows, lines = rows_of(name), []
    for attack, title in attacks.items():
        found = {
            label: _models([row for row in rows if row["attack"] == attack], label)
            for label in defenses
        }
        lines.append([title, "measured", *map(_acc_asr, found.values())])
        if published:
            lines.append(["", "published", *map(_published, found.values())])
    kept = [[line[0], *line[1 if published else 2 :]] for line in lines]
    head = ["attack", *([""] if published else []), *defenses.values()]
    return markdown(head, kept)


def extra(name: str, column: str, attacks: Mapping[str, str], defenses: Mapping[str, str]) -> str:
    """Return a table of one column in percent: attacks down, defences across."""
    rows = rows_of(name)
    lines = [
        [title]
        + [
            percent(row[column] for row in _models(own, label))
            for own in [[row for row in rows if row["attack"] == attack]]
            for label in defenses
        ]
        for attack, title in attacks.items()
    ]
    return markdown([f"`{column}`", *defenses.values()], lines)


def _models(rows: Sequence[Row], label: str) -> list[Row]:
    """Return the rows of one defence; a backdoored model that several seeds share counts once."""
    own = [row for row in rows if row["defense"] == label]
    if label != "none":
        return own
    return list({row.get("attack_seed", row["seed"]): row for row in own}.values())


def _acc_asr(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    return " / ".join(percent(row[name] for row in rows) for name in ("acc", "asr"))


def _published(rows: Sequence[Row]) -> str:
    known = {row["published"] for row in rows} - {None, "none"}
    return ", ".join(sorted(known)).replace("/", " / ") or "none"


def outcomes(
    name: str, attack: str, defenses: Mapping[str, str] | None = None, commit: str = ""
) -> str:
    """Return a table of one attack: a line for each defence with all rates, in percent.

    `defenses` maps labels to titles, in the order of the lines. With `commit`, only the defended
    models of that commit count.
    """
    rows = [row for row in rows_of(name) if row["attack"] == attack]
    rows = [row for row in rows if row["defense"] == "none" or row["commit"].startswith(commit)]
    titles = defenses or {row["defense"]: row["defense"] for row in rows}
    before = {row["seed"]: row["acc"] for row in rows if row["defense"] == "none"}
    first = next(iter(before.values()), None)
    lines = []
    for label, title in titles.items():
        own = _models(rows, label)
        changes = [row["acc"] - before.get(row["seed"], first) for row in own]
        change = "" if label == "none" else f"{100 * statistics.fmean(changes):+.1f}"
        shown = [percent(row[rate] for row in own) for rate in ("acc", "asr", "ra", "der")]
        lines.append([title, shown[0], change.replace("-", "−"), *shown[1:], _published(own)])
    head = ["defence", "ACC", "change", "ASR", "RA", "DER", "published ACC / ASR"]
    return markdown(head, lines)


def printed(name: str, level: int = 3) -> str:
    """Return a Markdown file of benchmarks/results with its headings at `level` or deeper."""
    text = (RESULTS / name).read_text(encoding="utf8").strip()
    return re.sub(r"^(#+) ", lambda match: "#" * (level - 1) + match[0], text, flags=re.MULTILINE)


def first_table(name: str) -> str:
    """Return the first table of a Markdown file of benchmarks/results, and a link to all of it."""
    lines = (RESULTS / name).read_text(encoding="utf8").splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("|"))
    end = next((n for n in range(start, len(lines)) if not lines[n].startswith("|")), len(lines))
    return "\n".join(lines[start:end]) + f"\n\nMore: {source(name)}"


def before_table(name: str) -> str:
    """Return the counts that a Markdown file of benchmarks/results begins with."""
    text = (RESULTS / name).read_text(encoding="utf8")
    return "\n".join(line for line in text.split("\n|")[0].splitlines() if line.startswith("- "))


def commits(*names: str) -> str:
    """Return the commits that made the rows of some files."""
    found = {row["commit"] for name in names for row in rows_of(name) if row.get("commit")}
    return ", ".join(f"`{one[:7]}`" for one in sorted(found))


def source(*names: str) -> str:
    """Return links to files of benchmarks/results."""
    return ", ".join(f"[{name}]({FROM_PAGE}/{name})" for name in names)


def spread(numbers: Mapping[str, float], digits: int = 0) -> str:
    """Return "median (min to max)"."""
    low, middle, high = (numbers[key] for key in ("min", "median", "max"))
    return f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def settings(rows: Iterable[tuple[str, str, str]]) -> str:
    """Return a table of settings with their defaults and meanings."""
    lines = [[f"`{key}`", f"`{default}`", _cell(doc)] for key, default, doc in rows]
    return markdown(["setting", "default", "meaning"], lines)


def _cell(text: str) -> str:
    """Return text that cannot end a cell of a table, or become a link or markup."""
    return re.sub(r"([|<\[\]])", r"\\\1", text)


def components(registry: str) -> list[dict[str, Any]]:
    """Return name, docstring and settings of every component of a registry."""
    return [
        {"name": name, "doc": _docstring(cls), "settings": settings(rows) if rows else ""}
        for name, cls in sorted(REGISTRIES[registry].items())
        for rows in [describe(cls)]
    ]


def _docstring(cls: type) -> str:
    """Return a class's docstring; one that dataclasses made is no docstring."""
    text = (cls.__doc__ or "").strip()
    if dataclasses.is_dataclass(cls) and text.startswith(f"{cls.__name__}("):
        return ""
    return re.sub(r"\n +", "\n", text)


def columns(table: str) -> str:
    """Return a table of the columns of one CSV file."""
    lines = [[f"`{name}`", _cell(text)] for name, text in COLUMNS_OF[table].items()]
    return markdown(["column", "meaning"], lines)


def pages() -> dict[Path, str]:
    """Return the text of every generated page by its path; the README with its table renewed."""
    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(
        loader=loader, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.globals |= {
        "before_table": before_table, "columns": columns, "commits": commits,
        "components": components, "extra": extra, "first_table": first_table, "load": load,
        "outcomes": outcomes,
        "percent": percent, "printed": printed, "rates": rates,
        "rows_of": rows_of, "settings": settings, "source": source, "spread": spread,
        "study_settings": lambda: settings(describe(StudyConfig)),
        "entry_settings": lambda: settings(ENTRY), "model_settings": lambda: settings(READ),
        "attack_settings": lambda: settings(READ_BY_ATTACK),
        "tables": list(COLUMNS_OF), "markdown": markdown, "from_page": FROM_PAGE,
        "published_page": published_page, "victims_table": lambda: victims_table(rows_of_shelf()),
    }  # fmt: skip
    made = {}
    for template in sorted(TEMPLATES.rglob("*.md.j2")):
        relative = template.relative_to(TEMPLATES)
        if relative.name == "readme_table.md.j2":
            continue
        text = environment.get_template(relative.as_posix()).render()
        made[ROOT / "docs" / relative.with_suffix("")] = text.strip() + "\n"
    table = environment.get_template("readme_table.md.j2").render().strip()
    readme = (ROOT / "README.md").read_text(encoding="utf8")
    before, rest = readme.split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    made[ROOT / "README.md"] = f"{before}{MARKS[0]}\n\n{table}\n\n{MARKS[1]}{after}"
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Write the pages, or only check them; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if a page is stale")
    check = parser.parse_args(argv).check
    stale = [
        (path, text)
        for path, text in pages().items()
        if not path.is_file() or path.read_text(encoding="utf8") != text
    ]
    for path, text in stale:
        print(f"{path.relative_to(ROOT)}: {'out of date' if check else 'written'}")
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf8")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
