"""The part of a map that a picture shows, and which pixel a point lies on: one rule for drawing and for picking."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from encoder.errors import QueryError

_MARGIN = 0.04


@dataclass(frozen=True)
class Window:
    """A rectangle of a map, in its own coordinates; y grows upwards."""

    left: float
    bottom: float
    right: float
    top: float

    def __post_init__(self) -> None:
        sides = (self.left, self.bottom, self.right, self.top)
        if not np.isfinite(sides).all() or self.left >= self.right or self.bottom >= self.top:
            raise QueryError(f"The window {sides} has no area.", "Give left < right and bottom < top.")

    @property
    def width(self) -> float:
        """From left to right."""
        return self.right - self.left

    @property
    def height(self) -> float:
        """From bottom to top."""
        return self.top - self.bottom


def extent_of(xy: NDArray[np.float32]) -> Window:
    """The smallest window around points [N, 2]; where they do not spread it is widened a little."""
    if not len(xy):
        return Window(-0.5, -0.5, 0.5, 0.5)
    # Column by column: over both at once NumPy takes ten times as long.
    low, high = (np.array([float(end(xy[:, axis])) for axis in (0, 1)]) for end in (np.min, np.max))
    widest = float((high - low).max())
    least = 0.05 * widest if widest > 0 else 1.0
    spare = np.maximum(0, least - (high - low)) / 2
    (left, bottom), (right, top) = (low - spare).tolist(), (high + spare).tolist()
    return Window(left, bottom, right, top)


def whole_window(extent: Window, width_px: int, height_px: int) -> Window:
    """The window that shows all of an extent in a picture, with a margin and one scale for both axes."""
    room = 1 + 2 * _MARGIN
    scale = max(extent.width * room / width_px, extent.height * room / height_px)
    middle_x, middle_y = (extent.left + extent.right) / 2, (extent.bottom + extent.top) / 2
    half_x, half_y = scale * width_px / 2, scale * height_px / 2
    return Window(middle_x - half_x, middle_y - half_y, middle_x + half_x, middle_y + half_y)


def pixels_of(
    xy: NDArray[np.floating], window: Window, width_px: int, height_px: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Column and row of the pixel that each point lies on, int64 [N] each; outside the picture they go on.

    Column 0 begins at the window's left side, row 0 at its top.
    """
    # A point as far away as float32 goes would not fit an integer.
    reach = 1e9
    column = (xy[:, 0].astype(np.float64) - window.left) * (width_px / window.width)
    row = (window.top - xy[:, 1].astype(np.float64)) * (height_px / window.height)
    return (
        np.floor(np.clip(column, -reach, reach)).astype(np.int64),
        np.floor(np.clip(row, -reach, reach)).astype(np.int64),
    )


def nearest_point(
    xy: NDArray[np.floating], x: float, y: float, window: Window, width_px: int, height_px: int, within_px: float
) -> int | None:
    """Row of the point nearest to a place, counted in the picture's pixels; None where none is that near.

    Args:
        xy: points [N, 2].
        x, y: the place, in coordinates of the map.
        window, width_px, height_px: of the picture.
        within_px: greatest distance.
    """
    reach_x, reach_y = within_px * window.width / width_px, within_px * window.height / height_px
    rows = np.flatnonzero((np.abs(xy[:, 0] - x) <= reach_x) & (np.abs(xy[:, 1] - y) <= reach_y))
    if not rows.size:
        return None
    away = ((xy[rows, 0] - x) / reach_x) ** 2 + ((xy[rows, 1] - y) / reach_y) ** 2
    best = int(away.argmin())
    return int(rows[best]) if away[best] <= 1 else None
