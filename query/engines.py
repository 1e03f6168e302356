"""Exact nearest neighbours among unit vectors in memory, behind a small engine interface."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

# A pass over 64 scores costs as much as one over their maximum, so the k-th best of the groups' maxima
# gives a lower bound of the k-th best score without sorting all of them.
_GROUP = 64
_GATHER_BELOW = 0.15
_RERANK_ROWS = 16_384


@dataclass(frozen=True)
class Hits:
    """Rows found, nearest first.

    Attributes:
        rows: row numbers in the searched matrix, int64 [m].
        distances: exact cosine distances, float64 [m].
        scanned: rows whose score was computed.
    """

    rows: NDArray[np.int64]
    distances: NDArray[np.float64]
    scanned: int


class Engine(Protocol):
    """Finds the k nearest rows."""

    name: str

    def top(
        self,
        vector: NDArray[np.floating],
        k: int,
        allowed: NDArray[np.bool_] | None = None,
        per_slide: int | None = None,
        itself: int | None = None,
    ) -> Hits:
        """Find the rows nearest to `vector` [dim]; `k` of them, or all where fewer are allowed.

        Args:
            vector: the query, of any length but zero.
            k: rows wanted.
            allowed: True for the rows that may be returned, bool [N]; None for all.
            per_slide: most rows of one slide; None for no limit.
            itself: the row that is the query; it comes first among rows at its distance.
        """


class ResidentExact:
    """Scans a float32 matrix in memory and ranks the best again in float64.

    The scan's rounding error is bounded, so every row that might belong to the answer is ranked again:
    the rows, their order and their distances are those of a float64 computation. Equal distances are
    ordered by slide, y0, x0.

    Args:
        matrix: unit vectors, float32 [N, dim], rows contiguous.
        slide_code: int32 [N]; the order of the codes is the order of the slides' ids.
        y0, x0: int32 [N], level-0 pixels.
        workers: threads of the scan; None for one per core.
    """

    name = "resident exact (float32 scan, float64 ranking)"

    def __init__(
        self,
        matrix: NDArray[np.float32],
        slide_code: NDArray[np.int32],
        y0: NDArray[np.int32],
        x0: NDArray[np.int32],
        workers: int | None = None,
    ) -> None:
        self._matrix, self._slide_code, self._y0, self._x0 = matrix, slide_code, y0, x0
        self._runs: _Runs | None = None
        cores = os.process_cpu_count() if hasattr(os, "process_cpu_count") else os.cpu_count()
        self._workers = workers or cores or 1
        self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="scan")
        # Both a score and the bound it is compared with may be off by the error of one dot product.
        self._slack = np.float32(2.1 * (matrix.shape[1] + 16) * 2.0**-24)

    def top(
        self,
        vector: NDArray[np.floating],
        k: int,
        allowed: NDArray[np.bool_] | None = None,
        per_slide: int | None = None,
        itself: int | None = None,
    ) -> Hits:
        """Find the rows nearest to `vector`; see `Engine.top`."""
        unit = vector.astype(np.float64)
        unit /= np.linalg.norm(unit)
        matching = self._matrix.shape[0] if allowed is None else int(np.count_nonzero(allowed))
        if matching == 0 or k < 1:
            return Hits(np.empty(0, np.int64), np.empty(0, np.float64), 0)
        # Few rows are gathered; many are scanned with the others struck out, which reads memory in order.
        rows: NDArray[np.int64] | None = None
        if allowed is not None and matching < _GATHER_BELOW * self._matrix.shape[0]:
            rows = np.flatnonzero(allowed)
            scores = self._scan(unit.astype(np.float32), rows)
        else:
            scores = self._scan(unit.astype(np.float32), None)
            if allowed is not None and matching < self._matrix.shape[0]:
                np.putmask(scores, ~allowed, -np.inf)
        if per_slide is None:
            found = self._best(scores, min(k, matching))
        else:
            runs = self._all_runs() if rows is None else _Runs.of(self._slide_code[rows])
            found = self._best_per_slide(scores, k, per_slide, runs)
        candidates = found if rows is None else rows[found]
        return self._rank(unit, candidates, k, per_slide, itself, int(scores.size))

    def _scan(self, query: NDArray[np.float32], rows: NDArray[np.int64] | None) -> NDArray[np.float32]:
        """Dot products of `query` with all rows or with `rows`, float32."""
        count = self._matrix.shape[0] if rows is None else rows.size
        scores = np.empty(count, np.float32)

        def scan_block(block: slice) -> None:
            part = self._matrix[block] if rows is None else self._matrix[rows[block]]
            # Measured: in threads einsum reads memory at about twice the rate of BLAS gemv.
            np.einsum("ij,j->i", part, query, out=scores[block])

        step = max(4096 if rows is None else 1024, -(-count // (4 * self._workers)))
        blocks = list(_blocks(count, step))
        if len(blocks) == 1:
            scan_block(blocks[0])
        else:
            list(self._pool.map(scan_block, blocks))
        return scores

    def _best(self, scores: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        """Positions of every score that may be among the k best."""
        usable = scores.size // _GROUP * _GROUP
        if scores.size // _GROUP < 4 * k:
            floor = np.partition(scores, scores.size - k)[scores.size - k]
            return np.flatnonzero(scores >= floor - self._slack)
        peaks = scores[:usable].reshape(-1, _GROUP).max(axis=1)
        floor = np.partition(peaks, peaks.size - k)[peaks.size - k]
        found = np.flatnonzero(scores >= floor - self._slack)
        kept = scores[found]
        floor = np.partition(kept, kept.size - k)[kept.size - k]
        return found[kept >= floor - self._slack]

    def _best_per_slide(self, scores: NDArray[np.float32], k: int, per_slide: int, runs: _Runs) -> NDArray[np.int64]:
        """Positions of every score that may be among the k best once each slide gives `per_slide` at most."""
        peaks = np.full(runs.slides, -np.inf, np.float32)
        np.maximum.at(peaks, runs.slide, np.maximum.reduceat(scores, runs.start))
        floor = np.float32(-np.inf)
        if np.count_nonzero(peaks > -np.inf) >= k:
            # The k best slides give one row each: nothing below their lowest peak can be in the answer.
            floor = np.partition(peaks, peaks.size - k)[peaks.size - k] - self._slack
        found = []
        for slide in np.flatnonzero((peaks > -np.inf) & (peaks >= floor)):
            rows = runs.rows_of(int(slide))
            own = scores[rows]
            lowest = floor
            if own.size > per_slide:
                last = np.partition(own, own.size - per_slide)[own.size - per_slide]
                lowest = max(floor, last - self._slack)
            found.append(rows[(own >= lowest) & (own > -np.inf)])
        return np.concatenate(found)

    def _rank(
        self,
        unit: NDArray[np.float64],
        candidates: NDArray[np.int64],
        k: int,
        per_slide: int | None,
        itself: int | None,
        scanned: int,
    ) -> Hits:
        distances = np.empty(candidates.size, np.float64)
        for block in _blocks(candidates.size, _RERANK_ROWS):
            distances[block] = exact_distances(unit, self._matrix[candidates[block]])
        other = np.ones(candidates.size, np.bool_)
        if itself is not None:
            other = candidates != itself
            distances[~other] = 0.0
        codes = self._slide_code[candidates]
        order = np.lexsort((self._x0[candidates], self._y0[candidates], codes, other, distances))
        if per_slide is not None:
            order = order[_rank_within(codes[order]) < per_slide]
        order = order[:k]
        return Hits(candidates[order], distances[order], scanned)

    def _all_runs(self) -> _Runs:
        if self._runs is None:
            self._runs = _Runs.of(self._slide_code)
        return self._runs


@dataclass(frozen=True)
class _Runs:
    """Stretches of consecutive rows of one slide, as they lie in a matrix."""

    start: NDArray[np.int64]
    stop: NDArray[np.int64]
    slide: NDArray[np.int64]
    slides: int

    @classmethod
    def of(cls, slide_code: NDArray[np.int32]) -> _Runs:
        edges = np.flatnonzero(np.diff(slide_code)) + 1
        start = np.concatenate(([0], edges)).astype(np.int64)
        stop = np.append(edges, slide_code.size).astype(np.int64)
        codes, slide = np.unique(slide_code[start], return_inverse=True)
        return cls(start, stop, slide, codes.size)

    def rows_of(self, slide: int) -> NDArray[np.int64]:
        parts = np.flatnonzero(self.slide == slide)
        return np.concatenate([np.arange(self.start[part], self.stop[part]) for part in parts])


def exact_distances(unit: NDArray[np.float64], rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """Cosine distances of a unit vector [dim] to `rows` [M, dim], computed in float64.

    Each row is reduced by itself, so equal rows have equal distances wherever they lie.
    """
    wide = rows.astype(np.float64)
    norms = np.sqrt((wide * wide).sum(axis=1))
    cosines = (wide * unit).sum(axis=1) / np.where(norms > 0, norms, 1.0)
    return np.clip(1.0 - cosines, 0.0, 2.0)


def _rank_within(codes: NDArray[np.int32]) -> NDArray[np.int64]:
    """For each element, how many equal ones stand before it."""
    order = np.argsort(codes, kind="stable")
    ordered = codes[order]
    first = np.searchsorted(ordered, ordered, side="left")
    ranks = np.empty(codes.size, np.int64)
    ranks[order] = np.arange(codes.size) - first
    return ranks


def _blocks(count: int, step: int) -> Iterator[slice]:
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))
