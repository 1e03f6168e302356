"""Ways to find the nearest vectors, behind one interface."""
