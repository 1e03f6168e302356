"""Which points of a map lie inside a line drawn by hand."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from encoder.errors import QueryError


def inside(xy: NDArray[np.floating], polygon: ArrayLike) -> NDArray[np.bool_]:
    """Tell which points a closed line goes around, by the even-odd rule.

    Points are sorted by height, and each edge looks only at those between its two ends: a line of many short
    edges costs little more than a rectangle. A point on an edge counts on one side of it, always the same.

    Args:
        xy: points [N, 2], finite.
        polygon: corners [M, 2]; the last joins the first.

    Returns:
        bool [N].

    Raises:
        QueryError: there are fewer than three corners, or one is not finite.
    """
    corners = checked_polygon(polygon)
    result = np.zeros(len(xy), np.bool_)
    low, high = corners.min(axis=0), corners.max(axis=0)
    x, y = xy[:, 0], xy[:, 1]
    near = np.flatnonzero((x >= low[0]) & (x <= high[0]) & (y >= low[1]) & (y <= high[1]))
    if not near.size:
        return result
    near = near[np.argsort(y[near], kind="stable")]
    x, y = x[near].astype(np.float64), y[near].astype(np.float64)
    odd = np.zeros(near.size, np.bool_)
    ends = np.roll(corners, -1, axis=0)
    lower = np.searchsorted(y, np.minimum(corners[:, 1], ends[:, 1]))
    upper = np.searchsorted(y, np.maximum(corners[:, 1], ends[:, 1]))
    for (x0, y0), (x1, y1), first, last in zip(corners, ends, lower, upper, strict=True):
        if first < last:
            between = slice(first, last)
            odd[between] ^= x[between] < x0 + (y[between] - y0) * ((x1 - x0) / (y1 - y0))
    result[near] = odd
    return result


def checked_polygon(polygon: ArrayLike) -> NDArray[np.float64]:
    """Corners as float64 [M, 2].

    Raises:
        QueryError: there are fewer than three, or one is not finite.
    """
    corners = np.asarray(polygon, np.float64)
    if corners.ndim != 2 or corners.shape[1] != 2 or len(corners) < 3 or not np.isfinite(corners).all():
        raise QueryError(
            f"A selection of shape {corners.shape} is no line around tiles.", "Give three corners or more."
        )
    return corners


def simplified(polygon: ArrayLike, most: int) -> NDArray[np.float64]:
    """The same line with at most so many corners: those go first whose loss changes its area least.

    Args:
        polygon: corners [M, 2].
        most: corners to keep, at least three.

    Raises:
        QueryError: see `checked_polygon`.
    """
    corners = checked_polygon(polygon)
    while len(corners) > most:
        # A line drawn by hand has hundreds of corners: looking at all of them each time takes milliseconds together.
        before = np.concatenate([corners[-1:], corners[:-1]]) - corners
        after = np.concatenate([corners[1:], corners[:1]]) - corners
        lost = np.abs(before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0])
        corners = np.delete(corners, int(lost.argmin()), axis=0)
    return corners
