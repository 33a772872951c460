"""The study package: functions that check a study's config and run it into a run folder."""

from .run import REGISTRIES, check_study, run_study

__all__ = ["REGISTRIES", "check_study", "run_study"]
