"""A query of several vectors: a row's distance is the one to the nearest of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from query.engines.contract import Ask, Hits, Places, Ranking, Take, exact_distances

_BLOCK_ROWS = 4096
# Far above the rounding of a float64 product, far below what tells vectors apart.
_SLACK = 1e-9


class NearestOf:
    """Merges the rankings of several vectors.

    The best rows by their nearest vector are among the best of each vector: a row that stands before
    another for its own nearest vector stands before it in the merged order too.

    Args:
        rankings: of each vector.
        places: of all rows of the table.
    """

    def __init__(self, rankings: Sequence[Ranking], places: Places) -> None:
        self._rankings, self._places = list(rankings), places

    @property
    def scanned(self) -> int:
        """Rows compared, each once per vector."""
        return sum(ranking.scanned for ranking in self._rankings)

    def best(self, count: int) -> Hits:
        """See `Ranking.best`."""
        parts = [ranking.best(count) for ranking in self._rankings]
        rows = np.concatenate([part.rows for part in parts])
        distances = np.concatenate([part.distances for part in parts])
        places = self._places
        order = np.lexsort((places.x0[rows], places.y0[rows], places.slide_code[rows], distances))
        _, first = np.unique(rows[order], return_index=True)
        kept = order[np.sort(first)][:count]
        return Hits(rows[kept], distances[kept])

    def strike(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> None:
        """See `Ranking.strike`."""
        for ranking in self._rankings:
            ranking.strike(rows)


def nearest_distances(asks: Sequence[Ask], rows: NDArray[np.int64], take: Take) -> NDArray[np.float64]:
    """Exact distances of rows to the nearest of several vectors, float64 [m]: those that a search gives.

    Args:
        asks: at least one.
        rows: int64 [m].
        take: vectors of rows, float32 [m, dim]; asked for a part of the rows at a time.
    """
    units = np.stack([ask.unit for ask in asks])
    distances = np.full(rows.size, np.inf)
    for start in range(0, rows.size, _BLOCK_ROWS):
        part = rows[start : start + _BLOCK_ROWS]
        vectors = take(part)
        if len(units) == 1:
            distances[start : start + part.size] = exact_distances(units[0], vectors)
            continue
        cosines = vectors @ units.T  # in float64, as the units are
        row, ask = np.nonzero(cosines >= cosines.max(axis=1, keepdims=True) - _SLACK)
        np.minimum.at(distances, start + row, exact_distances(units[ask], vectors[row]))
    for one in asks:
        if one.itself is not None:
            distances[rows == one.itself] = 0.0
    return distances
