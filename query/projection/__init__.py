"""Maps: vectors in two dimensions, drawn, coloured, and chosen from."""
