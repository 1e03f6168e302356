"""Reading the tiles of a plan: OpenSlide by default, libvips where it was seen to give the same pixels."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from encoder.errors import SlideError, TileError
from indexer.grid import TilePlan
from indexer.resample import block_around, read_box
from indexer.slide import Slide
from indexer.vips_page import VipsPage, find_page

_SAMPLES = 8
# Between whole pixels OpenSlide interpolates with 8 bits; see `_shifted`.
_INTERPOLATION_TOLERANCE = 2.5

ReaderPath = Literal["vips", "openslide", "image"]


class TileReader:
    """Reads the tiles of a plan as the grid defines them; safe to share between threads.

    Sample tiles, spread over the plan and its edges included, are read first: the fast path is taken only
    where it gives OpenSlide's pixels.

    Attributes:
        path: what reads the tiles: `vips`, `openslide`, or `image` for a plain picture. Where libvips meets
            damaged data, OpenSlide reads from there on; see `fallbacks`.
        why: why the fast path is not taken, or no longer; empty where it is.

    Args:
        slide: open; it must stay so while tiles are read.
        plan: made from it.
        known: path that an earlier reader of the same plan found; its check is then not repeated.

    Raises:
        SlideError: none of the sample tiles can be read.
    """

    def __init__(self, slide: Slide, plan: TilePlan, known: ReaderPath | None = None) -> None:
        self._slide, self._plan = slide, plan
        self._page: VipsPage | None = None
        self._lock = threading.Lock()
        self._fallbacks: set[int] = set()
        self.path: ReaderPath = "openslide"
        self.why = ""
        if plan.slide.vendor == "image":
            self.path, self.why = "image", "a plain picture is in memory"
            return
        if known == "openslide":
            self.why = "an earlier check of this slide decided for OpenSlide"
            return
        page = find_page(plan.slide.path, plan.slide.vendor, plan.slide.level_sizes[plan.level])
        if known == "vips" and not isinstance(page, str):
            self.path, self._page = "vips", page
            return
        readable = self._readable_samples()
        if isinstance(page, str):
            self.why = page
        elif not len(plan):
            self.why = "there are no tiles to check it on"
        elif readable:
            self.why = _disagreement(slide, plan, page, readable)
            if not self.why:
                self.path, self._page = "vips", page

    @property
    def fallbacks(self) -> int:
        """How many tiles OpenSlide read although `path` is `vips`."""
        return len(self._fallbacks)

    def read(self, index: int) -> NDArray[np.uint8]:
        """Read one tile: uint8 [tile_px, tile_px, 3].

        Raises:
            TileError: the file is damaged there; names the tile.
        """
        page = self._page
        if page is not None:
            try:
                return self._sized(index, page)
            except TileError as error:
                if page.suspect:  # what it decodes from now on may be damaged too
                    self._page, self.why = None, error.message
        pixels = self._by_openslide(index)
        if self.path == "vips":
            with self._lock:
                self._fallbacks.add(index)  # once, however often it is read
        return pixels

    def read_batch(self, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[np.uint8]:
        """Read several tiles: uint8 [B, tile_px, tile_px, 3].

        Raises:
            TileError: one of them is damaged; names it.
        """
        side = self._plan.grid.tile_px
        batch = np.empty((len(indices), side, side, 3), dtype=np.uint8)
        for place, index in enumerate(indices):
            batch[place] = self.read(int(index))
        return batch

    def _sized(self, index: int, page: VipsPage) -> NDArray[np.uint8]:
        corner, extent = tile_box(self._plan, index)
        side = self._plan.grid.tile_px
        return read_box(
            lambda x, y, width, height: (page.read(x, y, width, height), (float(x), float(y))),
            corner,
            (extent, extent),
            (side, side),
        )

    def _by_openslide(self, index: int) -> NDArray[np.uint8]:
        corner, extent = tile_box(self._plan, index)
        side = self._plan.grid.tile_px
        read = partial(self._slide.read_level, self._plan.level)
        try:
            return read_box(read, corner, (extent, extent), (side, side))
        except TileError as error:
            raise TileError(f"Tile {self._plan.key(index)}: {error.message}", error.fix) from error

    def _readable_samples(self) -> list[int]:
        samples, readable = sample_tiles(self._plan), []
        failure: TileError | None = None
        for index in samples:
            try:
                self._by_openslide(index)
                readable.append(index)
            except TileError as error:
                failure = error
        if failure is not None and not readable:
            raise SlideError(
                f"{self._plan.slide.path}: none of {len(samples)} sample tiles can be read ({failure.message})",
                failure.fix,
            )
        return readable


def tile_box(plan: TilePlan, index: int) -> tuple[tuple[float, float], float]:
    """Corner (x, y) and side of a tile in pixels of the level that is read.

    The corner is the stored, rounded one, so that a tile can be read again from what the store says;
    the side is exact, so that its scale is.
    """
    step = plan.geometry.downsample
    x, y = float(plan.x0[index]) / step, float(plan.y0[index]) / step
    if plan.geometry.native:
        return (float(round(x)), float(round(y))), float(plan.grid.tile_px)
    return (x, y), plan.geometry.extent_exact_px0 / step


def sample_tiles(plan: TilePlan) -> list[int]:
    """Tiles spread over a plan, the outermost ones included."""
    if not len(plan):
        return []
    spread = np.linspace(0, len(plan) - 1, _SAMPLES).astype(int)
    return sorted({*spread.tolist(), int(plan.x0.argmax()), int(plan.x0.argmin()), int(plan.y0.argmax())})


def _disagreement(slide: Slide, plan: TilePlan, page: VipsPage, samples: Sequence[int]) -> str:
    """Say how a page's pixels differ from OpenSlide's; empty where they do not."""
    size = plan.slide.level_sizes[plan.level]
    blocks = [block_around(corner, (extent, extent)) for corner, extent in (tile_box(plan, i) for i in samples)]
    if slide.reader_downsamples[plan.level] != plan.geometry.downsample:
        # OpenSlide interpolates at this level but for its very corner, where the decoded pixels are compared.
        blocks.insert(0, (0, 0, min(size[0], 512), min(size[1], 512)))
    for x, y, width, height in blocks:
        try:
            expected, origin = slide.read_level(plan.level, x, y, width, height)
        except TileError:
            return f"the corner of level {plan.level} is damaged, so libvips cannot be checked there"
        try:
            if origin == (x, y):
                given = page.read(x, y, width, height)
                if not np.array_equal(given, expected):
                    difference = np.abs(given.astype(np.int16) - expected).max()
                    return f"libvips differs from OpenSlide by up to {difference} of 255 at ({x}, {y})"
            elif not _shifted(page, expected, origin, size):
                return f"libvips differs from OpenSlide's interpolated pixels at ({x}, {y})"
        except TileError as error:
            return f"libvips cannot read what OpenSlide can: {error.message}"
    return ""


def _shifted(page: VipsPage, expected: NDArray[np.uint8], origin: tuple[float, float], size: tuple[int, int]) -> bool:
    """Compare with a block that OpenSlide had to interpolate because it begins between two pixels."""
    x, y = int(np.floor(origin[0])), int(np.floor(origin[1]))
    part_x, part_y = origin[0] - x, origin[1] - y
    height, width = expected.shape[:2]
    seen = page.read(x, y, width + 1, height + 1).astype(np.float32)
    seen = (1 - part_x) * seen[:, :-1] + part_x * seen[:, 1:]
    seen = (1 - part_y) * seen[:-1] + part_y * seen[1:]
    # The outermost pixels of the level fade into nothing; they are left out, as is what lies beyond.
    left, top = max(0, 1 - x), max(0, 1 - y)
    right, bottom = min(width, size[0] - 2 - x), min(height, size[1] - 2 - y)
    if right <= left or bottom <= top:
        return True
    off = np.abs(seen - expected)[top:bottom, left:right]
    return bool(off.max() <= _INTERPOLATION_TOLERANCE)
