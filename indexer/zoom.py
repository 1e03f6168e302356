"""A slide as a deep-zoom pyramid: every level half the size of the next, cut into square tiles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from encoder.errors import TileError, UsageError
from indexer.overview import finest_needed_level
from indexer.resample import BlockReader, read_box
from indexer.slide import Slide

TILE_PX = 512
# Stored pixels are read in pieces of at most this side: 16 MB at a time.
_PIECE_PX = 2048
# A tile is made from at most this many stored pixels. Where levels are two or four apart it takes a twentieth of
# them. Far below the coarsest level, or on a slide of one level, a tile would decode much of the file, many
# seconds for each; there the stored overview stands in for it: blurred at worst, and at once.
_MOST_STORED_PX = 4096**2

Beyond = Literal["edge", "white"]
Overview = Callable[[], NDArray[np.uint8] | None]


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

    def __init__(self, slide: Slide, overview: Overview | None = None, tile_px: int = TILE_PX) -> None:
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
        return self._read((x * pitch, y * pitch), float(pitch), (width, height), beyond="edge")

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
        return self._read((x0, y0), side_px0 / px, (px, px), beyond="white")

    @cached_property
    def _overview(self) -> NDArray[np.uint8] | None:
        return None if self._make_overview is None else self._make_overview()

    def _read(
        self, corner_px0: tuple[float, float], pitch_px0: float, size: tuple[int, int], beyond: Beyond
    ) -> NDArray[np.uint8]:
        info = self._slide.info
        level = finest_needed_level(info.level_downsamples, pitch_px0)
        step = info.level_downsamples[level]
        ratio = pitch_px0 / step
        columns, rows = info.level_sizes[level]
        if min(size[0] * ratio, columns) * min(size[1] * ratio, rows) > _MOST_STORED_PX:
            return self._from_overview(corner_px0, pitch_px0, size, beyond)
        source = _bordered(partial(self._slide.read_level, level), (columns, rows), beyond)
        x, y = corner_px0[0] / step, corner_px0[1] / step
        side = max(1, int(_PIECE_PX / ratio))
        pixels = np.empty((size[1], size[0], 3), np.uint8)
        for top in range(0, size[1], side):
            for left in range(0, size[0], side):
                width, height = min(side, size[0] - left), min(side, size[1] - top)
                piece = (x + left * ratio, y + top * ratio), (width * ratio, height * ratio), (width, height)
                pixels[top : top + height, left : left + width] = read_box(source, *piece)
        return pixels

    def _from_overview(
        self, corner_px0: tuple[float, float], pitch_px0: float, size: tuple[int, int], beyond: Beyond
    ) -> NDArray[np.uint8]:
        info, picture = self._slide.info, self._overview
        if picture is None:
            raise TileError(
                f"{info.path}: its coarsest level is too fine for this view, and no overview of it is stored.",
                "Zoom in, or index the slide: that stores one.",
            )
        rows, columns = picture.shape[:2]
        step_x, step_y = info.width0 / columns, info.height0 / rows

        def cut(x: int, y: int, width: int, height: int) -> tuple[NDArray[np.uint8], tuple[float, float]]:
            return picture[y : y + height, x : x + width], (float(x), float(y))

        source = _bordered(cut, (columns, rows), beyond)
        corner = corner_px0[0] / step_x, corner_px0[1] / step_y
        return read_box(source, corner, (size[0] * pitch_px0 / step_x, size[1] * pitch_px0 / step_y), size)


def _bordered(read: BlockReader, limits: tuple[int, int], beyond: Beyond) -> BlockReader:
    """Let a reader of a picture of `limits` (width, height) read beyond it, white or the pixels of its edge.

    The last pixel of a coarse level reaches over the slide's edge: a white share would show as a bright seam.
    """

    def bordered(x: int, y: int, width: int, height: int) -> tuple[NDArray[np.uint8], tuple[float, float]]:
        left, top = min(max(x, 0), limits[0] - 1), min(max(y, 0), limits[1] - 1)
        right, bottom = min(max(x + width, left + 1), limits[0]), min(max(y + height, top + 1), limits[1])
        if (left, top, right - left, bottom - top) == (x, y, width, height):
            return read(x, y, width, height)
        if beyond == "white" and (x >= limits[0] or y >= limits[1] or x + width <= 0 or y + height <= 0):
            return np.full((height, width, 3), 255, np.uint8), (float(x), float(y))
        inside, origin = read(left, top, right - left, bottom - top)
        around = ((top - y, y + height - bottom), (left - x, x + width - right), (0, 0))
        border: dict[str, Any] = {"mode": "edge"} if beyond == "edge" else {"mode": "constant", "constant_values": 255}
        return np.pad(inside, around, **border), (origin[0] + x - left, origin[1] + y - top)

    return bordered
