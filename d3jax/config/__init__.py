"""Configuration as frozen dataclasses, and how it is loaded. No jax in here."""
