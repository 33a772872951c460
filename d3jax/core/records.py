"""The types of a table row and of a log record, which are plain dicts. Does not import jax."""

from typing import Any

Row = dict[str, Any]
"""One row of a table as {column: value}; None is an empty cell."""

LogRecord = dict[str, Any]
"""One log record of a loop.

It holds `step`, `seconds` since the loop began (resumes included), and the mean of every metric
since the last record. A node with several loops adds the name of the `loop` ("" for the first).
"""
