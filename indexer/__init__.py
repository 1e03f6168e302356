"""Slides to rows: pixels, tissue, grids, the store, the pipeline."""
