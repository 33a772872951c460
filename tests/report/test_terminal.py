"""Tests of the results table in the terminal."""

from __future__ import annotations

import io
import re

from d3jax.report import terminal

from ..helpers.report_runs import row


def test_terminal_table_is_plain_text_shows_changes_and_truncates_nothing():
    published = "BackdoorBench, table 3: " + "ACC 92.10 " * 12
    rows = [
        row(seed=0, acc=0.90),
        row(seed=1, acc=0.94),
        row("[red]ft", 0, acc=0.89, asr=0.2, der=0.9, published=published),
        row("[red]ft", 1, acc=0.91, asr=0.1, der=0.9, published=published),
    ]
    lines = terminal.terminal_table(rows).splitlines()
    head, none, ft = lines[1], *(line for line in lines if "badnets" in line)
    assert re.fullmatch(
        r"attack +defense +ACC +change +ASR +change +RA +change +DER +seeds +outcome +published",
        head.strip(),
    )
    assert (
        none.split()[:5] == ["badnets", "none", "92.00", "±", "2.83"] and "backdoor works" in none
    )
    assert ft.split()[:6] == ["badnets", "[red]ft", "90.00", "±", "1.41", "−2.00"]
    assert (
        "15.00 ± 7.07" in ft
        and "−85.00" in ft
        and "0.00" in ft
        and "90.00 ± 0.00" in ft
        and published.strip() in ft
    )
    assert "\x1b" not in "".join(lines) and "…" not in "".join(lines)
    out = io.StringIO()
    terminal.print_table(rows, file=out)
    assert out.getvalue().rstrip("\n") == "\n".join(lines)
    assert "published" not in terminal.terminal_table([row(published="none")])


def test_no_rows_print_no_table(capsys):
    terminal.print_table([])
    assert capsys.readouterr().out == ""
