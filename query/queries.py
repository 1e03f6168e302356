"""What may be asked: a tile, a point or region of a slide, a picture, a vector, several of them."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from encoder.errors import HistoSeekError, QueryError
from indexer.grid import parse_tile_key

MAX_PIXELS = 100_000_000
_FORMATS = ("PNG", "JPEG", "TIFF")  # some of Pillow's other readers start programs or read more files
_PLAIN_MODES = frozenset({"RGB", "RGBA", "L", "LA", "P", "PA", "CMYK", "YCbCr", "1"})


@dataclass(frozen=True)
class TileQuery:
    """An indexed tile by its key, `slide_id@x0,y0`."""

    key: str


@dataclass(frozen=True)
class PointQuery:
    """A point of a slide in level-0 pixels: the tile around it."""

    slide_id: str
    x0: int
    y0: int


@dataclass(frozen=True)
class ImageQuery:
    """A picture.

    Attributes:
        pixels: RGB, uint8 [H, W, 3].
        mpp: micrometres per pixel; None takes it to be the grid's.
    """

    pixels: NDArray[np.uint8]
    mpp: float | None = None

    def __post_init__(self) -> None:
        shape = self.pixels.shape
        if self.pixels.dtype != np.uint8 or len(shape) != 3 or shape[2] != 3 or not self.pixels.size:
            raise QueryError(
                f"A picture must be uint8 [height, width, 3], got {self.pixels.dtype} {list(shape)}.",
                "Convert it to RGB of 8 bits.",
            )
        if shape[0] * shape[1] > MAX_PIXELS:
            raise QueryError(
                f"The picture has {shape[0] * shape[1] / 1e6:,.0f} million pixels, "
                f"at most {MAX_PIXELS // 10**6} are read.",
                "Crop it, or index it as a slide.",
            )
        if self.mpp is not None and not 0.05 <= self.mpp <= 50:
            raise QueryError(f"Picture mpp {self.mpp:g} is not between 0.05 and 50.", "Give um per pixel.")


@dataclass(frozen=True)
class VectorQuery:
    """A vector of the encoder, of any length but zero [dim]."""

    vector: NDArray[np.floating]


@dataclass(frozen=True)
class RegionQuery:
    """A region of a slide: every indexed tile whose centre it holds.

    Attributes:
        slide_id: of the slide.
        corners: of a polygon in level-0 pixels, at least three, in their order; two are opposite corners of a
            rectangle.
    """

    slide_id: str
    corners: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        try:
            flat = np.asarray(self.corners, np.float64)
        except (TypeError, ValueError, OverflowError):
            flat = np.empty(0)
        if flat.ndim != 2 or flat.shape[1] != 2 or len(flat) < 2 or not np.isfinite(flat).all():
            raise QueryError(
                f"A region has at least two corners x,y, got {self.corners!r}.",
                "Give two opposite corners of a rectangle, or the corners of a polygon, in level-0 pixels.",
            )

    @property
    def polygon(self) -> NDArray[np.float64]:
        """Corners [n, 2]; a rectangle's four where two were given."""
        flat = np.asarray(self.corners, np.float64)
        if len(flat) > 2:
            return flat
        (left, top), (right, bottom) = flat
        return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])


@dataclass(frozen=True)
class ExamplesQuery:
    """Several examples of what is sought, and of what is not.

    Attributes:
        like: queries, at least one.
        unlike: queries.
    """

    like: tuple[Query, ...]
    unlike: tuple[Query, ...] = ()

    def __post_init__(self) -> None:
        if not self.like:
            raise QueryError("There is no example of what is sought.", "Give at least one in `like`.")
        if any(isinstance(query, ExamplesQuery) for query in (*self.like, *self.unlike)):
            raise QueryError("Examples cannot hold examples.", "Give them in one list.")


Query: TypeAlias = TileQuery | PointQuery | ImageQuery | VectorQuery | RegionQuery | ExamplesQuery

_QUERIES = (TileQuery, PointQuery, ImageQuery, VectorQuery, RegionQuery, ExamplesQuery)


def examples(like: Iterable[Any], unlike: Iterable[Any] = ()) -> ExamplesQuery:
    """A query by examples, each of what `as_query` takes.

    Raises:
        QueryError: one is no query, or there is none of what is sought.
    """
    return ExamplesQuery(tuple(map(as_query, like)), tuple(map(as_query, unlike)))


