"""Which tiles lie near each other in their slide."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from encoder.errors import UsageError
from encoder.neighbours import codes
from encoder.tiles import TileSource


def spatial_neighbours(slides: NDArray[np.int64], places: NDArray[np.float64], distance: float) -> NDArray[np.int32]:
    """List the tiles of the same slide that are closer than a distance, whatever their number.

    Tiles are sorted into squares of that side, so that only nine squares are searched for each.

    Args:
        slides: number of each tile's slide [N].
        places: x, y of each tile [N, 2], in any unit.
        distance: in the same unit; tiles at exactly this distance, or at none, are no neighbours.

    Returns:
        Numbers of the neighbours [N, M], ascending, then -1; M is the largest count, at least 1.
    """
    count = len(places)
    square = np.floor(places / distance).astype(np.int64)
    square -= square.min(axis=0) - 1
    columns, rows = square.max(axis=0) + 2
    keys = (slides * columns + square[:, 0]) * rows + square[:, 1]
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    pairs = []
    for offset in (dx * rows + dy for dx in (-1, 0, 1) for dy in (-1, 0, 1)):
        first = np.searchsorted(ordered, keys + offset, side="left")
        lengths = np.searchsorted(ordered, keys + offset, side="right") - first
        one = np.repeat(np.arange(count), lengths)
        within = np.arange(len(one)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        other = order[np.repeat(first, lengths) + within]
        apart = ((places[one] - places[other]) ** 2).sum(axis=1)
        near = (apart > 0) & (apart < distance**2)
        pairs.append(np.stack([one[near], other[near]]))
    one, other = np.concatenate(pairs, axis=1)
    sorting = np.lexsort((other, one))
    one, other = one[sorting], other[sorting]
    lengths = np.bincount(one, minlength=count)
    table = np.full((count, max(1, int(lengths.max(initial=0)))), -1, dtype=np.int32)
    table[one, np.arange(len(one)) - np.repeat(np.cumsum(lengths) - lengths, lengths)] = other
    return table


def source_neighbours(source: TileSource, neighbour_tiles: float) -> NDArray[np.int32]:
    """The spatial neighbours of a source's tiles, as `spatial_neighbours` lists them.

    Args:
        source: tiles with slide, position and side.
        neighbour_tiles: neighbours are closer than this many tile sides.

    Raises:
        UsageError: slides, positions or sides are not known, or no tile has a neighbour.
    """
    known = {"slide ids": source.slide_ids, "positions": source.positions_px0, "sides": source.extents_px0}
    missing = [name for name, values in known.items() if values is None]
    if source.slide_ids is None or source.positions_px0 is None or source.extents_px0 is None:
        raise UsageError(
            f"The tiles have no {' and no '.join(missing)}; sgcl learns from where tiles lie.",
            fix="Train from slides or a store, or give a tiles.csv with slide_id, x0, y0 and extent_px0; "
            "method.spatial_weight=0 trains without places.",
        )
    slides, sides = codes(source.slide_ids).numpy(), source.extents_px0
    if not (sides > 0).all():
        raise UsageError("Some tiles have a side of 0 level-0 pixels.", fix="Correct extent_px0 in tiles.csv.")
    side_of_slide = np.zeros(slides.max() + 1, dtype=np.int64)
    side_of_slide[slides] = sides
    if (other := np.flatnonzero(side_of_slide[slides] != sides)).size:
        raise UsageError(
            f"Slide {source.slide_ids[other[0]]} has tiles of different sides; how far apart they lie is then unclear.",
            fix="Give one size of tile for each slide.",
        )
    # Positions and sides are whole pixels, so that tiles three steps apart can come out a little closer.
    slack = (1 + neighbour_tiles / 2) / sides.min()
    table = spatial_neighbours(slides, source.positions_px0 / sides[:, None], neighbour_tiles - slack)
    if not (table >= 0).any():
        raise UsageError(
            f"No two tiles of a slide lie within {neighbour_tiles:g} tile sides of each other; sgcl learns from "
            "neighbours.",
            fix="Give tiles that cover tissue without gaps, or a larger method.neighbour_tiles.",
        )
    return table
