"""Studies: a graph of nodes from a config to a run folder."""

from .run import REGISTRIES, check_study, run_study

__all__ = ["REGISTRIES", "check_study", "run_study"]
