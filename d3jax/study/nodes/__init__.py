"""The kinds of nodes (computations of a study), one file for each kind."""
