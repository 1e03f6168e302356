"""A query of several vectors: a row's distance is the one to the nearest of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from query.engines.contract import Hits, Places, Ranking


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
