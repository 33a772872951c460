"""Analysis of models: what their features say."""

from .features import penultimate, project, separation

__all__ = ["penultimate", "project", "separation"]
