"""Stain mathematics: optical densities, separation of stains, normalisation."""
