"""Detectors of backdoored models, one file per method."""
