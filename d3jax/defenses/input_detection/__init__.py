"""Detectors of triggered inputs at test time, one file per method."""
