"""The kinds of nodes that a study computes, one file for each kind."""
