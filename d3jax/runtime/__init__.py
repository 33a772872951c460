"""What surrounds a computation: compilation, devices, processes, files."""
