"""The report page and its pictures. No jax in here."""
