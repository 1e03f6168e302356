"""Vectors of chosen tiles with what is known of the tiles and their slides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from encoder.errors import QueryError
from indexer.grid import tile_key
from query.guard import nearest_name
from query.room import Room


@dataclass(frozen=True)
class Vectors:
    """Vectors with what is known of their tiles.

    Attributes:
        matrix: unit vectors, float32 [N, dim], read-only.
        table: the asked columns, row-aligned.
    """

    matrix: NDArray[np.float32]
    table: pa.Table


def tile_vectors(room: Room, where: str | None, columns: Sequence[str]) -> Vectors:
    """Vectors and columns of the tiles that match; see `Cohort.vectors`.

    Raises:
        QueryError: the filter or a column is wrong, or the vectors do not fit the memory budget.
    """
    rows, slides = room.rows, room.slides
    picked = None if where is None else np.flatnonzero(room.filter.mask(where))
    tiles, codes = (
        (rows.tiles, rows.slide_code) if picked is None else (rows.tiles.take(picked), rows.slide_code[picked])
    )
    data = {}
    for name in columns:
        if name in tiles.column_names:
            data[name] = tiles[name]
        elif name in slides.column_names:
            data[name] = slides[name].take(pa.array(codes))
        elif name == "tile_key":
            ids = slides["slide_id"].take(pa.array(codes)).to_pylist()
            places = zip(ids, tiles["x0"].to_pylist(), tiles["y0"].to_pylist(), strict=True)
            data[name] = pa.array([tile_key(*place) for place in places], pa.string())
        else:
            known = ["tile_key", *tiles.column_names, *slides.column_names]
            raise QueryError(f"There is no column {name!r}.", nearest_name(name, known))
    matrix = (room.matrix() if picked is None else room.take(picked)).view()
    matrix.flags.writeable = False
    return Vectors(matrix, pa.table(data))
