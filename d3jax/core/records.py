"""Plain data that travels from computations into tables. No jax."""

from typing import Any

Row = dict[str, Any]
"""One row of a table by column; None is an empty cell."""

LogRecord = dict[str, Any]
"""One logged record: `step`, `seconds` since the loop began (resumes included), and the mean of every
metric since the last record. A node of several loops names the `loop` ("" for the first)."""
