"""Lassoes against a loop over points and edges."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest

from encoder.errors import QueryError
from query.projection.lasso import inside, simplified


def literal(xy: np.ndarray, polygon: np.ndarray) -> list[bool]:
    """Even-odd, point by point: how many edges lie to the right at the point's height."""
    found = []
    for x, y in xy.astype(np.float64).tolist():
        odd = False
        for number in range(len(polygon)):
            (x0, y0), (x1, y1) = polygon[number], polygon[(number + 1) % len(polygon)]
            if min(y0, y1) <= y < max(y0, y1) and x < x0 + (y - y0) * ((x1 - x0) / (y1 - y0)):
                odd = not odd
        found.append(odd)
    return found


@pytest.mark.parametrize("corners", [3, 4, 9, 60])
def test_random_lines_that_cross_themselves(corners: int) -> None:
    rng = np.random.default_rng(corners)
    xy = rng.standard_normal((400, 2)).astype(np.float32)
    polygon = rng.standard_normal((corners, 2))
    found = inside(xy, polygon)
    assert found.tolist() == literal(xy, polygon) and 0 < found.sum() < 400


def test_points_on_corners_and_level_edges_count_once() -> None:
    grid = np.stack(np.meshgrid(np.arange(6.0), np.arange(6.0)), axis=-1).reshape(-1, 2)
    left, right = np.array([[0, 0], [2, 0], [2, 5], [0, 5]]), np.array([[2, 0], [5, 0], [5, 5], [2, 5]])
    a, b = inside(grid, left), inside(grid, right)
    assert not (a & b).any() and (a | b).sum() == 25
    assert a.tolist() == literal(grid, left) and b.tolist() == literal(grid, right)


def test_a_hole_drawn_by_crossing_is_outside() -> None:
    star = np.array([[math.sin(0.8 * math.pi * k), math.cos(0.8 * math.pi * k)] for k in range(5)])
    centre = np.array([[0.0, 0.0]])
    assert inside(centre, star).tolist() == literal(centre, star) == [False]
    tip = 0.8 * star[:1]
    assert inside(tip, star).tolist() == literal(tip, star) == [True]


def test_nothing_is_inside_where_there_is_nothing() -> None:
    assert inside(np.empty((0, 2), np.float32), [[0, 0], [1, 0], [0, 1]]).shape == (0,)
    assert not inside(np.full((3, 2), 9.0), [[0, 0], [1, 0], [0, 1]]).any()
    assert not inside(np.full((3, 2), 1.0), [[1, 1], [1, 1], [1, 1]]).any()


@pytest.mark.parametrize("polygon", [[], [[0, 0], [1, 1]], [0, 1, 2], [[0, 0, 0]] * 3, [[0, 0], [1, 1], [math.nan, 0]]])
def test_what_is_no_line_is_refused(polygon: list) -> None:
    with pytest.raises(QueryError, match="no line around tiles"):
        inside(np.zeros((2, 2)), polygon)


def test_a_million_points_in_a_fraction_of_a_second() -> None:
    rng = np.random.default_rng(0)
    xy = rng.random((1_000_000, 2), dtype=np.float32)
    angle = np.linspace(0, 2 * np.pi, 100, endpoint=False)
    radius = 0.5 + 0.1 * np.sin(9 * angle)
    polygon = 0.5 + radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    started = time.process_time()
    found = inside(xy, polygon)
    assert time.process_time() - started < 1.5
    some = rng.choice(len(xy), 300, replace=False)
    assert found[some].tolist() == literal(xy[some], polygon)


def test_a_line_by_hand_keeps_its_shape_with_few_corners() -> None:
    angle = np.linspace(0, 2 * np.pi, 500, endpoint=False)
    drawn = np.stack([np.cos(angle), 0.5 * np.sin(angle)], axis=1)
    drawn += 0.002 * np.random.default_rng(0).standard_normal(drawn.shape)
    few = simplified(drawn, 64)
    assert len(few) == 64 and all(corner in drawn.tolist() for corner in few.tolist())
    points = np.random.default_rng(1).uniform(-1.2, 1.2, (4000, 2))
    assert (inside(points, few) != inside(points, drawn)).mean() < 0.005
    np.testing.assert_array_equal(simplified(drawn[:50], 64), drawn[:50])
