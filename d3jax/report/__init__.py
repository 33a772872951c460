"""The report page and its figures, made from a run folder alone, without jax."""

from pathlib import Path


def make_report(path: str | Path) -> Path:
    """Write all tables and the report page of a run folder again; return the page's path.

    Raises `DataError` if `path` is not a run folder of this d3jax version.
    """
    from ..results import artifacts, tables
    from .page import write_page

    run = artifacts.RunFolder(path)
    made = tables.make_tables(run)
    tables.write_tables(run.path, made)
    return write_page(run, made)
