"""The report page and its pictures. No jax in here."""


def make_report(path):
    """Make tables and page of a run folder."""
    from ..results.artifacts import RunFolder
    from ..results.tables import make_tables, write_tables

    run = RunFolder(path)
    write_tables(run.path, make_tables(run))
    return path / "report.html"
