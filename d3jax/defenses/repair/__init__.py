"""Post-training repairs, one file per method."""
