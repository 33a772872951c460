"""The configuration of studies: frozen dataclasses and the YAML reader. Does not import jax."""
