"""A slide seen from afar: an area of it at a coarse scale, read in pieces so that memory stays small."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from encoder.errors import SlideError, TileError
from indexer.resample import read_box

if TYPE_CHECKING:
    from indexer.slide import Slide

# Side of a piece in pixels of the level that is read: large enough for speed, 12 MB of pixels.
_PIECE_PX = 2048


@dataclass(frozen=True)
class Overview:
    """An area of a slide at a coarse scale.

    Attributes:
        pixels: uint8 [h, w, 3].
        unreadable: bool [h, w], true where the file is damaged; white in `pixels`.
        x0, y0: level-0 pixels of the upper left corner.
        pitch_px0: level-0 pixels per pixel.
    """

    pixels: NDArray[np.uint8]
    unreadable: NDArray[np.bool_]
    x0: int
    y0: int
    pitch_px0: float


def read_overview(slide: Slide, area_px0: tuple[int, int, int, int], pitch_px0: float) -> Overview:
    """Read an area at `pitch_px0` level-0 pixels per pixel, from the coarsest level that is fine enough.

    Args:
        area_px0: x0, y0, width, height in level-0 pixels.

    Raises:
        SlideError: no part of the area can be read.
    """
    x0, y0, width0, height0 = area_px0
    columns, rows = max(1, round(width0 / pitch_px0)), max(1, round(height0 / pitch_px0))
    level = finest_needed_level(slide.info.level_downsamples, pitch_px0)
    downsample = slide.info.level_downsamples[level]
    ratio = pitch_px0 / downsample
    pixels = np.full((rows, columns, 3), 255, dtype=np.uint8)
    unreadable = np.zeros((rows, columns), dtype=np.bool_)
    side = max(1, int(_PIECE_PX / ratio))
    failure: TileError | None = None
    for top in range(0, rows, side):
        for left in range(0, columns, side):
            h, w = min(side, rows - top), min(side, columns - left)
            box = (x0 / downsample + left * ratio, y0 / downsample + top * ratio)
            try:
                piece = read_box(partial(slide.read_level, level), box, (w * ratio, h * ratio), (w, h))
            except TileError as error:
                unreadable[top : top + h, left : left + w] = True
                failure = error
            else:
                pixels[top : top + h, left : left + w] = piece
    if failure is not None and unreadable.all():
        raise SlideError(f"{slide.info.path}: no part of it can be read: {failure.message}", failure.fix)
    return Overview(pixels, unreadable, x0, y0, pitch_px0)


def finest_needed_level(level_downsamples: tuple[float, ...], pitch_px0: float) -> int:
    """The coarsest level that still is as fine as asked; level 0 where none is."""
    fine = [level for level, step in enumerate(level_downsamples) if step <= pitch_px0 * (1 + 1e-6)]
    return max(fine, key=lambda level: level_downsamples[level], default=0)
