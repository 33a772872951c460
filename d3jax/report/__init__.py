"""The report page and its pictures, made from a run folder alone. No jax in here."""

from pathlib import Path


def make_report(path: str | Path) -> Path:
    """Make all tables and the page of a run folder again and return the page's path.

    Raises `DataError` where there is no run folder of this d3jax.
    """
    from ..results import artifacts, tables
    from .page import write_page

    run = artifacts.RunFolder(path)
    made = tables.make_tables(run)
    tables.write_tables(run.path, made)
    return write_page(run, made)
