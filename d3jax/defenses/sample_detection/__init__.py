"""Detectors of poisoned training samples, one file per method."""
