"""The contracts that every part of d3jax is written against."""
