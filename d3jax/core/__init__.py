"""Types and helpers that every other part of d3jax uses: contracts, errors, losses, random keys."""
