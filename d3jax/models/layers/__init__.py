"""Layers of neural networks that d3jax's architectures share."""
