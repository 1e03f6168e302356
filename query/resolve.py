"""From a query to the vectors that are compared: look indexed tiles up, or embed pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from encoder.errors import QueryError
from indexer.grid import MAX_UPSAMPLING, WARN_UPSAMPLING, parse_tile_key, tile_key
from indexer.resample import resample
from query.guard import nearest_name
from query.queries import ExamplesQuery, ImageQuery, PointQuery, Query, RegionQuery, TileQuery, check_vector
from query.rows import TileRows

MAX_PICTURE_TILES = 64
# Scores that the tiles of a region may have together: a gigabyte.
_BAG_SCORES = 250_000_000
_UNLIKE_WEIGHT = 0.5
_LEAST_DIRECTION = 1e-6

Embed = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
ReadTile = Callable[[int, int, int], NDArray[np.uint8]]


@dataclass(frozen=True)
class Probe:
    """A query that is ready to be compared.

    Attributes:
        vectors: float64 [B, dim], none of them zero; a tile's distance is the one to the nearest of them.
        words: the query as shown to people.
        slide_codes: the query's slides as their rows in the cohort's slides.
        row: the indexed tile that is the query; None where it is none.
        own_rows: indexed tiles that the query consists of; they are no answers, int64 [m].
        is_mean: whether a vector is the mean of several tiles.
        picture: the query's pixels where they were at hand.
        notes: what the user should know.
    """

    vectors: NDArray[np.float64]
    words: str
    slide_codes: tuple[int, ...] = ()
    row: int | None = None
    own_rows: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    is_mean: bool = False
    picture: Image.Image | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sources:
    """What queries are looked up in.

    Attributes:
        rows: the tiles that will be searched.
        slides: the cohort's slides, sorted by id.
        take: unit vectors of rows, float32 [m, dim].
        mpp, tile_px: of the grid.
        embed: vectors of tiles uint8 [N, tile_px, tile_px, 3].
        read_tile: pixels of the tile centred on a point, by slide code, x0, y0.
    """

    rows: TileRows
    slides: pa.Table
    take: Callable[[NDArray[np.int64]], NDArray[np.float32]]
    mpp: float
    tile_px: int
    embed: Embed
    read_tile: ReadTile


def resolve(query: Query, sources: Sources) -> Probe:
    """Turn a query into a probe.

    Raises:
        QueryError: slide or tile are unknown, a region holds no tile, or a vector does not fit.
    """
    if isinstance(query, TileQuery):
        return _of_tile(query, sources)
    if isinstance(query, PointQuery):
        return _of_point(query, sources)
    if isinstance(query, ImageQuery):
        return _of_picture(query, sources)
    if isinstance(query, RegionQuery):
        return _of_region(query, sources)
    if isinstance(query, ExamplesQuery):
        return _of_examples(query, sources)
    return Probe(check_vector(query.vector, sources.rows.dim)[None], "a vector")


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


def mean_direction(vectors: NDArray[np.floating]) -> NDArray[np.float64]:
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


def _of_tile(query: TileQuery, sources: Sources) -> Probe:
    rows, slides = sources.rows, sources.slides
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
    return _indexed(int(found[0]), query.key, code, sources)


def _of_point(query: PointQuery, sources: Sources) -> Probe:
    rows, slides = sources.rows, sources.slides
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
        return _indexed(row, words, code, sources, (f"The point lies in the indexed tile {key}.",))
    pixels = sources.read_tile(code, query.x0, query.y0)
    note = "No indexed tile holds the point: the slide was read there and embedded."
    tiles = pixels[None].copy()  # what was read may be read-only, which PyTorch warns of
    vectors = mean_direction(sources.embed(tiles))[None]
    return Probe(vectors, words, (code,), picture=Image.fromarray(pixels), notes=(note,))


def _of_picture(query: ImageQuery, sources: Sources) -> Probe:
    tiles, notes = picture_tiles(query.pixels, query.mpp, sources.mpp, sources.tile_px)
    height, width = query.pixels.shape[:2]
    words = f"a picture of {width} x {height} px"
    vectors = mean_direction(sources.embed(tiles))[None]
    return Probe(vectors, words, is_mean=len(tiles) > 1, picture=Image.fromarray(query.pixels), notes=notes)


def _of_region(query: RegionQuery, sources: Sources) -> Probe:
    rows = sources.rows
    code = slide_code(query.slide_id, sources.slides)
    own = rows.of_slide(code)
    half = rows.extent_px0[own] / 2
    centres = np.stack([rows.x0[own] + half, rows.y0[own] + half], axis=1)
    inside = own[inside_polygon(centres, query.polygon)]
    if not inside.size:
        state = sources.slides["status"][code].as_py()
        raise QueryError(
            f"The region of slide {query.slide_id} holds the centre of no indexed tile.",
            "Draw it larger, over tissue." if own.size else f"The slide is {state} and has no vectors here.",
        )
    # Every tile that is compared holds one score per searched row.
    most = int(np.clip(_BAG_SCORES // max(1, len(rows)), 4, MAX_PICTURE_TILES))
    picked = inside[np.unique(np.linspace(0, inside.size - 1, most).round().astype(np.int64))]
    notes = [f"Distances are to the nearest of the region's {picked.size} tiles; its own tiles are left out."]
    if picked.size < inside.size:
        notes.append(f"{picked.size} of the region's {inside.size} tiles were compared, evenly spread.")
    words = f"a region of {query.slide_id} with {inside.size} tiles"
    return Probe(sources.take(picked).astype(np.float64), words, (code,), own_rows=inside, notes=tuple(notes))


def inside_polygon(points: NDArray[np.float64], polygon: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether points [N, 2] lie inside a polygon [n, 2], by how often a ray from each crosses its sides; bool [N]."""
    inside = np.zeros(len(points), np.bool_)
    x, y = points[:, 0], points[:, 1]
    for (x1, y1), (x2, y2) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        crosses = (y1 > y) != (y2 > y)
        if crosses.any():
            at = x1 + (y[crosses] - y1) / (y2 - y1) * (x2 - x1)
            inside[crosses] ^= x[crosses] < at
    return inside


