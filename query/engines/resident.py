"""Exact search in memory: a float32 scan by NumPy, ranked again in float64."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from query.engines.contract import Ask, Places, Ranking
from query.engines.dot_kernel import DotLoop
from query.engines.scores import ScoredRanking
from query.engines.side_by_side import cores

# Shares of the rows below which gathering the allowed ones costs less than scanning all in order.
_GATHER_BELOW = 0.15
# Scores of a batch that are held at a time.
_SCORE_BYTES = 256 << 20


class ResidentExact:
    """Scans a float32 matrix in memory.

    The scan's rounding error is bounded, so the answer is that of a float64 computation over all rows.

    Args:
        matrix: unit vectors, float32 [N, dim], rows contiguous.
        places: of the rows.
        workers: threads of the scan; None for one per core.
    """

    name = "resident exact (float32 scan, float64 ranking)"

    def __init__(self, matrix: NDArray[np.float32], places: Places, workers: int | None = None) -> None:
        self.matrix, self.places = matrix, places
        self._workers = workers or cores()
        self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="scan")
        # Both a score and the bound it is compared with may be off by the error of one dot product.
        self._slack = 2.1 * (matrix.shape[1] + 16) * 2.0**-24
        self.loop = DotLoop(matrix.size)

    def rank(self, asks: Sequence[Ask], allowed: NDArray[np.bool_] | None = None) -> Iterator[Ranking]:
        """See `Engine.rank`; the scores of a few queries at a time are held, so use each before the next."""
        rows, mask = split_allowed(allowed, _GATHER_BELOW)
        units = np.stack([ask.unit for ask in asks]).astype(np.float32)
        count = len(self.matrix) if rows is None else rows.size
        group = max(1, _SCORE_BYTES // max(1, 4 * count))
        for start in range(0, len(asks), group):
            part = units[start : start + group]
            scored = self._scan(part[0], rows)[None] if len(part) == 1 else self._scan_many(part, rows)
            for ask, scores in zip(asks[start : start + group], scored, strict=True):
                if mask is not None:
                    np.putmask(scores, ~mask, -np.inf)
                yield ScoredRanking(ask, scores, rows, self.matrix.__getitem__, self.places, self._slack)

    def _scan(self, query: NDArray[np.float32], rows: NDArray[np.int64] | None) -> NDArray[np.float32]:
        """Dot products of `query` with all rows or with `rows`, float32 [n]."""
        count = self.matrix.shape[0] if rows is None else rows.size
        scores = np.empty(count, np.float32)
        dot = self.loop.get()

        def scan_block(block: slice) -> None:
            dot(self.matrix[block] if rows is None else self.matrix[rows[block]], query, scores[block])

        step = max(4096 if rows is None else 1024, -(-count // (4 * self._workers)))
        blocks = [slice(start, min(start + step, count)) for start in range(0, count, step)]
        if len(blocks) == 1:
            scan_block(blocks[0])
        else:
            list(self._pool.map(scan_block, blocks))
        return scores

    def _scan_many(self, queries: NDArray[np.float32], rows: NDArray[np.int64] | None) -> NDArray[np.float32]:
        """Dot products of queries [B, dim], float32 [B, n]: one pass over the rows, threads are BLAS's own."""
        count = self.matrix.shape[0] if rows is None else rows.size
        scores = np.empty((len(queries), count), np.float32)
        for start in range(0, count, 8192):
            block = slice(start, min(start + 8192, count))
            part = self.matrix[block] if rows is None else self.matrix[rows[block]]
            np.matmul(queries, part.T, out=scores[:, block])
        return scores


def split_allowed(
    allowed: NDArray[np.bool_] | None, gather_below: float
) -> tuple[NDArray[np.int64] | None, NDArray[np.bool_] | None]:
    """Decide whether allowed rows are gathered (their numbers) or the others struck out (the mask)."""
    if allowed is None:
        return None, None
    count = int(np.count_nonzero(allowed))
    if count < gather_below * allowed.size:
        return np.flatnonzero(allowed), None
    return None, None if count == allowed.size else allowed
