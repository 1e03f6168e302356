"""Exact ranking of rows whose scores are known up to a bounded error."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from query.engines.contract import Ask, Hits, Places, Take, rank_exactly

# A pass over 64 scores costs as much as one over their maximum, so the k-th best of the groups' maxima
# gives a lower bound of the k-th best score without sorting all of them.
_GROUP = 64


class ScoredRanking:
    """Ranks by scores that are off by at most `slack / 2` each.

    Every row whose score lies within the slack of the last that is wanted is ranked again in float64: the
    rows, their order and their distances are those of a float64 computation over all rows.

    Args:
        ask: the query.
        scores: approximate cosines, float32 [n]; -inf for rows that may not be returned. Taken over.
        rows: row number of each score, ascending; None where they are all rows in order.
        take: vectors of rows, float32 [m, dim].
        places: of all rows of the table.
        slack: twice the largest error of a score.
    """

    def __init__(
        self,
        ask: Ask,
        scores: NDArray[np.float32],
        rows: NDArray[np.int64] | None,
        take: Take,
        places: Places,
        slack: float,
    ) -> None:
        self._ask, self._scores, self._rows, self._take, self._places = ask, scores, rows, take, places
        self._slack = np.float32(slack)

    @property
    def scanned(self) -> int:
        """Rows whose score was computed."""
        return int(self._scores.size)

    def best(self, count: int) -> Hits:
        """See `Ranking.best`."""
        if count < 1 or not self._scores.size:
            return Hits.none()
        found = self._candidates(min(count, self._scores.size))
        rows = found if self._rows is None else self._rows[found]
        return rank_exactly(self._ask, rows, self._take, self._places, count)

    def strike(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> None:
        """See `Ranking.strike`."""
        if rows.dtype == np.bool_:
            self._scores[rows if self._rows is None else rows[self._rows]] = -np.inf
        elif self._rows is None:
            self._scores[rows] = -np.inf
        elif self._rows.size:
            at = np.minimum(np.searchsorted(self._rows, rows), self._rows.size - 1)
            self._scores[at[self._rows[at] == rows]] = -np.inf

    def _candidates(self, count: int) -> NDArray[np.int64]:
        """Positions of every score that may be among the best."""
        scores = self._scores
        usable = scores.size // _GROUP * _GROUP
        if scores.size // _GROUP < 4 * count:
            floor = _largest(scores, count)
            return np.flatnonzero((scores >= floor - self._slack) & (scores > -np.inf))
        floor = _largest(scores[:usable].reshape(-1, _GROUP).max(axis=1), count)
        found = np.flatnonzero((scores >= floor - self._slack) & (scores > -np.inf))
        if found.size <= count:
            return found
        kept = scores[found]
        return found[kept >= _largest(kept, count) - self._slack]


def _largest(values: NDArray[np.float32], count: int) -> np.float32:
    """The count-th largest."""
    return np.partition(values, values.size - count)[values.size - count]
