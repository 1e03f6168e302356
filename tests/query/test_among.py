"""Search among chosen tiles, against a plain loop over them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from encoder.errors import QueryError
from query import open_cohort
from query.queries import RegionQuery, examples

TILE = 128


@pytest.fixture(scope="module")
def cohort(small):
    return open_cohort(str(small.path))


@pytest.fixture(scope="module")
def lean(small):
    return open_cohort(str(small.path), memory_budget=1_000)


def expected(small, vectors, k, allowed, per_slide=None, apart=1.0, itself=None):
    """Walk over all allowed rows in the order of their distance."""
    wide = small.matrix.astype(np.float64)
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    units = np.atleast_2d(vectors).astype(np.float64)
    units = units / np.linalg.norm(units, axis=1, keepdims=True)
    near = np.clip(1 - wide @ units.T, 0, 2).min(axis=1)
    scored = []
    for row in range(len(small.matrix)):
        distance = 0.0 if row == itself else near[row]
        place = (small.slide_ids[small.slide[row]], small.y0[row], small.x0[row])
        scored.append((round(distance, 12), row != itself, *place, row))
    kept = []
    for item in sorted(scored):
        row = item[-1]
        own = [other for other in kept if small.slide[other] == small.slide[row]]
        gaps = [max(abs(small.x0[o] - small.x0[row]), abs(small.y0[o] - small.y0[row])) for o in own]
        crowded = per_slide is not None and len(own) >= per_slide
        if row in allowed and not crowded and not any(gap < apart * TILE - 2 for gap in gaps):
            kept.append(row)
    return [small.key(row) for row in kept[:k]]


def keys(results):
    return results.table["tile_key"].to_pylist()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    row=st.integers(0, 215),
    k=st.integers(1, 60),
    share=st.sampled_from([0.02, 0.3, 1.0]),
    seed=st.integers(0, 999),
    liver=st.booleans(),
    exclude=st.booleans(),
    per_slide=st.sampled_from([None, 2]),
    apart=st.sampled_from([1.0, 2.0]),
)
def test_it_equals_a_walk_over_the_chosen_rows(
    small, cohort, lean, row, k, share, seed, liver, exclude, per_slide, apart
):
    rng = np.random.default_rng(seed)
    chosen = np.flatnonzero(rng.random(216) < share)
    allowed = {
        int(other)
        for other in chosen
        if not (liver and small.slide[other] > 1) and not (exclude and small.slide[other] == small.slide[row])
    }
    asked = rng.permutation(np.concatenate([small.tile_id[chosen], small.tile_id[chosen[:3]]]))
    options = {
        "where": "organ = 'liver'" if liver else None,
        "exclude": ("slide",) if exclude else (),
        "per_slide": per_slide,
        "apart": apart,
        "among": asked,
    }
    truth = expected(small, small.matrix[row], k, allowed, per_slide, apart, row)
    for one in (cohort, lean):
        results = one.search(small.key(row), k, **options)
        assert keys(results) == truth
        assert results.plan.rows_matching == len(allowed)
        assert results.plan.rows_total == 216
        assert not any("ignored" in note for note in results.plan.notes)


def test_a_batch_keeps_to_the_chosen_tiles_too(small, cohort):
    chosen = np.arange(0, 216, 5)
    region = RegionQuery("s1", ((0, 0), (3 * TILE, 2 * TILE)))
    several = examples([small.key(50), small.key(51)])
    queries = [small.key(0), region, several, small.matrix[77]]
    options = {"k": 20, "among": small.tile_id[chosen], "per_slide": 5}
    together = cohort.search_many(queries, **options)
    for query, results in zip(queries, together, strict=True):
        assert keys(results) == keys(cohort.search(query, **options))
        assert set(keys(results)) <= {small.key(row) for row in chosen}
    allowed = set(chosen.tolist())
    assert keys(together[0]) == expected(small, small.matrix[0], 20, allowed, 5, itself=0)
    own = [row for row in range(36, 72) if small.x0[row] < 3 * TILE and small.y0[row] < 2 * TILE]
    assert keys(together[1]) == expected(small, small.matrix[own], 20, allowed - set(own), 5)
    assert together[1].plan.rows_matching == len(allowed - set(own))
    excluded = cohort.search_many([small.key(0), small.key(215)], exclude=("slide",), **options)
    for row, results in zip((0, 215), excluded, strict=True):
        assert keys(results) == keys(cohort.search(small.key(row), exclude=("slide",), **options))


def test_ids_that_cannot_be_searched_are_ignored_and_counted(small, cohort):
    unfinished = np.int64(6) << 32  # the crashed slide's first tile
    among = np.array([small.tile_id[3], unfinished, -1, unfinished, small.tile_id[9]], np.int64)
    results = cohort.search(small.key(0), k=5, among=among)
    assert set(keys(results)) == {small.key(3), small.key(9)}
    assert "2 of the 4 tiles to search among cannot be searched and were ignored." in results.plan.notes
    assert any(note == "Only 2 of the 5 asked tiles exist after the filters." for note in results.plan.notes)


def test_no_tiles_give_no_hits(small, cohort):
    results = cohort.search(small.key(0), among=np.empty(0, np.int64))
    assert len(results) == 0 and results.plan.rows_matching == 0
    assert "No tile was given to search among." in results.plan.notes


@pytest.mark.parametrize(
    "among", [[1, 2], np.array([1.0]), np.zeros(3, np.int32), np.zeros((2, 2), np.int64), np.zeros(3, np.bool_), "all"]
)
def test_anything_but_ids_is_refused(small, cohort, among):
    with pytest.raises(QueryError, match="among is an array of tile ids"):
        cohort.search(small.key(0), among=among)
