"""The kinds of nodes, one file per kind."""
