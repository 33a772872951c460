"""Analysis of backdoored and repaired models: features, loss landscape, and forgetting."""

from .features import penultimate, project, separation

__all__ = ["penultimate", "project", "separation"]
