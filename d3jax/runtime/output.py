"""Standard output and error, for every command. No jax in here."""

from __future__ import annotations

import io
import os
import sys


def accept_any_text() -> None:
    """Let both replace what their encoding does not have, instead of raising."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def drop_output() -> None:
    """Send standard output nowhere, after its reader has gone (`d3jax … | head`)."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