def as_query(query: Any, mpp: float | None = None) -> Query:
    """Make a query of what a user has at hand.

    Args:
        query: a query; a tile key; a path, the bytes or a PIL picture; a uint8 array [H, W, 3]; or a
            sequence of numbers [dim].
        mpp: micrometres per pixel, for pictures.

    Raises:
        QueryError: it is none of these, or the picture cannot be read.
    """
    if isinstance(query, _QUERIES):
        return query
    if isinstance(query, str):
        if (key := _tile_key(query)) is not None:
            return key
        if Path(query).exists():
            return read_picture(Path(query), mpp)
        raise QueryError(f"{query!r} is neither a tile key nor a picture file.", "Keys look like slide_id@1024,2048.")
    if isinstance(query, Path | bytes | Image.Image):
        return read_picture(query, mpp)
    try:
        array = np.asarray(query)
    except ValueError as error:
        raise QueryError(f"The query is no vector: {error}.", "Give one row of numbers.") from error
    if array.dtype == np.uint8 and array.ndim == 3:
        return ImageQuery(array, mpp)
    if array.ndim == 1 and array.dtype.kind in "fiu":
        return VectorQuery(array)
    raise QueryError(
        f"A query cannot be {type(query).__name__} of shape {list(array.shape)}.",
        "Give a tile key, a picture uint8 [H, W, 3], or a vector [dim].",
    )


def check_vector(vector: NDArray[np.floating], dim: int) -> NDArray[np.float64]:
    """Check a query vector against the encoder's length.

    Raises:
        QueryError: another length, not finite, or zero.
    """
    try:
        wide = np.asarray(vector, np.float64)
    except (TypeError, ValueError) as error:
        raise QueryError(f"The query is no vector: {error}.", "Give one row of numbers.") from error
    if wide.shape != (dim,):
        raise QueryError(
            f"The query vector has shape {list(wide.shape)}, this encoder's vectors have {dim} numbers.",
            "Embed the query with the encoder that is searched.",
        )
    largest = np.abs(wide).max(initial=0.0)  # NaN where any number is
    if not np.isfinite(largest):
        raise QueryError("The query vector is not finite: it holds NaN or infinity.", "Check where it came from.")
    if not largest:
        raise QueryError("The query vector is all zeros and has no direction.", "Check where it came from.")
    return wide / largest  # or the squares of very large and small numbers would be lost


def read_picture(
    source: Path | bytes | Image.Image, mpp: float | None = None, max_pixels: int = MAX_PIXELS
) -> ImageQuery:
    """Read a picture as RGB, upright, white where it is transparent.

    Args:
        source: a PNG, JPEG or TIFF, its bytes, or an open picture.
        mpp: micrometres per pixel; None takes it to be the grid's.
        max_pixels: of a larger picture nothing is decoded.

    Raises:
        QueryError: the file is missing, no such picture, broken, or too large.
    """
    name = str(source) if isinstance(source, Path) else "The picture"
    try:
        with warnings.catch_warnings():
            # Pillow warns of large pictures before the size is known here; the limit below decides.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            opened: Image.Image
            if isinstance(source, Image.Image):
                opened = source
            else:
                opened = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_FORMATS)
            if opened.width * opened.height > max_pixels:
                raise QueryError(
                    f"{name} has {opened.width * opened.height / 1e6:,.0f} million pixels, "
                    f"at most {max_pixels // 10**6} are read.",
                    "Crop it, or index it as a slide.",
                )
            if opened.mode not in _PLAIN_MODES:
                raise QueryError(f"{name} has pixels of type {opened.mode}.", "Convert it to RGB of 8 bits.")
            opened = ImageOps.exif_transpose(opened)
            if opened.mode in {"RGBA", "LA", "PA"} or "transparency" in opened.info:
                rgba = opened.convert("RGBA")
                opened = Image.new("RGBA", rgba.size, "white")
                opened.alpha_composite(rgba)
            pixels = np.asarray(opened.convert("RGB"))
    except QueryError:
        raise
    except UnidentifiedImageError as error:
        raise QueryError(f"{name} cannot be read as a picture.", "Give a PNG, JPEG or TIFF.") from error
    except Exception as error:  # a broken or hostile file may raise anything in a decoder
        raise QueryError(f"{name} cannot be read as a picture: {error}.", "Give a PNG, JPEG or TIFF.") from error
    return ImageQuery(pixels, mpp)


def _tile_key(text: str) -> TileQuery | None:
    if "@" not in text:
        return None
    try:
        parse_tile_key(text)
    except (HistoSeekError, ValueError):
        return None
    return TileQuery(text)
