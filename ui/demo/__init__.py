"""The demo: slides in, a page of similar tissue out."""
