"""The two ways to a slide's pixels: OpenSlide for slide formats, Pillow for plain pictures."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import openslide
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from encoder.errors import SlideError, TileError

# While indexing, four slides are open at once, and pictures of this size then take 1 GB; larger ones belong in
# a tiled pyramid.
MAX_PLAIN_PIXELS = 80_000_000
_PLAIN_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}


class Reader(Protocol):
    """Reads RGB regions of one file; safe to share between threads."""

    vendor: str
    level_sizes: tuple[tuple[int, int], ...]
    level_downsamples: tuple[float, ...]
    properties: Mapping[str, str]

    def read(self, x0: int, y0: int, level: int, width: int, height: int) -> NDArray[np.uint8]:
        """Read [height, width, 3] at `level` from level-0 position (x0, y0); raises TileError."""

    def close(self) -> None:
        """Release the file."""


def open_reader(path: Path) -> Reader:
    """Open a file with OpenSlide, or as a plain picture where OpenSlide does not know the format.

    Raises:
        SlideError: neither can read it.
    """
    if not path.is_file():
        raise SlideError(f"{path} does not exist or is no file.", "Check the path.")
    try:
        return OpenSlideReader(path)
    except openslide.OpenSlideUnsupportedFormatError:
        return PlainReader(path)
    except (openslide.OpenSlideError, OSError) as error:
        raise SlideError(f"{path}: OpenSlide cannot open it: {error}.", _DAMAGED) from error


class OpenSlideReader:
    """A slide in a format that OpenSlide knows; transparent pixels and the outside are white."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._handle: openslide.OpenSlide | None = openslide.OpenSlide(path)
        self.properties: Mapping[str, str] = dict(self._handle.properties)
        self.vendor = self.properties.get(openslide.PROPERTY_NAME_VENDOR, "unknown")
        self.level_sizes = tuple((int(w), int(h)) for w, h in self._handle.level_dimensions)
        self.level_downsamples = tuple(float(d) for d in self._handle.level_downsamples)

    def read(self, x0: int, y0: int, level: int, width: int, height: int) -> NDArray[np.uint8]:
        handle = self._current()
        try:
            region = handle.read_region((x0, y0), level, (width, height))
        except openslide.OpenSlideError:
            # A handle is unusable after its first error, which may have been another thread's or another
            # tile's: one that no other thread uses decides whether this region itself is damaged.
            fresh = self._reopened()
            try:
                region = fresh.read_region((x0, y0), level, (width, height))
            except openslide.OpenSlideError as error:
                fresh.close()
                raise TileError(
                    f"{self._path}: region {width} x {height} at ({x0}, {y0}), level {level}: {error}.", _DAMAGED
                ) from error
            self._replace(handle, fresh)
        return on_white(region)

    def close(self) -> None:
        with self._lock:
            if self._handle is not None:
                self._handle.close()
            self._handle = None

    def _current(self) -> openslide.OpenSlide:
        with self._lock:
            if self._handle is None:
                raise TileError(f"{self._path}: the slide is closed.", "Read it before closing it.")
            return self._handle

    def _reopened(self) -> openslide.OpenSlide:
        try:
            return openslide.OpenSlide(self._path)
        except (openslide.OpenSlideError, OSError) as error:
            raise TileError(f"{self._path}: it can no longer be opened: {error}.", _DAMAGED) from error

    def _replace(self, failed: openslide.OpenSlide, fresh: openslide.OpenSlide) -> None:
        """Put a sound handle in the place of a failed one, which closes itself once no thread uses it any more."""
        with self._lock:
            if self._handle is failed:
                self._handle = fresh
                return
        fresh.close()


class PlainReader:
    """A PNG, JPEG or flat TIFF: decoded once, one level."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.vendor = "image"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what matters is raised; the limit on pixels is ours
                with Image.open(path) as image:
                    self._refuse(image)
                    self._pixels = on_white(image)
                    self.properties: Mapping[str, str] = _resolution(image)
        except Image.DecompressionBombError as error:
            raise SlideError(f"{path}: {error}.", _CONVERT) from error
        except UnidentifiedImageError as error:
            raise SlideError(f"{path}: neither OpenSlide nor Pillow knows this format.", _DAMAGED) from error
        except (OSError, SyntaxError, ValueError) as error:
            raise SlideError(
                f"{path}: OpenSlide does not know it and Pillow cannot decode it: {error}.", _CONVERT
            ) from error
        height, width = self._pixels.shape[:2]
        self.level_sizes: tuple[tuple[int, int], ...] = ((width, height),)
        self.level_downsamples: tuple[float, ...] = (1.0,)

    def read(self, x0: int, y0: int, level: int, width: int, height: int) -> NDArray[np.uint8]:
        rows, columns = self._pixels.shape[:2]
        region = np.full((height, width, 3), 255, dtype=np.uint8)
        left, top, right, bottom = max(x0, 0), max(y0, 0), min(x0 + width, columns), min(y0 + height, rows)
        if right > left and bottom > top:
            region[top - y0 : bottom - y0, left - x0 : right - x0] = self._pixels[top:bottom, left:right]
        return region

    def close(self) -> None:
        pass

    def _refuse(self, image: Image.Image) -> None:
        if image.width * image.height > MAX_PLAIN_PIXELS:
            raise SlideError(
                f"{self._path}: {image.width} x {image.height} pixels are too many for a plain picture "
                f"(at most {MAX_PLAIN_PIXELS:,}).",
                _CONVERT,
            )
        if image.mode not in _PLAIN_MODES:
            raise SlideError(
                f"{self._path}: pixels of type {image.mode} are no 8-bit colour picture.",
                "Convert it to 8-bit RGB.",
            )


def on_white(image: Image.Image) -> NDArray[np.uint8]:
    """Flatten a picture onto white: uint8 [H, W, 3]."""
    if image.mode in {"LA", "PA"} or "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode == "RGBA":
        alpha = image.getchannel("A")
        if alpha.getextrema() != (255, 255):
            flat = Image.new("RGB", image.size, (255, 255, 255))
            flat.paste(image, mask=alpha)
            return np.asarray(flat)
    return np.asarray(image.convert("RGB"))


def _resolution(image: Image.Image) -> Mapping[str, str]:
    """A picture's resolution under the names that OpenSlide gives a TIFF's."""
    dpi = image.info.get("dpi")
    if not dpi or not all(float(value) > 0 for value in dpi):
        return {}
    return {
        "tiff.XResolution": str(float(dpi[0])),
        "tiff.YResolution": str(float(dpi[1])),
        "tiff.ResolutionUnit": "inch",
    }


_DAMAGED = "Check that the file is a slide and complete: copy it again, or open it in a viewer."
_CONVERT = (
    "If the file is complete, convert it to a tiled pyramidal TIFF, for example with `vips tiffsave --tile --pyramid`."
)
