"""Exact search over vectors that stay on disk: one pass over the table for each batch of queries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from query.engines.contract import Ask, Places, Ranking
from query.engines.dot_kernel import DotLoop
from query.engines.held_blocks import HeldBlocks
from query.engines.scores import ScoredRanking
from query.engines.side_by_side import parts_at_a_time, side_by_side

# Measured: a row that is fetched by its number costs as much as some 50 rows read in order.
_FETCH_BELOW = 0.02
_FETCH_ROWS = 4096
_SCORE_BYTES = 256 << 20
# Measured: to fetch the best rows takes 2 to 4 ms, as long as a pass over some ten megabytes. To hold vectors of a
# larger table costs more than that: its memory is always new.
_HELD_BYTES = 64 << 20

# Vectors of rows that follow each other [m, dim], after the number of the first.
Numbered = tuple[int, NDArray[np.float32]]


class StoredVectors(Protocol):
    """Vectors of a table on disk, in the order of its rows."""

    dim: int

    def __len__(self) -> int:
        """Rows."""

    def parts(self, most: int) -> Sequence[Iterator[Numbered]]:
        """All vectors in at most `most` parts, which threads may read side by side."""

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
        self._small = 4 * len(vectors) * vectors.dim <= _HELD_BYTES
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
                held = HeldBlocks(self._vectors.dim) if self._small else None
                # A product for several queries has threads of its own.
                parts = self._vectors.parts(parts_at_a_time() if len(part) == 1 else 1)
                scored = self._scores(units[start : start + group], parts, count, allowed, held)
                take = self._vectors.take if held is None else held.take
            else:
                scored = self._scores(units[start : start + group], [self._fetched(rows)], rows.size)
                take = self._vectors.take
            for ask, scores in zip(part, scored, strict=True):
                yield ScoredRanking(ask, scores, rows, take, self._places, self._slack)

    def _scores(
        self,
        units: NDArray[np.float32],
        parts: Sequence[Iterator[Numbered]],
        count: int,
        allowed: NDArray[np.bool_] | None = None,
        held: HeldBlocks | None = None,
    ) -> NDArray[np.float32]:
        """Dot products [B, n] of queries [B, dim] with the `count` rows of parts; -inf where they are not allowed."""
        scores = np.empty((len(units), count), np.float32)
        dot = self.loop.get()

        def multiply(part: Iterator[Numbered]) -> None:
            # The store's own threads read on meanwhile.
            for first, block in part:
                out = scores[:, first : first + len(block)]
                if len(units) == 1:
                    dot(block, units[0], out[0])
                else:
                    np.matmul(units, block.T, out=out)
                if allowed is not None:
                    out[:, ~allowed[first : first + len(block)]] = -np.inf
                if held is not None:
                    held.add(first, block)

        side_by_side(multiply, parts)
        return scores

    def _fetched(self, rows: NDArray[np.int64]) -> Iterator[Numbered]:
        for start in range(0, rows.size, _FETCH_ROWS):
            yield start, self._vectors.take(rows[start : start + _FETCH_ROWS])
