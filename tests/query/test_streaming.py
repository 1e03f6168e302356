"""A pass over a table on disk: in parts side by side, with the vectors of a small one held."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest

from query.engines import streaming
from query.engines.contract import Ask, Places
from query.engines.held_blocks import HeldBlocks
from query.engines.side_by_side import side_by_side
from query.engines.streaming import StreamingExact


class Table:
    """Vectors in parts of uneven length, which remembers what was asked for by number."""

    def __init__(self, matrix):
        self.matrix, self.dim, self.asked = matrix, matrix.shape[1], []

    def __len__(self):
        return len(self.matrix)

    def parts(self, most):
        cuts = [0, *range(len(self) // most + 3, len(self), len(self) // most + 3), len(self)]
        return [self._part(*ends) for ends in itertools.pairwise(cuts)]

    def _part(self, first, end):
        for start in range(first, end, 70):
            yield start, self.matrix[start : min(start + 70, end)]

    def take(self, rows):
        self.asked += rows.tolist()
        return self.matrix[rows]


def table(rows=1000, dim=8):
    matrix = np.random.default_rng(rows).standard_normal((rows, dim)).astype(np.float32)
    return Table(matrix / np.linalg.norm(matrix, axis=1, keepdims=True))


@pytest.mark.parametrize("parts", [1, 2, 5])
@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("share", [None, 0.5])
def test_a_pass_finds_the_same_in_any_number_of_parts(parts, held, share, monkeypatch):
    monkeypatch.setattr(streaming, "parts_at_a_time", lambda: parts)
    monkeypatch.setattr(streaming, "_HELD_BYTES", 1 << 20 if held else 0)
    stored = table()
    allowed = None if share is None else np.random.default_rng(5).random(1000) < share
    zeros = np.zeros(1000, np.int32)
    engine = StreamingExact(stored, Places(zeros, zeros, np.arange(1000, dtype=np.int32)))
    asks = [Ask(stored.matrix[3]), Ask(stored.matrix[10] + stored.matrix[20])]
    for one in ([asks[0]], [asks[1]], asks):
        for ask, ranking in zip(one, engine.rank(one, allowed), strict=True):
            cosines = stored.matrix.astype(np.float64) @ ask.unit
            if allowed is not None:
                cosines[~allowed] = -np.inf
            hits = ranking.best(12)
            np.testing.assert_array_equal(hits.rows, np.argsort(-cosines)[:12])
            np.testing.assert_allclose(hits.distances, 1 - cosines[hits.rows], atol=1e-6)
    assert bool(stored.asked) is not held  # vectors of a small table are not read again


def test_held_vectors_are_found_by_their_numbers():
    matrix = table(50).matrix
    held = HeldBlocks(8)
    for first, end in ((30, 50), (0, 0), (0, 12), (12, 12), (12, 30)):
        held.add(first, matrix[first:end])
    rows = np.array([49, 0, 12, 12, 29, 30, 11])
    np.testing.assert_array_equal(held.take(rows), matrix[rows])
    assert held.take(np.empty(0, np.int64)).shape == (0, 8)


def test_what_fails_in_one_part_ends_the_others_and_is_raised():
    begun, taken = threading.Event(), []

    def endless():
        yield from itertools.count()

    def broken():
        begun.wait(10)
        raise OSError("the disk is gone")
        yield

    def work(items):
        for item in items:
            taken.append(item)
            begun.set()

    with pytest.raises(OSError, match="the disk is gone"):
        side_by_side(work, [endless(), broken()])
    assert taken


def test_one_part_needs_no_thread():
    seen = []
    side_by_side(lambda items: seen.append((threading.current_thread(), list(items))), [[1, 2]])
    assert seen == [(threading.main_thread(), [1, 2])]
