"""A slide as a deep-zoom pyramid: every level half the size of the next, cut into square tiles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray

from encoder.errors import TileError, UsageError
from indexer.overview import finest_needed_level
from indexer.resample import read_box, resample
from indexer.slide import Slide

TILE_PX = 512
# A tile is made from at most this many stored pixels: 16 MB, a quarter of a second on one core. Where levels are
# two or four apart it takes a quarter of them. Far below the coarsest level, or on a slide of one level, a tile would
# decode much of the file, many seconds for each. There the stored overview stands in for it: as fine as the view
# where the coarsest level has less than 8,192 pixels a side, else blurred until one zooms in.
_MOST_STORED_PX = 2048**2

OverviewMaker = Callable[[], NDArray[np.uint8] | None]


@dataclass(frozen=True)
class ZoomGeometry:
    """Levels and tiles of the pyramid, as Deep Zoom counts them: level 0 is one pixel, `max_level` the whole.

    Attributes:
        width0, height0: of the slide.
        tile_px: side of a tile; those at the right and lower edge are smaller. Tiles do not overlap.
    """

    width0: int
    height0: int
    tile_px: int = TILE_PX

    @property
    def max_level(self) -> int:
        """The level of full size."""
        return (max(self.width0, self.height0) - 1).bit_length()

    def pitch_px0(self, level: int) -> int:
        """Level-0 pixels per pixel of a level.

        Raises:
            UsageError: there is no such level.
        """
        if not 0 <= level <= self.max_level:
            raise UsageError(f"there is no zoom level {level};", f"levels are 0 to {self.max_level}.")
        return 1 << (self.max_level - level)

    def level_size(self, level: int) -> tuple[int, int]:
        """(width, height) of a level in its own pixels."""
        pitch = self.pitch_px0(level)
        return -(-self.width0 // pitch), -(-self.height0 // pitch)

    def tiles(self, level: int) -> tuple[int, int]:
        """(columns, rows) of a level's tiles."""
        width, height = self.level_size(level)
        return -(-width // self.tile_px), -(-height // self.tile_px)

    def tile_box(self, level: int, column: int, row: int) -> tuple[int, int, int, int]:
        """(x, y, width, height) of a tile in the level's pixels.

        Raises:
            UsageError: there is no such tile.
        """
        columns, rows = self.tiles(level)
        if not (0 <= column < columns and 0 <= row < rows):
            raise UsageError(
                f"there is no tile {column}_{row} at zoom level {level};", f"it has {columns} x {rows} tiles."
            )
        width, height = self.level_size(level)
        x, y = column * self.tile_px, row * self.tile_px
        return x, y, min(self.tile_px, width - x), min(self.tile_px, height - y)


class Zoom:
    """Reads tiles of the pyramid over an open slide, with bounded memory and work. Safe from several threads.

    Args:
        slide: open; it must stay so while tiles are read.
        overview: gives a picture of the whole slide, uint8 [h, w, 3], for tiles that no stored level suits;
            None where there is none. Called once, when it is first needed.
        tile_px: side of a tile.
    """

    def __init__(self, slide: Slide, overview: OverviewMaker | None = None, tile_px: int = TILE_PX) -> None:
        self.geometry = ZoomGeometry(slide.info.width0, slide.info.height0, tile_px)
        self._slide, self._make_overview = slide, overview

    def read(self, level: int, column: int, row: int) -> NDArray[np.uint8]:
        """Read a tile, uint8 [height, width, 3].

        Raises:
            UsageError: there is no such tile.
            TileError: the file is damaged there, or the view needs an overview that is not stored.
        """
        pitch = self.geometry.pitch_px0(level)
        x, y, width, height = self.geometry.tile_box(level, column, row)
        # The last pixel reaches over the slide's edge by a part of itself; it shows the part that is inside.
        width0, height0 = self.geometry.width0, self.geometry.height0
        extent = min(width * pitch, width0 - x * pitch), min(height * pitch, height0 - y * pitch)
        return self._read((x * pitch, y * pitch), extent, (width, height), pitch)

    def read_square(self, x0: int, y0: int, side_px0: int, px: int) -> NDArray[np.uint8]:
        """Read a square of the slide as uint8 [px, px, 3]; the outside is white.

        Args:
            x0, y0, side_px0: level-0 pixels; may lie partly outside.
            px: side of the picture.

        Raises:
            UsageError: the square does not touch the slide, or is many times larger.
            TileError: as in `read`.
        """
        width0, height0 = self.geometry.width0, self.geometry.height0
        if not (-side_px0 < x0 < width0 and -side_px0 < y0 < height0 and 0 < side_px0 <= 2 * max(width0, height0)):
            raise UsageError(
                f"a square of {side_px0} at {x0},{y0} is no part of a slide of {width0} x {height0} pixels;",
                "give level-0 pixels.",
            )
        across, left, right = _inside(x0, side_px0, width0, px)
        down, top, bottom = _inside(y0, side_px0, height0, px)
        square = np.full((px, px, 3), 255, np.uint8)
        place, inside = (max(x0, 0), max(y0, 0)), (right - left, bottom - top)
        square[top:bottom, left:right] = self._read(place, (across, down), inside, side_px0 / px)
        return square

    @cached_property
    def _overview(self) -> NDArray[np.uint8] | None:
        return None if self._make_overview is None else self._make_overview()

    def _read(
        self, corner_px0: tuple[int, int], extent_px0: tuple[int, int], size: tuple[int, int], pitch_px0: float
    ) -> NDArray[np.uint8]:
        """Read a box that lies inside the slide as uint8 [size[1], size[0], 3]."""
        info = self._slide.info
        level = finest_needed_level(info.level_downsamples, pitch_px0)
        step = info.level_downsamples[level]
        if extent_px0[0] / step * extent_px0[1] / step > _MOST_STORED_PX:
            return self._from_overview(corner_px0, extent_px0, size)
        corner, extent = _within(corner_px0, extent_px0, (step, step), info.level_sizes[level])
        return read_box(partial(self._slide.read_level, level), corner, extent, size)

    def _from_overview(
        self, corner_px0: tuple[int, int], extent_px0: tuple[int, int], size: tuple[int, int]
    ) -> NDArray[np.uint8]:
        info, picture = self._slide.info, self._overview
        if picture is None:
            raise TileError(
                f"{info.path}: its coarsest level is too fine for this view, and no overview of it is stored.",
                "Zoom in, or index the slide: that stores one.",
            )
        rows, columns = picture.shape[:2]
        steps = info.width0 / columns, info.height0 / rows
        return resample(picture, *_within(corner_px0, extent_px0, steps, (columns, rows)), size)


def _within(
    corner_px0: tuple[int, int], extent_px0: tuple[int, int], steps: tuple[float, float], limits: tuple[int, int]
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Corner and extent of a box in pixels of a level of (width, height) `limits`, whose size was rounded."""
    spans = []
    for start, length, step, limit in zip(corner_px0, extent_px0, steps, limits, strict=True):
        first = min(start / step, limit - 1.0)
        spans.append((first, min((start + length) / step, limit) - first))
    (x, width), (y, height) = spans
    return (x, y), (width, height)


def _inside(start_px0: int, side_px0: int, limit_px0: int, px: int) -> tuple[int, int, int]:
    """How much of a span of `px` pixels lies in 0..limit_px0: level-0 pixels, first pixel, end pixel."""
    begin, end = max(start_px0, 0), min(start_px0 + side_px0, limit_px0)
    first = min(round((begin - start_px0) * px / side_px0), px - 1)
    return end - begin, first, max(first + 1, round((end - start_px0) * px / side_px0))
