"""The fast engine against a plain float64 loop."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from query.engines import ResidentExact


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
    return matrix, slide, y0, x0


def oracle(matrix, slide, y0, x0, vector, k, allowed=None, per_slide=None, itself=None):
    """One row at a time, sorted as a whole, in plain Python."""
    query = vector.astype(np.float64)
    query = query / np.sqrt(float((query * query).sum()))
    scored = []
    for row in range(len(matrix)):
        if allowed is not None and not allowed[row]:
            continue
        wide = matrix[row].astype(np.float64)
        distance = 1.0 - float((wide * query).sum()) / np.sqrt(float((wide * wide).sum()))
        distance = 0.0 if row == itself else min(2.0, max(0.0, distance))
        scored.append((distance, row != itself, int(slide[row]), int(y0[row]), int(x0[row]), row))
    scored.sort()
    kept, used = [], {}
    for item in scored:
        used[item[2]] = used.get(item[2], 0) + 1
        if per_slide is None or used[item[2]] <= per_slide:
            kept.append(item)
    return [item[-1] for item in kept[:k]], [item[0] for item in kept[:k]]


@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(1, 400),
    k=st.integers(1, 60),
    share=st.sampled_from([None, 0.0, 0.02, 0.3, 0.9, 1.0]),
    per_slide=st.sampled_from([None, 1, 2, 7]),
    duplicates=st.sampled_from([0, 5, 200]),
    slides=st.sampled_from([1, 3, 40]),
    contiguous=st.booleans(),
    from_table=st.booleans(),
)
def test_equals_oracle(seed, rows, k, share, per_slide, duplicates, slides, contiguous, from_table):
    rng = np.random.default_rng(seed)
    matrix, slide, y0, x0 = table(rng, rows, 24, slides, duplicates, contiguous)
    allowed = None if share is None else rng.random(rows) < share
    itself = int(rng.integers(rows)) if from_table else None
    vector = matrix[itself] if itself is not None else rng.standard_normal(24)
    engine = ResidentExact(matrix, slide, y0, x0, workers=2)
    hits = engine.top(vector, k, allowed, per_slide, itself)
    wanted_rows, wanted = oracle(matrix, slide, y0, x0, vector, k, allowed, per_slide, itself)
    assert hits.rows.tolist() == wanted_rows
    np.testing.assert_allclose(hits.distances, wanted, rtol=0, atol=1e-14)


def test_large_scan_equals_oracle_order():
    rng = np.random.default_rng(3)
    matrix, slide, y0, x0 = table(rng, 60_000, 16, slides=50, duplicates=3000)
    engine = ResidentExact(matrix, slide, y0, x0, workers=3)
    for row in (0, 31_000, 59_999):
        wide = matrix.astype(np.float64)
        unit = wide[row] / np.linalg.norm(wide[row])
        distances = np.clip(1 - (wide * unit).sum(axis=1) / np.sqrt((wide * wide).sum(axis=1)), 0, 2)
        distances[row] = 0.0
        order = np.lexsort((x0, y0, slide, np.arange(60_000) != row, distances))[:100]
        hits = engine.top(matrix[row], 100, itself=row)
        assert hits.rows.tolist() == order.tolist()
        assert hits.rows[0] == row and hits.distances[0] == 0.0
        assert hits.scanned == 60_000


def test_all_rows_equal_are_ordered_by_place():
    matrix = np.tile(np.full((1, 8), 8**-0.5, np.float32), (5000, 1))
    slide = np.arange(5000, dtype=np.int32) % 7
    y0 = (np.arange(5000, dtype=np.int32) * 31) % 64
    x0 = np.arange(5000, dtype=np.int32)[::-1].copy()
    hits = ResidentExact(matrix, slide, y0, x0, workers=2).top(matrix[0], 25)
    assert hits.rows.tolist() == np.lexsort((x0, y0, slide))[:25].tolist()
    assert np.ptp(hits.distances) == 0


def test_differences_below_float32_are_ranked():
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
    engine = ResidentExact(matrix, zeros, zeros, np.arange(4, dtype=np.int32), workers=1)
    assert engine.top(base, 1).rows.tolist() == [3]
    assert engine.top(base, 4).rows.tolist() == [3, 1, 2, 0]


@pytest.mark.parametrize("share", [0.001, 0.05, 0.5])
def test_few_matching_rows_are_gathered(share):
    rng = np.random.default_rng(1)
    matrix, slide, y0, x0 = table(rng, 20_000, 8)
    allowed = rng.random(20_000) < share
    hits = ResidentExact(matrix, slide, y0, x0, workers=2).top(matrix[0], 7, allowed)
    assert hits.rows.size == 7 and allowed[hits.rows].all()
    assert hits.scanned == (20_000 if share == 0.5 else int(allowed.sum()))
