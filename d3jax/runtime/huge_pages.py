"""Restart of a program with huge memory pages, which make training steps on CPU faster.

XLA:CPU allocates hundreds of MB for every step. With pages of 4 KiB this cost 22 % of a training
step (289 ms, against 226 ms with huge pages; PreActResNet18 at width 8, batch 128, two cores).
glibc reads the setting only when a process starts. `mallopt` can be called later, but has no such
setting, and its other settings (no mmap, no trimming) did not help.
"""

from __future__ import annotations

import os
import sys


def start_again() -> None:
    """Restart this program with huge memory pages on Linux, unless GLIBC_TUNABLES is already set.

    Call it only at the entry of a program. It does nothing under a debugger or profiler, because
    that would lose the restarted process.
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ and not _is_watched():
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _is_watched() -> bool:
    """Return whether a debugger or a profiler is attached to this process."""
    monitoring = getattr(sys, "monitoring", None)  # Python 3.12
    tools = [monitoring.get_tool(i) for i in range(6)] if monitoring else []
    return bool(sys.gettrace() or sys.getprofile() or any(tools) or "debugpy" in sys.modules)
