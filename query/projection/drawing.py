"""A map as a picture: how many tiles lie on each pixel, in what colour, drawn on the server."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from encoder.errors import QueryError
from query.projection.colouring import Categories, Colouring, Numbers
from query.projection.palette import CHOSEN, DENSITY, MISSING, Colour, ramp
from query.projection.tile_map import TileMap
from query.projection.window import Window, pixels_of

MOST_PIXELS = 4096
# Few tiles become discs that cover this share of the picture if none lies on another, within these radii.
_COVERED, _LEAST_RADIUS_PX, _MOST_RADIUS_PX = 0.10, 1.0, 5.0
# How solid discs and pixels with one tile are; pixels the less, the more tiles lie on others, down to the least.
_SOLID_ALPHA, _LESS_ALPHA, _LEAST_ALPHA = 0.85, 0.2, 0.35
# Counts above this quantile, or this one at least, are as solid as it gets.
_MANY_QUANTILE, _MANY = 0.995, 4
_FADED = 0.45


@dataclass(frozen=True)
class Raster:
    """The pixels that some tile lies on, in rows from the top.

    Attributes:
        pixel: column + row x width, ascending, int64 [P].
        counts: tiles on each, int64 [P].
        colours: of each, float32 [P, 3] between 0 and 255.
    """

    pixel: NDArray[np.int64]
    counts: NDArray[np.int64]
    colours: NDArray[np.float32]


@dataclass(frozen=True)
class Cells:
    """Pixels that points cover: `pixel[n]` is covered by the point at `point[n]` of those that are drawn."""

    pixel: NDArray[np.int64]
    point: NDArray[np.int64]


def draw_map(
    tile_map: TileMap,
    window: Window,
    width_px: int,
    height_px: int,
    colours: Colouring | None = None,
    selected: NDArray[np.bool_] | None = None,
    pixel_ratio: float = 1.0,
) -> NDArray[np.uint8]:
    """Draw the part of a map that a window shows, on nothing: it suits light and dark paper.

    Where there are many tiles a pixel is the more solid the more lie on it, by the logarithm; few become discs.
    A pixel has the colour of the class that most of its tiles have, the first in the legend of those that are as
    frequent, or that of the mean of their numbers; grey where none of them has one.

    Args:
        tile_map: what is drawn.
        window: the part of it.
        width_px, height_px: of the picture, at most 4096.
        colours: of the points; None colours by density.
        selected: points that stand out before the others, bool [N]; None for none.
        pixel_ratio: pixels of the picture per pixel of the screen: discs grow with it.

    Returns:
        Red, green, blue and opacity, uint8 [height_px, width_px, 4].

    Raises:
        QueryError: the picture is too large, or an argument does not belong to the map.
    """
    if not 1 <= width_px <= MOST_PIXELS or not 1 <= height_px <= MOST_PIXELS:
        raise QueryError(f"A map of {width_px} x {height_px} pixels cannot be drawn.", f"Ask for 1 to {MOST_PIXELS}.")
    if selected is not None and selected.shape != (len(tile_map),):
        raise QueryError(f"{selected.shape} selected marks do not fit {len(tile_map):,} points.", "Give one for each.")
    column, row = pixels_of(tile_map.xy, window, width_px, height_px)
    shown = np.flatnonzero((column >= 0) & (column < width_px) & (row >= 0) & (row < height_px))
    radius = disc_radius(shown.size, width_px, height_px, pixel_ratio)
    if radius:
        # Discs are drawn at twice the size, so that their edges are smooth, and some reach in from outside.
        width_px, height_px, radius = 2 * width_px, 2 * height_px, 2 * radius
        column, row = pixels_of(tile_map.xy, window, width_px, height_px)
        reach = math.ceil(radius)
        inside = (column >= -reach) & (column < width_px + reach) & (row >= -reach) & (row < height_px + reach)
        shown = np.flatnonzero(inside)
    layers = [(shown, False)]
    if selected is not None:
        chosen = selected[shown]
        layers = [(shown[~chosen], True), (shown[chosen], False)]
    picture = np.zeros((height_px * width_px, 4), np.float32)
    for points, faded in layers:
        cells = cells_of(column[points], row[points], width_px, height_px, radius)
        plain = None if selected is None else MISSING if faded else CHOSEN
        raster = rasterise(cells, points, width_px * height_px, None if faded else colours, plain)
        _lay(picture, raster, faded, bool(radius))
    whole: NDArray[np.float32] = picture.reshape(height_px, width_px, 4)
    if radius:
        whole = (whole[::2, ::2] + whole[1::2, ::2] + whole[::2, 1::2] + whole[1::2, 1::2]) / np.float32(4)
    return _bytes_of(whole)


def disc_radius(points: int, width_px: int, height_px: int, pixel_ratio: float = 1.0) -> float:
    """Radius of the discs that so many points are drawn as, in pixels; 0 where each is one pixel."""
    if not points:
        return 0.0
    radius = math.sqrt(_COVERED * width_px * height_px / (math.pi * points))
    return min(radius, _MOST_RADIUS_PX * pixel_ratio) if radius >= _LEAST_RADIUS_PX * pixel_ratio else 0.0


def disc_offsets(radius: float) -> NDArray[np.int64]:
    """Columns and rows of the pixels of a disc around its middle pixel, int64 [n, 2]."""
    reach = math.floor(radius)
    around = np.arange(-reach, reach + 1)
    column, row = (part.ravel() for part in np.meshgrid(around, around))
    return np.stack([column, row], axis=1)[column**2 + row**2 <= radius**2]


def cells_of(column: NDArray[np.int64], row: NDArray[np.int64], width_px: int, height_px: int, radius: float) -> Cells:
    """Pixels that points cover, each point a disc, or one pixel where the radius is 0."""
    if not radius:
        return Cells(row * width_px + column, np.arange(column.size))
    offsets = disc_offsets(radius)
    columns = (column[:, None] + offsets[:, 0]).ravel()
    rows = (row[:, None] + offsets[:, 1]).ravel()
    inside = (columns >= 0) & (columns < width_px) & (rows >= 0) & (rows < height_px)
    points = np.repeat(np.arange(column.size), len(offsets))
    return Cells((rows * width_px + columns)[inside], points[inside])


def rasterise(
    cells: Cells,
    points: NDArray[np.int64],
    pixels: int,
    colours: Colouring | None,
    plain: Colour | None = None,
) -> Raster:
    """Count the points on each pixel and give it their colour.

    Args:
        cells: which pixels they cover.
        points: rows of the map that are drawn [n].
        pixels: of the picture.
        colours: of all points of the map; None for `plain`, or where that is None too for the density.
        plain: one colour for all.
    """
    all_counts = np.bincount(cells.pixel, minlength=pixels)
    pixel = np.flatnonzero(all_counts)
    counts = all_counts[pixel]
    place_of = np.empty(pixels, np.int64)
    place_of[pixel] = np.arange(pixel.size)
    places = place_of[cells.pixel]
    if isinstance(colours, Categories):
        shades = _majority(places, pixel.size, colours.codes[points][cells.point], colours.colours)
    elif isinstance(colours, Numbers):
        shades = _means(places, pixel.size, colours.values[points][cells.point], colours)
    elif plain is not None:
        shades = np.broadcast_to(np.asarray(plain, np.float64), (pixel.size, 3))
    else:
        low, high = (np.asarray(colour, np.float64) for colour in DENSITY)
        shades = low + _solidity(counts)[:, None] * (high - low)
    return Raster(pixel, counts, shades.astype(np.float32))


def _majority(
    places: NDArray[np.int64], count: int, codes: NDArray[np.int16], palette: NDArray[np.uint8]
) -> NDArray[np.float64]:
    """Colour of the most frequent class of each pixel; of classes as frequent, the first of the legend."""
    best, most = np.zeros(count, np.int64), np.zeros(count, np.int64)
    for code in range(len(palette)):
        here = np.bincount(places[codes == code], minlength=count)
        better = here > most
        best[better], most[better] = code, here[better]
    return palette.astype(np.float64)[best] if len(palette) else np.zeros((count, 3))


def _means(places: NDArray[np.int64], count: int, values: NDArray[np.float32], colours: Numbers) -> NDArray[np.float64]:
    """Colour of the mean of each pixel's numbers; grey where none of its tiles has one."""
    known = ~np.isnan(values)
    with_number = np.bincount(places[known], minlength=count)
    totals = np.bincount(places[known], weights=values[known], minlength=count)
    spread = colours.high - colours.low
    shares = (totals / np.maximum(with_number, 1) - colours.low) / spread if spread else np.full(count, 0.5)
    shades = ramp(np.clip(shares, 0, 1))
    shades[with_number == 0] = MISSING
    return shades


