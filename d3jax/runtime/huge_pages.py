"""Huge pages for malloc, which XLA:CPU needs: it takes hundreds of MB afresh for every step.

At 4 KiB a page that cost 22 % of a training step (289 → 226 ms, PreActResNet18 at width 8, batch 128, two cores).
glibc reads the setting when a process starts; `mallopt`, which can be called later, has no such setting, and what it has
(no mmap, no trimming) did not help.
"""

from __future__ import annotations

import os
import sys


def start_again() -> None:
    """Start this program again with huge pages, where glibc can and nobody has set how; or return.

    For the entry of a program alone. A debugger or profiler would lose it: then nothing is done.
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ and not _is_watched():
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _is_watched() -> bool:
    """Return whether a debugger or a profiler follows this process."""
    monitoring = getattr(sys, "monitoring", None)  # Python 3.12
    tools = [monitoring.get_tool(i) for i in range(6)] if monitoring else []
    return bool(sys.gettrace() or sys.getprofile() or any(tools) or "debugpy" in sys.modules)
