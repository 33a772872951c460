"""What a run says while it runs: lines in metrics.jsonl, and progress on the terminal. Of several processes the first one speaks."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from .locks import locked
from .rows import write_whole
from .sharding import is_first


class Journal:
    """metrics.jsonl: one JSON object a logged line, with the `stage` it belongs to."""

    def __init__(self, path: Path):
        self.path = path

    def write(self, stage: str, line: dict[str, float]) -> None:
        """Appends one line."""
        if not is_first():
            return
        with self._locked(), self.path.open("a", encoding="utf8") as file:
            file.write(_text(stage, line))

    def reset(self, stage: str, lines: list[dict[str, float]]) -> None:
        """Makes `lines` all there is of `stage` and the loops within it: a resumed stage takes back what it wrote after its checkpoint,
        a finished one says the same however it came about."""
        if not is_first():
            return
        with self._locked():
            texts = self.path.read_text(encoding="utf8").splitlines(keepends=True) if self.path.exists() else []
            kept = [text for text in texts if (other := _stage(text)) and other != stage and not other.startswith(f"{stage}/")]
            write_whole(self.path, "".join(kept) + "".join(_text(stage, line) for line in lines))

    def _locked(self):
        return locked(self.path.with_suffix(".lock"))


def _text(stage: str, line: dict[str, float]) -> str:
    return json.dumps({"stage": stage, **line}) + "\n"


def _stage(text: str) -> str | None:
    """The stage of a line; None for one that a kill cut short."""
    try:
        return json.loads(text)["stage"]
    except json.JSONDecodeError:
        return None


class Progress:
    """One stage at a time: a rich bar on a terminal, one line a stage elsewhere."""

    def __init__(self, quiet: bool = False):
        self.quiet, self.bar, self.task = quiet or not is_first(), None, None

    def say(self, text: str) -> None:
        """Prints one line."""
        if not self.quiet:
            print(text, flush=True)

    def warn(self, text: str) -> None:
        """Prints one line where errors go, even when quiet."""
        if is_first():
            print(f"d3jax: {text}", file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Shows `name` while the block runs."""
        self.say(f"{name} …")
        if self.quiet or not sys.stdout.isatty():
            yield
            return
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bar

        columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn())
        with Bar(*columns, transient=True) as self.bar:
            self.task = self.bar.add_task("compiling, first steps", total=None)
            try:
                yield
            finally:
                self.bar = None

    def update(self, line: dict[str, float], steps: int) -> None:
        """Moves the bar to a logged line of a stage of `steps` steps."""
        if self.bar is not None:
            rate = line["step"] / max(line["seconds"], 1e-9)
            left = round((steps - line["step"]) / max(rate, 1e-9))  # rich's own estimate forgets what is over 30 s old
            text = f"loss {line['loss']:.4f}  {rate:.1f} steps/s  {left // 60}:{left % 60:02d} left"
            self.bar.update(self.task, completed=line["step"], total=steps, description=text)
