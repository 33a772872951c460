"""The notebook runs from its first cell to its last, and gives the numbers in its text."""

import json
from pathlib import Path

import numpy as np
import pytest

PATH = Path(__file__).parents[2] / "experiments" / "quickstart.ipynb"
NOTEBOOK = json.loads(PATH.read_text(encoding="utf8"))
CODE = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_was_run_from_top_to_bottom():
    ran = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in ran] == list(range(1, len(ran) + 1))
    pictures = [
        output
        for cell in ran
        for output in cell["outputs"]
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 4 and not any(
        output["output_type"] == "error" for cell in ran for output in cell["outputs"]
    )
    assert PATH.stat().st_size < 600_000


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_notebook_cells_give_the_numbers_in_the_text(monkeypatch, capsys):
    import matplotlib

    matplotlib.use("Agg")
    monkeypatch.chdir(PATH.parent)
    names: dict = {}
    for number, code in enumerate(CODE):
        exec(compile(code, f"{PATH.name}, cell {number}", "exec"), names)  # noqa: S102
    table = names["table"]
    assert table["backdoored"]["ACC"] > 0.95 and table["backdoored"]["ASR"] > 0.95
    assert (
        table["fine-tuned"]["ASR"] > 0.8 and table["D3"]["ASR"] < 0.1 and table["D3"]["ACC"] > 0.9
    )
    assert np.flatnonzero(names["found"].flagged).tolist() == [0]
    before, after = (
        names["measure"](names[name].variables, names["own"].trigger, names["data"].test)
        for name in ("own", "repaired")
    )
    assert before.asr > 0.9 and after.asr < before.asr - 0.2
    assert "flagged: [0]" in capsys.readouterr().out
