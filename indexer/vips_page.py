"""A page of a tiled TIFF read through libvips: several times OpenSlide's rate on JPEG tiles."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import numpy as np
import pyvips
from numpy.typing import NDArray

from encoder.errors import TileError
from indexer.tiff_pages import JPEG, tiff_pages

# libvips keeps the files of recent operations open, and their tiles in memory; a slide is opened once and
# should leave nothing behind.
pyvips.cache_set_max(0)
# What libtiff grumbles about goes to this logger, and from there to stderr unless it has a handler.
logging.getLogger("pyvips").addHandler(logging.NullHandler())
# Formats whose levels are the file's own pages, tile beside tile; elsewhere tiles overlap or are shifted.
_PLAIN_PYRAMIDS = {"aperio", "generic-tiff"}


class _Alarm:
    """Counts what libvips complains of: it decodes damaged JPEG data to some picture and only leaves a message.

    Its message buffer is one for the whole process. Whoever finds a message counts it before clearing the
    buffer, so a reader that finds the buffer empty still sees that the count has risen.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0

    def count(self) -> int:
        if pyvips.vips_lib.vips_error_buffer()[0] != b"\0":
            self.ring()
            pyvips.vips_lib.vips_error_clear()
        return self._count

    def ring(self) -> None:
        with self._lock:
            self._count += 1


_ALARM = _Alarm()


class VipsPage:
    """Reads blocks of one page, until libvips complains of anything: then the page is not trusted any more.

    The threads that read share one image, whose cache of decoded JPEG tiles serves neighbouring tiles whoever
    reads them; each has a region of its own, as libvips demands. With two threads this decodes twice as many
    tiles per second as an image for each, which decode the same JPEG tiles.
    """

    def __init__(self, path: Path, number: int, width: int, height: int) -> None:
        self._path, self._number, self._width, self._height = path, number, width, height
        self._local = threading.local()
        self._lock = threading.Lock()
        self._image: pyvips.Image | None = None
        self._quiet = _ALARM.count()

    def read(self, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """Read uint8 [height, width, 3] by the page's pixels; the outside is white.

        Raises:
            TileError: libvips cannot read the block.
        """
        left, top = min(max(x, 0), self._width), min(max(y, 0), self._height)
        right, bottom = min(max(x + width, left), self._width), min(max(y + height, top), self._height)
        block = np.full((height, width, 3), 255, dtype=np.uint8)
        if right <= left or bottom <= top:
            return block
        try:
            data = self._region().fetch(left, top, right - left, bottom - top)
        except pyvips.Error as error:
            _ALARM.ring()  # the exception has emptied the buffer, which may have held another page's message
            self._local.region = None
            raise TileError(f"{self._path}, page {self._number}: {error}.") from error
        if self.suspect:
            raise TileError(f"{self._path}, page {self._number}: libvips met damaged data while it was read.")
        inside = np.frombuffer(data, dtype=np.uint8).reshape(bottom - top, right - left, 3)
        if inside.shape == block.shape:
            return inside
        block[top - y : bottom - y, left - x : right - x] = inside
        return block

    @property
    def suspect(self) -> bool:
        """Whether libvips has complained, of this page or of another, since this one was opened."""
        return _ALARM.count() != self._quiet

    def _region(self) -> pyvips.Region:
        region = getattr(self._local, "region", None)
        if region is None:
            with self._lock:
                if self._image is None:
                    self._image = self._open()
            region = self._local.region = pyvips.Region.new(self._image)
        return region

    def _open(self) -> pyvips.Image:
        try:
            image = pyvips.Image.new_from_file(str(self._path), page=self._number, access="random", fail_on="warning")
        except pyvips.Error as error:
            _ALARM.ring()
            raise TileError(f"{self._path}, page {self._number}: {error}.") from error
        if (image.width, image.height, image.bands) != (self._width, self._height, 3):
            raise TileError(f"{self._path}, page {self._number}: libvips sees other pixels than its directory.")
        if image.format != "uchar" or image.interpretation not in {"srgb", "rgb"}:
            raise TileError(f"{self._path}, page {self._number}: its pixels are no 8-bit RGB.")
        return image


def find_page(path: Path, vendor: str, size: tuple[int, int]) -> VipsPage | str:
    """Find the tiled JPEG page that is a level of the given (width, height), or say why there is none."""
    if vendor not in _PLAIN_PYRAMIDS:
        return f"{vendor} slides are read by OpenSlide"
    pages = [page for page in tiff_pages(path) if (page.width, page.height) == size and page.tile_width]
    if not pages:
        return "no tiled TIFF page has the size of the level"
    page = pages[0]
    if page.compression != JPEG or page.samples != 3:
        return f"the page's compression ({page.compression}) is not JPEG in colour"
    if page.missing_tiles:
        return f"{page.missing_tiles} tiles of the page have no data"
    return VipsPage(path, page.number, page.width, page.height)
