"""Vectors of the rows nearest to a query, kept while a table is read, so that ranking need not read them again."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from query.engines.contract import Take

# More than most searches rank: four times the usual number of hits.
_KEPT = 96


class KeptRows:
    """The rows with the best scores among those that were seen.

    Args:
        take: vectors of any rows from disk, float32 [m, dim].
        dim: length of a vector.
    """

    def __init__(self, take: Take, dim: int) -> None:
        self._take = take
        self._rows, self._scores = np.empty(0, np.int64), np.empty(0, np.float32)
        self._vectors = np.empty((0, dim), np.float32)
        self._floor = np.float32(-np.inf)

    def see(self, first: int, scores: NDArray[np.float32], block: NDArray[np.float32]) -> None:
        """Look at rows as they are read; their vectors are copied where they are worth it.

        Args:
            first: number of the first of them.
            scores: of the rows [m]; -inf for those that may not be returned.
            block: their vectors [m, dim].
        """
        found = np.flatnonzero(scores > self._floor)
        if not found.size:
            return
        found = found[_best(scores[found])]
        self._rows = np.concatenate([self._rows, first + found])
        self._scores = np.concatenate([self._scores, scores[found]])
        self._vectors = np.concatenate([self._vectors, block[found]])
        if self._rows.size >= 2 * _KEPT:
            self._trim()

    def _trim(self) -> None:
        kept = _best(self._scores)
        self._rows, self._scores, self._vectors = self._rows[kept], self._scores[kept], self._vectors[kept]
        self._floor = self._scores.min()

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Vectors of some rows, in their order [m, dim]: from disk only those that were not kept."""
        if not self._rows.size:
            return self._take(rows)
        order = np.argsort(self._rows)
        at = order[np.minimum(np.searchsorted(self._rows, rows, sorter=order), order.size - 1)]
        kept = self._rows[at] == rows
        if kept.all():
            return self._vectors[at]
        out = np.empty((rows.size, self._vectors.shape[1]), np.float32)
        out[kept] = self._vectors[at[kept]]
        out[~kept] = self._take(rows[~kept])
        return out


def _best(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """Positions of the best scores that are kept, ascending."""
    if scores.size <= _KEPT:
        return np.arange(scores.size)
    return np.sort(np.argpartition(scores, scores.size - _KEPT)[scores.size - _KEPT :])
