"""The progress of a study on the terminal, printed by the first of several processes."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from .distributed import is_primary
from .output import drop_output


class Progress:
    """The display of a study's progress: a bar for the running stage on a terminal, else lines."""

    def __init__(self, quiet: bool = False):
        self.quiet, self.bar, self.task = quiet or not is_primary(), None, None

    def say(self, text: str) -> None:
        """Print one line to standard output, unless quiet or after its reader has closed it."""
        if self.quiet:
            return
        try:
            print(text, flush=True)
        except BrokenPipeError:
            self.quiet = True
            drop_output()

    def warn(self, text: str) -> None:
        """Print one line to standard error from the first process, even in quiet mode."""
        if is_primary():
            print(f"d3jax: {text}", file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Return a context manager that shows the study's stage `name` while its block runs."""
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
        """Move the progress bar to the step, loss and speed in a log record of a train loop."""
        if self.bar is not None and self.task is not None:
            rate = line["step"] / max(line["seconds"], 1e-9)
            # rich's own estimate only uses the last 30 s.
            left = round((steps - line["step"]) / max(rate, 1e-9))
            text = f"loss {line['loss']:.4f}  {rate:.1f} steps/s  {left // 60}:{left % 60:02d} left"
            self.bar.update(self.task, completed=line["step"], total=steps, description=text)
