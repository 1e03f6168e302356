"""Exact search over vectors that stay on disk: one pass over the table for each batch of queries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from query.engines.contract import Ask, Places, Ranking
from query.engines.dot_kernel import DotLoop
from query.engines.kept_rows import KeptRows
from query.engines.scores import ScoredRanking

# Measured: a row that is fetched by its number costs as much as some 50 rows read in order.
_FETCH_BELOW = 0.02
_FETCH_ROWS = 4096
_SCORE_BYTES = 256 << 20


class StoredVectors(Protocol):
    """Vectors of a table on disk, in the order of its rows."""

    dim: int

    def __len__(self) -> int:
        """Rows."""

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """All vectors in order, some rows [m, dim] at a time."""

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Vectors of some rows, in their order [m, dim]."""


class StreamingExact:
    """Reads the table for every search; the answer is that of a float64 computation over all rows.

    Args:
        vectors: on disk.
        places: of the rows.
    """

    name = "streaming exact (the table is read, float64 ranking)"

    def __init__(self, vectors: StoredVectors, places: Places) -> None:
        self._vectors, self._places = vectors, places
        self._slack = 2.1 * (vectors.dim + 16) * 2.0**-24
        self.loop = DotLoop(len(vectors) * vectors.dim)

    def rank(self, asks: Sequence[Ask], allowed: NDArray[np.bool_] | None = None) -> Iterator[Ranking]:
        """See `Engine.rank`; few allowed rows are fetched by their numbers instead."""
        count = len(self._vectors)
        matching = count if allowed is None else int(np.count_nonzero(allowed))
        rows = None if allowed is None or matching > _FETCH_BELOW * count else np.flatnonzero(allowed)
        units = np.stack([ask.unit for ask in asks]).astype(np.float32)
        group = max(1, _SCORE_BYTES // max(1, 4 * (count if rows is None else matching)))
        for start in range(0, len(asks), group):
            part = asks[start : start + group]
            if rows is None:
                kept = [KeptRows(self._vectors.take, self._vectors.dim) for _ in part]
                scored = self._scores(units[start : start + group], self._vectors.blocks(), count, allowed, kept)
                takes = [near.take for near in kept]
            else:
                scored = self._scores(units[start : start + group], self._fetched(rows), rows.size)
                takes = [self._vectors.take for _ in part]
            for ask, scores, take in zip(part, scored, takes, strict=True):
                yield ScoredRanking(ask, scores, rows, take, self._places, self._slack)

    def _scores(
        self,
        units: NDArray[np.float32],
        blocks: Iterator[NDArray[np.float32]],
        count: int,
        allowed: NDArray[np.bool_] | None = None,
        kept: Sequence[KeptRows] = (),
    ) -> NDArray[np.float32]:
        """Dot products [B, n] of queries [B, dim] with the `count` rows of blocks; -inf where they are not allowed."""
        scores = np.empty((len(units), count), np.float32)
        dot = self.loop.get()
        filled = 0
        # The store's own threads read on while a block is multiplied: another one here would only take turns with them.
        for block in blocks:
            out = scores[:, filled : filled + len(block)]
            if len(units) == 1:
                dot(block, units[0], out[0])
            else:
                np.matmul(units, block.T, out=out)
            if allowed is not None:
                out[:, ~allowed[filled : filled + len(block)]] = -np.inf
            for near, found in zip(kept, out, strict=False):
                near.see(filled, found, block)
            filled += len(block)
        return scores

    def _fetched(self, rows: NDArray[np.int64]) -> Iterator[NDArray[np.float32]]:
        for start in range(0, rows.size, _FETCH_ROWS):
            yield self._vectors.take(rows[start : start + _FETCH_ROWS])
