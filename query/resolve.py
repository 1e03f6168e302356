"""From a query to the vector that is compared: look an indexed tile up, or embed pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from encoder.errors import QueryError
from indexer.grid import MAX_UPSAMPLING, WARN_UPSAMPLING, parse_tile_key, tile_key
from indexer.resample import resample
from query.guard import nearest_name
from query.queries import ImageQuery, PointQuery, Query, TileQuery, check_vector
from query.rows import TileRows

MAX_PICTURE_TILES = 64

Embed = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
ReadTile = Callable[[int, int, int], NDArray[np.uint8]]


@dataclass(frozen=True)
class Probe:
    """A query that is ready to be compared.

    Attributes:
        vector: float64 [dim], not zero.
        words: the query as shown to people.
        slide_code: the query's slide as its row in the cohort's slides; None where it has none.
        row: the indexed tile that is the query; None where it is none.
        picture: the query's pixels where they were at hand.
        notes: what the user should know.
    """

    vector: NDArray[np.float64]
    words: str
    slide_code: int | None = None
    row: int | None = None
    picture: Image.Image | None = None
    notes: tuple[str, ...] = ()


def resolve(
    query: Query, rows: TileRows, slides: pa.Table, mpp: float, tile_px: int, embed: Embed, read_tile: ReadTile
) -> Probe:
    """Turn a query into a probe.

    Args:
        rows: the tiles that will be searched.
        slides: the cohort's slides, sorted by id.
        mpp, tile_px: of the grid.
        embed: vectors of tiles uint8 [N, tile_px, tile_px, 3].
        read_tile: pixels of the tile centred on a point, by slide code, x0, y0.

    Raises:
        QueryError: slide or tile are unknown, or the vector does not fit.
    """
    if isinstance(query, TileQuery):
        return _of_tile(query, rows, slides)
    if isinstance(query, PointQuery):
        return _of_point(query, rows, slides, embed, read_tile)
    if isinstance(query, ImageQuery):
        return _of_picture(query, mpp, tile_px, embed)
    return Probe(check_vector(query.vector, rows.matrix.shape[1]), "a vector")


def slide_code(slide_id: str, slides: pa.Table) -> int:
    """Row of a slide in the cohort's slides.

    Raises:
        QueryError: there is no such slide.
    """
    ids = slides["slide_id"].to_pylist()
    try:
        return ids.index(slide_id)
    except ValueError:
        raise QueryError(f"There is no slide {slide_id!r} in the store.", nearest_name(slide_id, ids)) from None


def picture_tiles(
    pixels: NDArray[np.uint8], mpp: float | None, grid_mpp: float, tile_px: int
) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """Cut a picture into tiles of the grid's scale, uint8 [n, tile_px, tile_px, 3], and say how.

    The tiles lie edge to edge around the picture's centre; a picture smaller than one tile gives its
    central square, enlarged.

    Raises:
        QueryError: it would have to be enlarged more than a slide may be.
    """
    notes = []
    if mpp is None:
        notes.append(f"The picture's scale is unknown: taken to be the grid's {grid_mpp:g} um/px.")
    height, width = pixels.shape[:2]
    wanted = tile_px * grid_mpp / (mpp or grid_mpp)
    side = min(wanted, float(min(height, width)))
    notes += _enlargement_notes(wanted, side, tile_px)
    columns, rows = max(1, int(width / side + 1e-6)), max(1, int(height / side + 1e-6))
    left, top = (width - columns * side) / 2, (height - rows * side) / 2
    count = min(rows * columns, MAX_PICTURE_TILES)
    if count < rows * columns:
        notes.append(f"{count} of the picture's {rows * columns} tiles were used, evenly spread.")
    if count > 1:
        notes.append(f"The query is the mean of {count} tiles that cover the picture.")
    picked = np.linspace(0, rows * columns - 1, count).round().astype(int).tolist()
    corners = [(left + number % columns * side, top + number // columns * side) for number in picked]
    tiles = [resample(pixels, corner, (side, side), (tile_px, tile_px)) for corner in corners]
    return np.stack(tiles), tuple(notes)


def mean_direction(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """Mean of the vectors' directions [N, dim], each of unit length first."""
    wide = vectors.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    return (wide / np.where(norms > 0, norms, 1.0)).mean(axis=0)


