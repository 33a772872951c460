"""How many updates a backdoor survives."""

from __future__ import annotations

from typing import Any

import numpy as np


def survivability(asr: Any, tau: float = 0.5) -> tuple[int, bool]:
    """S_τ of the ASR [T] after each update, and whether it is censored: how many updates the backdoor survived before its ASR first
    fell below `tau`; T and True ("at least T") where it never did. A later rise does not count."""
    below = np.flatnonzero(np.asarray(asr, np.float64) < tau)
    return (int(below[0]), False) if len(below) else (len(asr), True)
