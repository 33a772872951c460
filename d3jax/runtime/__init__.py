"""Services around a computation: compilation, devices, processes, checkpoints and files."""