def _enlargement_notes(wanted: float, side: float, tile_px: int) -> list[str]:
    """Say how far a picture is enlarged for the grid's tiles; slides are held to the same limits.

    Args:
        wanted: side of a tile at the grid's scale, pixels of the picture.
        side: side of the squares that the picture is cut into, pixels of the picture.

    Raises:
        QueryError: too far.
    """
    factor = max(tile_px, wanted) / side
    if factor > MAX_UPSAMPLING:
        raise QueryError(
            f"The picture would have to be enlarged {factor:.1f}x, at most {MAX_UPSAMPLING:g}x is done: "
            f"a tile of this grid is {wanted:.3g} of its pixels wide, and it can give {side:.3g}.",
            "Give a larger or finer picture, check its mpp, or choose a coarser grid.",
        )
    notes = []
    if wanted > side * 1.02:
        notes.append(f"The picture covers less than one tile ({side:.0f} of {wanted:.0f} px): its centre was enlarged.")
    if factor > WARN_UPSAMPLING:
        notes.append(f"The picture was enlarged {factor:.2f}x: it shows less detail than the tiles.")
    return notes


def _of_tile(query: TileQuery, rows: TileRows, slides: pa.Table) -> Probe:
    slide_id, x0, y0 = parse_tile_key(query.key)
    code = slide_code(slide_id, slides)
    own = rows.of_slide(code)
    if not own.size:
        raise QueryError(
            f"Slide {slide_id} has no vectors of {rows.encoder_id} on {rows.grid_id}: "
            f"it is {slides['status'][code].as_py()}.",
            "Index it, or choose a slide that is indexed.",
        )
    found = own[(rows.x0[own] == x0) & (rows.y0[own] == y0)]
    if not found.size:
        near = own[np.argmin(np.hypot(rows.x0[own].astype(float) - x0, rows.y0[own].astype(float) - y0))]
        raise QueryError(
            f"Slide {slide_id} has no indexed tile at {x0},{y0}.",
            f"The nearest is {tile_key(slide_id, int(rows.x0[near]), int(rows.y0[near]))}.",
        )
    return _indexed(int(found[0]), query.key, code, rows)


def _of_point(query: PointQuery, rows: TileRows, slides: pa.Table, embed: Embed, read_tile: ReadTile) -> Probe:
    code = slide_code(query.slide_id, slides)
    width0, height0 = slides["width0"][code].as_py(), slides["height0"][code].as_py()
    if width0 is not None and not (0 <= query.x0 < width0 and 0 <= query.y0 < height0):
        raise QueryError(
            f"Point {query.x0},{query.y0} is outside slide {query.slide_id}, "
            f"which is {width0} x {height0} level-0 pixels.",
            "Give a point inside.",
        )
    own = rows.of_slide(code)
    words = f"{query.slide_id} at {query.x0},{query.y0}"
    dx, dy = query.x0 - rows.x0[own].astype(np.int64), query.y0 - rows.y0[own].astype(np.int64)
    extent = rows.extent_px0[own].astype(np.int64)
    holds = (dx >= 0) & (dy >= 0) & (dx < extent) & (dy < extent)
    if holds.any():
        off = np.where(holds, np.hypot(dx - extent / 2, dy - extent / 2), np.inf)
        row = int(own[np.argmin(off)])
        key = tile_key(query.slide_id, int(rows.x0[row]), int(rows.y0[row]))
        return _indexed(row, words, code, rows, (f"The point lies in the indexed tile {key}.",))
    pixels = read_tile(code, query.x0, query.y0)
    note = "No indexed tile holds the point: the slide was read there and embedded."
    tiles = pixels[None].copy()  # what was read may be read-only, which PyTorch warns of
    return Probe(mean_direction(embed(tiles)), words, code, None, Image.fromarray(pixels), (note,))


def _of_picture(query: ImageQuery, mpp: float, tile_px: int, embed: Embed) -> Probe:
    tiles, notes = picture_tiles(query.pixels, query.mpp, mpp, tile_px)
    height, width = query.pixels.shape[:2]
    words = f"a picture of {width} x {height} px"
    return Probe(mean_direction(embed(tiles)), words, None, None, Image.fromarray(query.pixels), notes)


def _indexed(row: int, words: str, code: int, rows: TileRows, notes: tuple[str, ...] = ()) -> Probe:
    return Probe(rows.matrix[row].astype(np.float64), words, code, row, None, notes)