def _solidity(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """How much more than one tile lies on a pixel, by the logarithm: 0 for one, 1 for as many as on the fullest."""
    return np.clip(np.log(counts) / math.log(_most(counts)), 0, 1)


def _most(counts: NDArray[np.int64]) -> float:
    """Tiles on the fullest pixel, but for a few with far more than all others, which would make these pale."""
    return max(float(np.quantile(counts, _MANY_QUANTILE)), _MANY) if counts.size else float(_MANY)


def _lay(picture: NDArray[np.float32], raster: Raster, faded: bool, discs: bool) -> None:
    """Lay a raster over a picture [pixels, 4] whose colours are multiplied by their opacity, in place."""
    less = 0.0 if discs else _LESS_ALPHA * math.log(_most(raster.counts) / _MANY)
    least = max(_LEAST_ALPHA, _SOLID_ALPHA - less)
    alpha = ((least + (1 - least) * _solidity(raster.counts)) * (_FADED if faded else 1)).astype(np.float32)[:, None]
    below = picture[raster.pixel] * (1 - alpha)
    picture[raster.pixel] = below + alpha * np.concatenate(
        [raster.colours, np.full((len(raster.colours), 1), 255, np.float32)], axis=1
    )


def _bytes_of(picture: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Colours as such, no longer multiplied by their opacity."""
    solid = picture[..., 3:] / 255
    colours = np.divide(picture[..., :3], solid, out=np.zeros_like(picture[..., :3]), where=solid > 0)
    return np.concatenate([colours, picture[..., 3:]], axis=-1).round().astype(np.uint8)


def png_of(pixels: NDArray[np.uint8]) -> bytes:
    """A picture [H, W, 3 or 4] as PNG."""
    buffer = io.BytesIO()
    # The highest compression takes ten times as long for a tenth less.
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
