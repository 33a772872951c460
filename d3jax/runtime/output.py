"""Settings of standard output and standard error for every command. Does not import jax."""

from __future__ import annotations

import io
import os
import sys


def accept_any_text() -> None:
    """Let stdout and stderr replace characters outside their encoding instead of raising."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def drop_output() -> None:
    """Discard all further standard output, once its reader has closed it (`d3jax … | head`)."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
