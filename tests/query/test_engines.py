"""The fast engines against a plain float64 loop."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from query.engines.contract import Ask, Places
from query.engines.faiss_ivf import FaissIvf
from query.engines.half import HalfExact
from query.engines.nearest_of import NearestOf
from query.engines.resident import ResidentExact
from query.engines.streaming import StreamingExact


def clustered(rng, rows, dim, clusters=5, spread=0.2):
    centres = rng.standard_normal((clusters, dim))
    vectors = centres[rng.integers(clusters, size=rows)] + spread * rng.standard_normal((rows, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def table(rng, rows, dim=24, slides=4, duplicates=0, contiguous=True):
    matrix = clustered(rng, rows, dim)
    for _ in range(duplicates):
        matrix[rng.integers(rows)] = matrix[rng.integers(rows)]
    slide = rng.integers(slides, size=rows).astype(np.int32)
    if contiguous:
        slide.sort()
    y0 = rng.integers(6, size=rows).astype(np.int32)
    x0 = np.arange(rows, dtype=np.int32)
    rng.shuffle(x0)
    return matrix, Places(slide, y0, x0)


def oracle(matrix, places, vector, k, allowed=None, itself=None):
    """One row at a time, sorted as a whole, in plain Python."""
    query = np.asarray(vector, np.float64)
    query = query / np.sqrt(float((query * query).sum()))
    scored = []
    for row in range(len(matrix)):
        if allowed is not None and not allowed[row]:
            continue
        wide = matrix[row].astype(np.float64)
        distance = 1.0 - float((wide * query).sum()) / np.sqrt(float((wide * wide).sum()))
        distance = 0.0 if row == itself else min(2.0, max(0.0, distance))
        place = (int(places.slide_code[row]), int(places.y0[row]), int(places.x0[row]))
        scored.append((distance, row != itself, *place, row))
    scored.sort()
    return [item[-1] for item in scored[:k]], [item[0] for item in scored[:k]]


class Blocks:
    """Vectors that come in small blocks, as from disk."""

    def __init__(self, matrix, size=37):
        self._matrix, self._size, self.dim = matrix, size, matrix.shape[1]
        self.taken = self.passes = 0

    def __len__(self):
        return len(self._matrix)

    def parts(self, most):
        self.passes += 1
        cuts = np.linspace(0, len(self._matrix), most + 1).astype(int)
        return [self._part(*ends) for ends in itertools.pairwise(cuts)]

    def _part(self, first, end):
        for start in range(first, end, self._size):
            yield start, self._matrix[start : min(start + self._size, end)]

    def take(self, rows):
        self.taken += len(rows)
        return self._matrix[rows]


def every_list(matrix, places):
    index = FaissIvf.build(matrix, places)
    return index.probing(None)


CPU = torch.device("cpu")
EXACT = {
    "resident": lambda matrix, places: ResidentExact(matrix, places, workers=2),
    "half": lambda matrix, places: HalfExact(matrix, places, CPU),
    "half with scores on the device": lambda matrix, places: HalfExact(matrix, places, CPU, on_device=True),
    "streaming": lambda matrix, places: StreamingExact(Blocks(matrix), places),
}


@pytest.mark.parametrize("name", sorted(EXACT))
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(1, 400),
    k=st.integers(1, 60),
    share=st.sampled_from([None, 0.0, 0.01, 0.02, 0.3, 0.9, 1.0]),
    struck=st.sampled_from([None, "rows", "mask"]),
    duplicates=st.sampled_from([0, 5, 200]),
    contiguous=st.booleans(),
    queries=st.integers(1, 3),
    from_table=st.booleans(),
)
def test_exact_engines_equal_the_oracle(
    name, seed, rows, k, share, struck, duplicates, contiguous, queries, from_table
):
    rng = np.random.default_rng(seed)
    matrix, places = table(rng, rows, 24, 4, duplicates, contiguous)
    allowed = None if share is None else rng.random(rows) < share
    own = [int(rng.integers(rows)) if from_table else None for _ in range(queries)]
    asks = [Ask(rng.standard_normal(24) if row is None else matrix[row], row) for row in own]
    for ask, ranking in zip(asks, EXACT[name](matrix, places).rank(asks, allowed), strict=True):
        left = np.ones(rows, np.bool_) if allowed is None else allowed.copy()
        if struck is not None:
            gone = rng.random(rows) < 0.2
            first = ranking.best(5)  # striking out comes after a first look, as it does in a search
            assert first.rows.tolist() == oracle(matrix, places, ask.vector, 5, left, ask.itself)[0]
            ranking.strike(gone if struck == "mask" else np.flatnonzero(gone))
            left &= ~gone
        hits = ranking.best(k)
        wanted_rows, wanted = oracle(matrix, places, ask.vector, k, left, ask.itself)
        assert hits.rows.tolist() == wanted_rows
        np.testing.assert_allclose(hits.distances, wanted, rtol=0, atol=1e-14)


def test_large_scan_equals_oracle_order():
    rng = np.random.default_rng(3)
    matrix, places = table(rng, 60_000, 16, slides=50, duplicates=3000)
    engines = [build(matrix, places) for build in EXACT.values()]
    for row in (0, 31_000, 59_999):
        wide = matrix.astype(np.float64)
        unit = wide[row] / np.linalg.norm(wide[row])
        distances = np.clip(1 - (wide * unit).sum(axis=1) / np.sqrt((wide * wide).sum(axis=1)), 0, 2)
        distances[row] = 0.0
        other = np.arange(60_000) != row
        order = np.lexsort((places.x0, places.y0, places.slide_code, other, distances))[:100]
        for engine in engines:
            (ranking,) = engine.rank([Ask(matrix[row], row)])
            hits = ranking.best(100)
            assert hits.rows.tolist() == order.tolist(), engine.name
            assert hits.rows[0] == row and hits.distances[0] == 0.0
            assert ranking.scanned == 60_000


@pytest.mark.parametrize("name", ["resident", "streaming"])
def test_the_compiled_loop_answers_as_numpys(name, monkeypatch):
    monkeypatch.setattr("query.engines.dot_kernel.COMPILE_FROM", 0)
    rng = np.random.default_rng(5)
    matrix, places = table(rng, 900, dim=37, duplicates=9)
    engine = ResidentExact(matrix, places) if name == "resident" else StreamingExact(Blocks(matrix), places)
    vector = rng.standard_normal(37)
    expected = oracle(matrix, places, vector, 12)
    for _ in range(2):
        assert next(iter(engine.rank([Ask(vector)]))).best(12).rows.tolist() == expected[0]
    kernel = engine.loop.compiling.result(60)
    assert engine.loop.get() is kernel
    scores = np.empty(900, np.float32)
    kernel(matrix, vector.astype(np.float32), scores)
    assert np.allclose(scores, matrix.astype(np.float64) @ vector, atol=1e-5)
    for allowed in (None, rng.random(900) < 0.05, rng.random(900) < 0.7):
        hits = next(iter(engine.rank([Ask(vector)], allowed))).best(12)
        rows, distances = oracle(matrix, places, vector, 12, allowed)
        assert hits.rows.tolist() == rows and np.allclose(hits.distances, distances, atol=1e-15)


def test_a_loop_that_cannot_be_compiled_leaves_numpys(monkeypatch):
    def broken():
        raise RuntimeError("no compiler")

    monkeypatch.setattr("query.engines.dot_kernel.COMPILE_FROM", 0)
    monkeypatch.setattr("query.engines.dot_kernel.dot_rows", broken)
    rng = np.random.default_rng(6)
    matrix, places = table(rng, 200)
    engine = ResidentExact(matrix, places)
    vector = rng.standard_normal(24)
    for _ in range(3):
        hits = next(iter(engine.rank([Ask(vector)]))).best(5)
        assert hits.rows.tolist() == oracle(matrix, places, vector, 5)[0]
    assert isinstance(engine.loop.compiling.exception(60), RuntimeError)


@pytest.mark.parametrize("name", sorted(EXACT))
def test_all_rows_equal_are_ordered_by_place(name):
    matrix = np.tile(np.full((1, 8), 8**-0.5, np.float32), (5000, 1))
    slide = np.arange(5000, dtype=np.int32) % 7
    y0 = (np.arange(5000, dtype=np.int32) * 31) % 64
    x0 = np.arange(5000, dtype=np.int32)[::-1].copy()
    (ranking,) = EXACT[name](matrix, Places(slide, y0, x0)).rank([Ask(matrix[0])])
    hits = ranking.best(25)
    assert hits.rows.tolist() == np.lexsort((x0, y0, slide))[:25].tolist()
    assert np.ptp(hits.distances) == 0


@pytest.mark.parametrize("name", sorted(EXACT))
def test_differences_below_float32_are_ranked(name):
    """Two vectors that a float32 dot product cannot tell apart are still in the right order."""
    rng = np.random.default_rng(0)
    base = rng.standard_normal(384)
    base /= np.linalg.norm(base)
    steps = np.array([3e-4, 1e-4, 2e-4, 0.0])
    aside = rng.standard_normal(384)
    aside -= aside @ base * base
    aside /= np.linalg.norm(aside)
    matrix = (base[None] * np.cos(steps)[:, None] + aside[None] * np.sin(steps)[:, None]).astype(np.float32)
    zeros = np.zeros(4, np.int32)
    engine = EXACT[name](matrix, Places(zeros, zeros, np.arange(4, dtype=np.int32)))
    (ranking,) = engine.rank([Ask(base)])
    assert ranking.best(1).rows.tolist() == [3]
    assert ranking.best(4).rows.tolist() == [3, 1, 2, 0]


@pytest.mark.parametrize("share", [0.001, 0.05, 0.5])
def test_few_matching_rows_are_gathered(share):
    rng = np.random.default_rng(1)
    matrix, places = table(rng, 20_000, 8)
    allowed = rng.random(20_000) < share
    (ranking,) = ResidentExact(matrix, places, workers=2).rank([Ask(matrix[0])], allowed)
    hits = ranking.best(7)
    assert hits.rows.size == 7 and allowed[hits.rows].all()
    assert ranking.scanned == (20_000 if share == 0.5 else int(allowed.sum()))


def test_streaming_reads_the_table_once_for_a_batch_and_fetches_few_rows():
    rng = np.random.default_rng(2)
    matrix, places = table(rng, 5000, 8)
    blocks = Blocks(matrix)
    for ranking in StreamingExact(blocks, places).rank([Ask(matrix[row]) for row in range(9)]):
        ranking.best(3)
    assert blocks.passes == 1
    allowed = np.zeros(5000, np.bool_)
    allowed[[3, 77, 4000]] = True
    (ranking,) = StreamingExact(blocks, places).rank([Ask(matrix[0])], allowed)
    assert sorted(ranking.best(9).rows.tolist()) == [3, 77, 4000]
    assert blocks.passes == 1 and ranking.scanned == 3


def test_a_device_that_rounds_more_than_the_bound_is_refused(monkeypatch):
    from encoder.errors import QueryError

    rng = np.random.default_rng(0)
    matrix, places = table(rng, 600, 32)
    monkeypatch.setattr("query.engines.half._ROUNDING", 2.0**-14)
    with pytest.raises(QueryError, match="multiplies bfloat16 with errors"):
        HalfExact(matrix, places, CPU)


def test_faiss_that_probes_every_list_equals_the_oracle():
    rng = np.random.default_rng(5)
    matrix, places = table(rng, 3000, 24, slides=9, duplicates=40)
    engine = every_list(matrix, places)
    allowed = rng.random(3000) < 0.4
    for mask in (None, allowed):
        asks = [Ask(matrix[row], row) for row in (0, 1500, 2999)]
        for ask, ranking in zip(asks, engine.rank(asks, mask), strict=True):
            assert ranking.best(10).rows.tolist() == oracle(matrix, places, ask.vector, 10, mask, ask.itself)[0]
            gone = ranking.best(4).rows
            ranking.strike(gone)
            left = np.ones(3000, np.bool_) if mask is None else mask.copy()
            left[gone] = False
            assert ranking.best(10).rows.tolist() == oracle(matrix, places, ask.vector, 10, left, ask.itself)[0]


def test_faiss_widens_until_a_filter_has_given_all_that_exist():
    rng = np.random.default_rng(6)
    matrix, places = table(rng, 4000, 16)
    index = FaissIvf.build(matrix, places, probes=1)
    assert index.index.nlist > 20 and "1 lists probed" in index.name
    allowed = np.zeros(4000, np.bool_)
    allowed[rng.choice(4000, 15, replace=False)] = True
    (ranking,) = index.rank([Ask(matrix[0])], allowed)
    assert sorted(ranking.best(40).rows.tolist()) == np.flatnonzero(allowed).tolist()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), rows=st.integers(1, 200), k=st.integers(1, 40), count=st.integers(1, 4))
def test_the_nearest_of_several_vectors(seed, rows, k, count):
    rng = np.random.default_rng(seed)
    matrix, places = table(rng, rows, 12, 3, 20)
    vectors = [rng.standard_normal(12) for _ in range(count)]
    rankings = list(ResidentExact(matrix, places, workers=1).rank([Ask(vector) for vector in vectors]))
    hits = NearestOf(rankings, places).best(k)
    every = {}
    for vector in vectors:
        for row, distance in zip(*oracle(matrix, places, vector, rows), strict=True):
            every[row] = min(distance, every.get(row, 9.0))
    order = sorted(every, key=lambda row: (every[row], places.slide_code[row], places.y0[row], places.x0[row]))[:k]
    assert hits.rows.tolist() == order
    np.testing.assert_allclose(hits.distances, [every[row] for row in order], rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", sorted(EXACT))
def test_a_tile_whose_vector_is_zero_is_at_distance_one_from_all(name):
    """An encoder that ends in a rectifier may give one."""
    rng = np.random.default_rng(0)
    matrix, places = table(rng, 50, 8)
    matrix[7] = 0
    (ranking,) = EXACT[name](matrix, places).rank([Ask(matrix[7], 7)])
    hits = ranking.best(50)
    assert hits.rows[0] == 7 and hits.distances[0] == 0 and (hits.distances[1:] == 1).all()
