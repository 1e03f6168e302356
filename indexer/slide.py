"""An open slide: its identity, its scale, its levels, and its pixels as OpenSlide gives them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from encoder.errors import SlideError
from indexer.manifest import SlideEntry
from indexer.mpp import MppSource, MppSources, resolve_mpp
from indexer.overview import read_overview
from indexer.readers import Reader, open_reader
from indexer.slide_files import fingerprint

_UM_PER_UNIT = {"inch": 25400.0, "centimeter": 10000.0}


@dataclass(frozen=True)
class SlideInfo:
    """What is known of a slide before its pixels are read.

    Attributes:
        vendor: format as OpenSlide names it; `image` for a plain picture.
        mpp: micrometres per level-0 pixel.
        mpp_source: where it comes from.
        objective: power of the objective; None where the file does not say.
        level_sizes: (width, height) of each level.
        level_downsamples: level-0 pixels per pixel of each level.
        bounds_px0: (x0, y0, width0, height0) that holds the scanned area; the whole slide where the file
            does not say. Coordinates stay those of the file.
        warnings: what the user should know about the scale.
        fingerprint: see `slide_files.fingerprint`.
    """

    slide_id: str
    path: Path
    vendor: str
    width0: int
    height0: int
    mpp: float
    mpp_source: MppSource
    objective: float | None
    level_sizes: tuple[tuple[int, int], ...]
    level_downsamples: tuple[float, ...]
    bounds_px0: tuple[int, int, int, int]
    warnings: tuple[str, ...]
    fingerprint: str


class Slide:
    """An open slide; close it or use it as a context manager. Reading is safe from several threads."""

    def __init__(self, info: SlideInfo, reader: Reader) -> None:
        self.info = info
        self._reader = reader

    def __enter__(self) -> Slide:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the file."""
        self._reader.close()

    def read_region(self, x0: int, y0: int, level: int, width: int, height: int) -> NDArray[np.uint8]:
        """Read uint8 [height, width, 3] at a level; transparent pixels and the outside are white.

        Args:
            x0, y0: level-0 pixels of the upper left corner.
            width, height: pixels of the level.

        Raises:
            TileError: the region is damaged.
        """
        return self._reader.read(x0, y0, level, width, height)

    def read_level(
        self, level: int, x: int, y: int, width: int, height: int
    ) -> tuple[NDArray[np.uint8], tuple[float, float]]:
        """Read a block by the level's own pixels, and say where it really begins.

        OpenSlide takes level-0 positions only. Where a level's downsample is no whole number, the position
        nearest to a pixel's corner is up to half a level-0 pixel away from it, and OpenSlide interpolates.

        Args:
            x, y: pixels of the level; may lie outside, which is white.

        Returns:
            uint8 [height, width, 3], and the (x, y) in level pixels of its upper left corner.
        """
        columns, rows = self.info.level_sizes[level]
        left, top = min(max(x, 0), columns), min(max(y, 0), rows)
        right, bottom = min(max(x + width, left), columns), min(max(y + height, top), rows)
        step = self._reader.level_downsamples[level]
        x0, y0 = round(left * step), round(top * step)
        origin = (x + x0 / step - left, y + y0 / step - top)
        if (left, top, right, bottom) == (x, y, x + width, y + height):
            return self._reader.read(x0, y0, level, width, height), origin
        block = np.full((height, width, 3), 255, dtype=np.uint8)
        if right > left and bottom > top:
            inside = self._reader.read(x0, y0, level, right - left, bottom - top)
            block[top - y : bottom - y, left - x : right - x] = inside
        return block, origin

    @property
    def reader_downsamples(self) -> tuple[float, ...]:
        """Downsamples as the reader computes them; they differ from the true ones in the fifth digit."""
        return self._reader.level_downsamples

    def thumbnail(self, max_px: int) -> NDArray[np.uint8]:
        """Picture of the whole slide, uint8 [h, w, 3], its longer side at most `max_px`.

        Raises:
            SlideError: no part of the slide can be read.
        """
        longer = max(self.info.width0, self.info.height0)
        pitch = max(1.0, longer / max_px)
        return read_overview(self, (0, 0, self.info.width0, self.info.height0), pitch).pixels


