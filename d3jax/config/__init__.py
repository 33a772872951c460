"""Configuration: frozen dataclasses, and loading them from YAML. Does not import jax."""
