"""Analysis of models: their features, the loss landscape between them, and forgetting."""

from .features import penultimate, project, separation

__all__ = ["penultimate", "project", "separation"]