def open_slide(entry: SlideEntry, cohort_mpp: float | None = None) -> Slide:
    """Open a slide and settle its scale.

    Args:
        cohort_mpp: um per pixel to assume where neither the manifest nor the file gives one.

    Raises:
        SlideError: the file cannot be opened, or its scale is unknown or impossible.
    """
    reader = open_reader(entry.path)
    try:
        return Slide(_info(entry, reader, cohort_mpp), reader)
    except BaseException:
        reader.close()
        raise


def _info(entry: SlideEntry, reader: Reader, cohort_mpp: float | None) -> SlideInfo:
    properties = reader.properties
    sources = MppSources(
        manifest=entry.mpp,
        reader=_pair(properties, "openslide.mpp-x", "openslide.mpp-y"),
        tiff=_tiff_mpp(properties),
        objective=_number(properties, "openslide.objective-power"),
        cohort=cohort_mpp,
    )
    if sources.reader and sources.tiff and math.isclose(sources.reader[0], sources.tiff[0], rel_tol=1e-3):
        # The reader took its value from the same tags.
        sources = MppSources(sources.manifest, sources.reader, None, sources.objective, sources.cohort)
    scale = resolve_mpp(sources, entry.slide_id, entry.path)
    width0, height0 = reader.level_sizes[0]
    try:
        print_ = fingerprint(entry.path)
    except OSError as error:
        raise SlideError(f"{entry.path} cannot be read: {error}.", "Check the file and its permissions.") from error
    return SlideInfo(
        slide_id=entry.slide_id,
        path=entry.path,
        vendor=reader.vendor,
        width0=width0,
        height0=height0,
        mpp=scale.mpp,
        mpp_source=scale.source,
        objective=sources.objective,
        level_sizes=reader.level_sizes,
        level_downsamples=tuple(
            true_downsample(reader.level_sizes[0], size, given)
            for size, given in zip(reader.level_sizes, reader.level_downsamples, strict=True)
        ),
        bounds_px0=_bounds(properties, width0, height0),
        warnings=scale.warnings,
        fingerprint=print_,
    )


def true_downsample(size0: tuple[int, int], size: tuple[int, int], given: float) -> float:
    """Undo the rounding in a level's downsample.

    Readers divide the sizes of two levels, of which the smaller was rounded to whole pixels: 4.00012
    instead of 4 puts the far end of a large slide a pixel off. Where the sizes fit a whole number, it is meant.
    """
    whole = max(1, round(given))
    fits = all(big // whole <= small <= -(-big // whole) for big, small in zip(size0, size, strict=True))
    return float(whole) if fits else given


def _bounds(properties: Mapping[str, str], width0: int, height0: int) -> tuple[int, int, int, int]:
    named = [_number(properties, f"openslide.bounds-{name}") for name in ("x", "y", "width", "height")]
    if any(value is None for value in named):
        return 0, 0, width0, height0
    x0, y0, width, height = (int(value or 0) for value in named)
    left, top = min(max(x0, 0), width0), min(max(y0, 0), height0)
    right, bottom = min(max(x0 + width, left), width0), min(max(y0 + height, top), height0)
    if right <= left or bottom <= top:
        return 0, 0, width0, height0
    return left, top, right - left, bottom - top


def _tiff_mpp(properties: Mapping[str, str]) -> tuple[float, float] | None:
    pair = _pair(properties, "tiff.XResolution", "tiff.YResolution")
    unit = _UM_PER_UNIT.get(properties.get("tiff.ResolutionUnit", "inch").lower())
    return None if pair is None or unit is None else (unit / pair[0], unit / pair[1])


def _pair(properties: Mapping[str, str], name_x: str, name_y: str) -> tuple[float, float] | None:
    x, y = _number(properties, name_x), _number(properties, name_y)
    return None if not x or not y else (x, y)


def _number(properties: Mapping[str, str], name: str) -> float | None:
    with contextlib.suppress(KeyError, ValueError):
        value = float(properties[name])
        return value if math.isfinite(value) and value >= 0 else None
    return None
