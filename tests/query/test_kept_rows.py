"""Rows kept from a pass: the same vectors as from disk, which is asked only for the others."""

from __future__ import annotations

import numpy as np
import pytest

from query.engines import kept_rows
from query.engines.contract import Ask, Places
from query.engines.kept_rows import KeptRows
from query.engines.streaming import StreamingExact


class Table:
    """Vectors in blocks of uneven length, which remembers what was asked for by number."""

    def __init__(self, matrix):
        self.matrix, self.dim, self.asked = matrix, matrix.shape[1], []

    def __len__(self):
        return len(self.matrix)

    def blocks(self):
        for start in range(0, len(self.matrix), 70):
            yield self.matrix[start : start + 70]

    def take(self, rows):
        self.asked += rows.tolist()
        return self.matrix[rows]


def table(rows=1000, dim=8):
    matrix = np.random.default_rng(rows).standard_normal((rows, dim)).astype(np.float32)
    return Table(matrix / np.linalg.norm(matrix, axis=1, keepdims=True))


@pytest.mark.parametrize("most", [1, 5, 96])
def test_the_best_are_kept_and_the_rest_is_read(most, monkeypatch):
    monkeypatch.setattr(kept_rows, "_KEPT", most)
    held = table()
    scores = held.matrix @ held.matrix[3]
    scores[::4] = -np.inf
    near, filled = KeptRows(held.take, held.dim), 0
    for block in held.blocks():
        near.see(filled, scores[filled : filled + len(block)], block)
        filled += len(block)
    best = np.argsort(-scores)[:most]
    np.testing.assert_array_equal(near.take(best), held.matrix[best])
    assert held.asked == []
    rows = np.random.default_rng(0).permutation(1000)[:200]
    np.testing.assert_array_equal(near.take(rows), held.matrix[rows])
    assert len(held.asked) == np.count_nonzero(~np.isin(rows, near._rows)) and len(near._rows) < 2 * most + 1


def test_without_a_row_all_is_read():
    held = table(10)
    near = KeptRows(held.take, held.dim)
    near.see(0, np.full(10, -np.inf, np.float32), held.matrix)
    np.testing.assert_array_equal(near.take(np.array([4, 2])), held.matrix[[4, 2]])


@pytest.mark.parametrize("filtered", [False, True])
def test_a_search_from_disk_reads_no_row_twice(filtered):
    held = table()
    zeros = np.zeros(1000, np.int32)
    engine = StreamingExact(held, Places(zeros, zeros, np.arange(1000, dtype=np.int32)))
    allowed = np.arange(1000) % 3 > 0 if filtered else None
    asks = [Ask(held.matrix[row]) for row in (5, 700)]
    for ask, ranking in zip(asks, engine.rank(asks, allowed), strict=True):
        scores = held.matrix.astype(np.float64) @ ask.unit
        if allowed is not None:
            scores[~allowed] = -np.inf
        np.testing.assert_array_equal(ranking.best(20).rows, np.argsort(-scores)[:20])
        assert held.asked == []
        np.testing.assert_array_equal(ranking.best(300).rows, np.argsort(-scores)[:300])
        assert held.asked
        held.asked.clear()
