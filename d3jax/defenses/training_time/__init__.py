"""Training-time defences, one file per method."""
