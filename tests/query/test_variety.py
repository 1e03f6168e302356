"""Variety against a plain walk down the whole order."""

from __future__ import annotations

from time import perf_counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from query.engines.contract import Hits
from query.variety import Apart, Limit, choose_hits, needs_apart


class Ordered:
    """Rows in a given order; counts how often it is asked."""

    def __init__(self, order):
        self._order, self._struck, self.asked = list(order), set(), 0

    @property
    def scanned(self):
        return len(self._order)

    def best(self, count):
        self.asked += 1
        rows = [row for row in self._order if row not in self._struck][:count]
        places = {row: place for place, row in enumerate(self._order)}
        return Hits(np.array(rows, np.int64), np.array([places[row] / 10 for row in rows], np.float64))

    def strike(self, rows):
        self._struck.update((np.flatnonzero(rows) if rows.dtype == np.bool_ else rows).tolist())


def too_near(apart, row, other):
    gap = max(abs(int(apart.x0[row]) - int(apart.x0[other])), abs(int(apart.y0[row]) - int(apart.y0[other])))
    return apart.slide_code[row] == apart.slide_code[other] and gap < apart.sides * int(apart.extent_px0[row]) - 2


def walk(order, k, limits, apart):
    chosen, used = [], [{} for _ in limits]
    for row in order:
        groups = [int(limit.group_of[row]) for limit in limits]
        if any(used[i].get(group, 0) >= limits[i].most for i, group in enumerate(groups)):
            continue
        if apart is not None and any(too_near(apart, row, other) for other in chosen):
            continue
        chosen.append(row)
        for i, group in enumerate(groups):
            used[i][group] = used[i].get(group, 0) + 1
    return chosen[:k]


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(1, 300),
    k=st.integers(1, 40),
    slides=st.sampled_from([1, 3, 40]),
    per_slide=st.sampled_from([None, 1, 3]),
    per_patient=st.sampled_from([None, 2]),
    sides=st.sampled_from([0.0, 1.0, 3.0]),
)
def test_equals_a_walk_down_the_whole_order(seed, rows, k, slides, per_slide, per_patient, sides):
    rng = np.random.default_rng(seed)
    slide = np.sort(rng.integers(slides, size=rows)).astype(np.int32)
    # The tiles of a slide follow each other in the order as neighbours do, which is the hard case.
    order = np.argsort(slide + 0.3 * rng.standard_normal(rows)).tolist()
    x0, y0 = (rng.integers(12, size=rows).astype(np.int32) * 64 for _ in range(2))
    limits = []
    if per_slide is not None:
        limits.append(Limit(slide.astype(np.int64), per_slide))
    if per_patient is not None:
        limits.append(Limit(slide.astype(np.int64) // 2, per_patient))
    apart = Apart(slide, x0, y0, np.full(rows, 128, np.int32), sides) if sides else None
    ranking = Ordered(order)
    hits = choose_hits(ranking, k, limits, apart)
    assert hits.rows.tolist() == walk(order, k, limits, apart)
    assert (np.diff(hits.distances) >= 0).all()


def test_twenty_overlapping_tiles_are_one_answer():
    x0 = np.arange(30, dtype=np.int32) * 16
    zeros = np.zeros(30, np.int32)
    apart = Apart(zeros, x0, zeros, np.full(30, 128, np.int32), 1.0)
    assert choose_hits(Ordered(range(30)), 3, (), apart).rows.tolist() == [0, 8, 16]


def test_a_slide_with_all_the_nearest_costs_few_looks():
    slide = np.repeat(np.arange(20), 500)
    ranking = Ordered(range(10_000))
    hits = choose_hits(ranking, 20, [Limit(slide, 1)])
    assert hits.rows.tolist() == list(range(0, 10_000, 500))
    assert ranking.asked <= 20


def test_a_grid_without_overlap_needs_no_look_at_neighbours():
    assert not needs_apart(1.0, 1.0) and not needs_apart(0.0, 0.5)
    assert needs_apart(1.0, 0.5) and needs_apart(3.0, 1.0)


def test_many_hits_that_stand_apart_are_chosen_in_time():
    rows = 20_000
    x0, y0 = (np.arange(rows, dtype=np.int32) % 150 * 64, np.arange(rows, dtype=np.int32) // 150 * 64)
    apart = Apart(np.zeros(rows, np.int32), x0, y0, np.full(rows, 128, np.int32), 1.5)
    started = perf_counter()
    hits = choose_hits(Ordered(range(rows)), 1500, (), apart)
    assert len(hits) == 1500 and perf_counter() - started < 20  # comparing each with all took minutes
