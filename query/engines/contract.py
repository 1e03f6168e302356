"""What every engine gives: rows in the order of their distance, as many as are asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

_RERANK_ROWS = 16_384
# Measured: vectors in float64 that stay in the processor's cache are compared three times faster.
_CACHED_ROWS = 1024

Take = Callable[[NDArray[np.int64]], NDArray[np.float32]]


@dataclass(frozen=True)
class Hits:
    """Rows found, nearest first; equal distances in the order of slide, y0, x0.

    Attributes:
        rows: row numbers in the searched table, int64 [m].
        distances: exact cosine distances, float64 [m].
    """

    rows: NDArray[np.int64]
    distances: NDArray[np.float64]

    def __len__(self) -> int:
        return int(self.rows.size)

    @classmethod
    def none(cls) -> Hits:
        """No hit."""
        return cls(np.empty(0, np.int64), np.empty(0, np.float64))


@dataclass(frozen=True)
class Places:
    """Where rows lie, which orders equal distances; all arrays are row-aligned.

    Attributes:
        slide_code: int32 [N]; the order of the codes is the order of the slides' ids.
        y0, x0: int32 [N], level-0 pixels.
    """

    slide_code: NDArray[np.int32]
    y0: NDArray[np.int32]
    x0: NDArray[np.int32]


@dataclass(frozen=True)
class Ask:
    """One vector to be compared.

    Attributes:
        vector: of any length [dim].
        itself: the row that is the query; it comes first among rows at its distance, which is 0.
    """

    vector: NDArray[np.floating]
    itself: int | None = None

    @cached_property
    def unit(self) -> NDArray[np.float64]:
        """The vector's direction; a vector of zeros has none and lies at distance 1 from all."""
        wide = self.vector.astype(np.float64)
        largest = np.abs(wide).max(initial=0.0)
        if not largest:
            return wide
        wide = wide / largest  # or the squares of very large and small numbers would be lost
        return wide / math.sqrt(wide.dot(wide))


class Ranking(Protocol):
    """The rows of one search in the order of their distance."""

    @property
    def scanned(self) -> int:
        """Rows whose distance, or an estimate of it, was computed so far."""

    def best(self, count: int) -> Hits:
        """The `count` nearest of the rows that are allowed and not struck out; all where there are fewer."""

    def strike(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> None:
        """Return these rows no more: row numbers, or True for each row of the table."""


class Engine(Protocol):
    """Ranks the rows of one table for queries."""

    @property
    def name(self) -> str:
        """What it is, in words."""

    def rank(self, asks: Sequence[Ask], allowed: NDArray[np.bool_] | None = None) -> Iterator[Ranking]:
        """Compare vectors with the table in as few passes over it as memory allows.

        The scores of a few queries are held at a time: where there are many, use each ranking before the next.

        Args:
            asks: the queries.
            allowed: True for the rows that may be returned, bool [N]; None for all.
        """


def exact_distances(unit: NDArray[np.float64], rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """Cosine distances of a unit vector [dim], or of one for each row [M, dim], to `rows` [M, dim], in float64.

    Each row is reduced by itself, so equal rows have equal distances wherever they lie.
    """
    distances = np.empty(len(rows), np.float64)
    for start in range(0, len(rows), _CACHED_ROWS):
        block = slice(start, start + _CACHED_ROWS)
        wide = rows[block].astype(np.float64)
        norms = np.sqrt((wide * wide).sum(axis=1))
        cosines = (wide * (unit if unit.ndim == 1 else unit[block])).sum(axis=1) / np.where(norms > 0, norms, 1.0)
        distances[block] = np.minimum(np.maximum(1.0 - cosines, 0.0), 2.0)  # half of what `clip` takes for few
    return distances


def rank_exactly(ask: Ask, rows: NDArray[np.int64], take: Take, places: Places, count: int) -> Hits:
    """Order candidate rows by their exact distances and keep the first `count`.

    Args:
        ask: the query.
        rows: candidates, int64 [m].
        take: vectors of rows, float32 [m, dim]; asked for a part of the candidates at a time.
        places: of all rows of the table.
    """
    distances = np.empty(rows.size, np.float64)
    unit = ask.unit
    for start in range(0, rows.size, _RERANK_ROWS):
        block = slice(start, start + _RERANK_ROWS)
        distances[block] = exact_distances(unit, take(rows[block]))
    other = np.ones(rows.size, np.bool_)
    if ask.itself is not None:
        other = rows != ask.itself
        distances[~other] = 0.0
    order = np.lexsort((places.x0[rows], places.y0[rows], places.slide_code[rows], other, distances))[:count]
    return Hits(rows[order], distances[order])
