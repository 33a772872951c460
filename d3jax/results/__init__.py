"""What a run leaves, and the tables made of it. No jax in here."""