def _of_examples(query: ExamplesQuery, sources: Sources) -> Probe:
    like = [resolve(example, sources) for example in query.like]
    unlike = [resolve(example, sources) for example in query.unlike]
    vector = _centre(like)
    if unlike:
        # Rocchio (1971): away from what is not sought, by less than towards what is.
        vector = vector - _UNLIKE_WEIGHT * _centre(unlike)
    if not np.linalg.norm(vector) > _LEAST_DIRECTION:
        raise QueryError("The examples cancel each other out.", "Take some of those that are not sought away.")
    probes = like + unlike
    own = np.unique(np.concatenate([[p.row] if p.row is not None else p.own_rows for p in probes])).astype(np.int64)
    codes = dict.fromkeys(code for probe in like for code in probe.slide_codes)
    words = f"{len(like)} example{'s' * (len(like) > 1)}"
    words += f" less {len(unlike)}" if unlike else ""
    notes = [note for probe in probes for note in probe.notes]
    notes.append("The query is the mean of its examples; tiles among them are left out.")
    return Probe(
        vector[None], words, tuple(codes), own_rows=own, is_mean=True, picture=like[0].picture, notes=tuple(notes)
    )


def _centre(probes: Sequence[Probe]) -> NDArray[np.float64]:
    """Mean of the examples' directions, each counting the same however many tiles it has."""
    return np.mean([_direction(mean_direction(probe.vectors)) for probe in probes], axis=0)


def _direction(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    norm = np.linalg.norm(vector)
    return vector / norm if norm > 0 else vector


def _indexed(row: int, words: str, code: int, sources: Sources, notes: tuple[str, ...] = ()) -> Probe:
    vectors = sources.take(np.array([row])).astype(np.float64)
    return Probe(vectors, words, (code,), row, notes=notes)
