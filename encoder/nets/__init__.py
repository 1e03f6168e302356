"""Networks of our own, one per file."""
