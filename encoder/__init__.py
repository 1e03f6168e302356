"""Pixels to vectors: contract, registry, training."""
