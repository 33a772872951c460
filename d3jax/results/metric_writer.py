"""What a run says while it runs: lines in metrics.jsonl, and progress on the terminal. Of several processes the first one speaks."""

from __future__ import annotations

import json
from pathlib import Path

from ..runtime.distributed import is_primary
from ..runtime.files import locked, write_text


class Journal:
    """metrics.jsonl: one JSON object a logged line, with the `stage` it belongs to."""

    def __init__(self, path: Path):
        self.path = path

    def write(self, stage: str, line: dict[str, float]) -> None:
        """Appends one line."""
        if not is_primary():
            return
        with self._locked(), self.path.open("a", encoding="utf8") as file:
            file.write(_text(stage, line))

    def reset(self, stage: str, lines: list[dict[str, float]]) -> None:
        """Makes `lines` all there is of `stage` and the loops within it: a resumed stage takes back what it wrote after its checkpoint,
        a finished one says the same however it came about."""
        if not is_primary():
            return
        with self._locked():
            texts = (
                self.path.read_text(encoding="utf8").splitlines(keepends=True)
                if self.path.exists()
                else []
            )
            kept = [
                text
                for text in texts
                if (other := _stage(text)) and other != stage and not other.startswith(f"{stage}/")
            ]
            write_text(self.path, "".join(kept) + "".join(_text(stage, line) for line in lines))

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
