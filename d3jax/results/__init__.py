"""The results of a study: files of a run folder, tables, summaries and comparisons. No jax."""
