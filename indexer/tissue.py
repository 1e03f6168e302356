"""Where the tissue of a slide is: a map at about 8 um per pixel that says why each place is used or not."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from indexer.grid import TissueSettings
from indexer.mask import read_mask
from indexer.overview import read_overview
from indexer.slide import Slide


class Place(IntEnum):
    """What a pixel of the map is."""

    GLASS = 0
    TISSUE = 1
    PEN = 2
    BLUR = 3
    DARK = 4
    OUTSIDE_MASK = 5
    UNREADABLE = 6


# How rejected tiles are counted; `OFF_SLIDE` is the part of a tile beyond the slide's bounds.
REASONS = {
    Place.GLASS: "glass",
    Place.PEN: "pen",
    Place.BLUR: "blur",
    Place.DARK: "dark",
    Place.OUTSIDE_MASK: "outside mask",
    Place.UNREADABLE: "unreadable",
}
OFF_SLIDE = "off slide"

# All values are 0..255 of 8-bit colour at the map's scale; colour is taken relative to the glass.
_GLASS_WHITE = 245.0
# Otsu splits glass from tissue only where there is both. Below the floor lies the noise of bare glass; above
# the ceiling it has begun to split pale tissue from dark tissue, as on a slide without glass.
_CHROMA_FLOOR, _CHROMA_CEILING = 9.0, 18.0
# Black and grey-black; and, as in fluorescence, light in one channel alone. The darkest lymph follicles of
# brightfield slides are at (55, 23, 57) and keep their colour.
_BLACK, _BLACK_CHROMA, _UNLIT = 60.0, 20.0, 30.0
_DARK_SLIDE_SHARE = 0.4
# Detail (mean absolute Laplacian) and contrast (standard deviation) in windows of 25 pixels at half the map's
# pitch. On five real slides sharp tissue had at least 0.4 of detail per contrast, the same tissue blurred by
# 10 um 0.1; its contrast was at least 9, that of eosin smeared over the glass below 1.
_WINDOW = 25
_SHARPNESS, _MIN_CONTRAST, _PLAIN_GLASS = 0.28, 2.5, 6.0
_MIN_FRAGMENT_UM2, _MAX_HOLE_UM2, _MIN_INK_UM2 = 6400.0, 12800.0, 3200.0


@dataclass(frozen=True)
class TissueMap:
    """What each place of a slide is.

    Attributes:
        places: uint8 [h, w] of `Place`.
        x0, y0: level-0 pixels of the map's upper left corner.
        width0, height0: the area it covers.
        pitch_px0: level-0 pixels per pixel of the map.
        note: what is wrong with the slide as a whole; empty where nothing is.
    """

    places: NDArray[np.uint8]
    x0: int
    y0: int
    width0: int
    height0: int
    pitch_px0: float
    note: str = ""

    @property
    def mask(self) -> NDArray[np.bool_]:
        """bool [h, w], true on usable tissue."""
        return self.places == Place.TISSUE


def tissue_mask(slide: Slide, settings: TissueSettings, mask: Path | None = None) -> TissueMap:
    """Map a slide's bounds into tissue, glass, ink, blur and darkness.

    Args:
        mask: GeoJSON polygons in level-0 pixels; what lies outside is `OUTSIDE_MASK`.

    Raises:
        SlideError: no part of the slide can be read, or the mask is no GeoJSON.
    """
    bounds = slide.info.bounds_px0
    # Detail is measured at half the pitch, so the slide is seen at that and averaged two by two.
    half_pitch = max(1.0, settings.pitch_um / slide.info.mpp / 2)
    seen = read_overview(slide, bounds, half_pitch)
    rgb = _halved(seen.pixels.astype(np.float32))
    unreadable = _halved(seen.unreadable.astype(np.float32)) > 0
    pitch_um = 2 * half_pitch * slide.info.mpp
    note = ""
    if settings.detect:
        places, note = classify_places(rgb, _grey(seen.pixels), settings, pitch_um)
    else:
        places = np.full(rgb.shape[:2], Place.TISSUE, dtype=np.uint8)
    places[unreadable] = Place.UNREADABLE
    found = TissueMap(places, *bounds, 2 * half_pitch, note)
    if mask is not None:
        outside = ~read_mask(mask, bounds[0], bounds[1], found.pitch_px0, places.shape)
        places[outside & (places != Place.UNREADABLE)] = Place.OUTSIDE_MASK
    return found


def classify_places(
    rgb: NDArray[np.float32], fine_grey: NDArray[np.float32], settings: TissueSettings, pitch_um: float
) -> tuple[NDArray[np.uint8], str]:
    """Tell tissue from the rest by colour and detail.

    Args:
        rgb: [h, w, 3], 0..255.
        fine_grey: [2h or 2h-1, 2w or 2w-1], the same area at half the pitch.
        pitch_um: micrometres per pixel of `rgb`.

    Returns:
        uint8 [h, w] of `Place`, and a note on the slide as a whole.
    """
    places = np.full(rgb.shape[:2], Place.GLASS, dtype=np.uint8)
    ranked = np.sort(rgb, axis=2)
    dark = (ranked[..., 2] < _BLACK) & (ranked[..., 2] - ranked[..., 0] < _BLACK_CHROMA) | (ranked[..., 1] < _UNLIT)
    if dark.mean() > _DARK_SLIDE_SHARE:
        places[:] = Place.DARK
        return places, "dark background: not a brightfield slide (fluorescence?); tissue is not looked for"
    detail, contrast = _texture(fine_grey, rgb.shape[:2])
    rgb = _on_white_glass(rgb, contrast)
    chroma = ndimage.uniform_filter(rgb.max(2) - rgb.min(2), 3)
    ink = _ink(rgb, pitch_um) if settings.reject_pen else np.zeros_like(dark)
    clean = ~dark & ~ink
    threshold = float(np.clip(_otsu(chroma[clean]), _CHROMA_FLOOR, _CHROMA_CEILING)) if clean.any() else np.inf
    # Tissue always has structure; colour without any is stain smeared over the glass.
    tissue = clean & (chroma > threshold) & (contrast > _MIN_CONTRAST)
    tissue = ndimage.binary_closing(np.pad(tissue, 2), iterations=2)[2:-2, 2:-2] & clean
    holes = ndimage.binary_fill_holes(tissue) & ~tissue
    tissue |= _small(holes, _MAX_HOLE_UM2 / pitch_um**2) & clean
    tissue &= ~_small(tissue, _MIN_FRAGMENT_UM2 / pitch_um**2)
    places[tissue] = Place.TISSUE
    if settings.reject_blur:
        places[tissue & (detail < _SHARPNESS * contrast)] = Place.BLUR
    places[ink] = Place.PEN
    places[dark] = Place.DARK
    return places, ""


def judge_tiles(
    found: TissueMap,
    left: NDArray[np.float64],
    top: NDArray[np.float64],
    extent: float,
    *,
    min_tissue: float,
    max_pen: float,
) -> tuple[NDArray[np.bool_], NDArray[np.float64], dict[str, int]]:
    """Measure the tissue in square tiles and count why the others are left out.

    Args:
        left, top: float64 [N], corners in level-0 pixels.
        extent: side in level-0 pixels.
        min_tissue: least share of tissue.
        max_pen: largest share of ink, black included.

    Returns:
        bool [N] kept; float64 [N] share of tissue; tiles left out by their main cause.
    """
    shares = {place: _shares(found, found.places == place, left, top, extent) for place in Place}
    tissue, pen = shares.pop(Place.TISSUE), shares[Place.PEN] + shares[Place.DARK]
    kept = (tissue >= min_tissue - 1e-6) & (pen <= max_pen + 1e-6) & (tissue > 0)
    causes = [*REASONS.values(), OFF_SLIDE]
    off_slide = 1.0 - tissue - sum(shares.values())
    main = np.argmax(np.stack([*(shares[place] for place in REASONS), off_slide]), axis=0)
    # A tile with enough tissue and too much ink is left out for the ink alone.
    more_pen = shares[Place.PEN] >= shares[Place.DARK]
    ink = np.where(more_pen, causes.index(REASONS[Place.PEN]), causes.index(REASONS[Place.DARK]))
    enough = (tissue >= min_tissue - 1e-6) & (tissue > 0)
    main[enough] = ink[enough]
    counts = np.bincount(main[~kept], minlength=len(causes))
    return kept, tissue, {cause: int(n) for cause, n in zip(causes, counts, strict=True) if n}


def _shares(
    found: TissueMap, where: NDArray[np.bool_], left: NDArray[np.float64], top: NDArray[np.float64], extent: float
) -> NDArray[np.float64]:
    """Exact share of each tile that `where` covers, fractions of map pixels included."""
    rows, cols = where.shape
    total = np.zeros((rows + 1, cols + 1))
    total[1:, 1:] = where.cumsum(0).cumsum(1)
    # The last row and column of the map may reach beyond the bounds; coordinates are cut there instead.
    wide, high = found.width0 / found.pitch_px0, found.height0 / found.pitch_px0

    def cut(start: NDArray[np.float64], begin: int, end: float, limit: int) -> NDArray[np.float64]:
        return np.clip((start - begin) / found.pitch_px0, 0.0, min(end, limit))

    x_left, x_right = cut(left, found.x0, wide, cols), cut(left + extent, found.x0, wide, cols)
    y_top, y_bottom = cut(top, found.y0, high, rows), cut(top + extent, found.y0, high, rows)
    area = (
        _between(total, y_bottom, x_right)
        - _between(total, y_top, x_right)
        - _between(total, y_bottom, x_left)
        + _between(total, y_top, x_left)
    )
    return area * (found.pitch_px0 / extent) ** 2


def _between(total: NDArray[np.float64], y: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bilinear look-up, which is exact for the integral of a map that is constant on each pixel."""
    return ndimage.map_coordinates(total, np.stack([y, x]), order=1, mode="nearest")


def _on_white_glass(rgb: NDArray[np.float32], contrast: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale the channels so that the glass, where some is seen, is a neutral white."""
    lightest = rgb.min(2)
    # Pale tissue is bright too, but never plain.
    bright = (lightest > 170) & (rgb.max(2) - lightest < 30) & (contrast < _PLAIN_GLASS)
    if bright.mean() < 0.005:
        return rgb
    # The lighter half: shadows and stain lie on the glass as well.
    glass = bright & (lightest >= np.quantile(lightest[bright], 0.5))
    return np.minimum(rgb * (_GLASS_WHITE / np.median(rgb[glass], axis=0)), 255.0).astype(np.float32)


def _ink(rgb: NDArray[np.float32], pitch_um: float) -> NDArray[np.bool_]:
    """Ink by hue and darkness: haematoxylin and eosin keep green the weakest colour, green and blue ink do not.

    Red ink is not told from blood, so it is not looked for.
    """
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    most = rgb.max(2)
    saturation = (most - rgb.min(2)) / np.maximum(most, 1.0)
    greenish = (green - red > 20) & (saturation > 0.25)
    bluish = (green > red - 5) & (blue > green) & (saturation > 0.5)
    black = (most < 105) & (saturation < 0.2)
    core = greenish | bluish | black
    core &= ~_small(core, _MIN_INK_UM2 / pitch_um**2)
    # The fringe of a stroke is paler than its core.
    fringe = (green > red) & (saturation > 0.08) | (most < 160) & (saturation < 0.12)
    return core | ndimage.binary_dilation(core, iterations=4) & fringe | ndimage.binary_dilation(core)


def _texture(fine_grey: NDArray[np.float32], shape: tuple[int, ...]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Detail and contrast around each pixel of the map, which has half the resolution of `fine_grey`."""
    detail = ndimage.uniform_filter(np.abs(ndimage.laplace(fine_grey)), _WINDOW)
    mean = ndimage.uniform_filter(fine_grey, _WINDOW)
    variance = ndimage.uniform_filter(fine_grey * fine_grey, _WINDOW) - mean * mean
    contrast = np.sqrt(np.maximum(variance, 0.0))
    return detail[::2, ::2][: shape[0], : shape[1]], contrast[::2, ::2][: shape[0], : shape[1]]


def _otsu(values: NDArray[np.float32]) -> float:
    """Threshold between the two classes of values 0..255 that differ most."""
    counts = np.bincount(np.clip(values, 0, 255).astype(np.int64), minlength=256).astype(np.float64)
    below = counts.cumsum()
    above = below[-1] - below
    sums = (counts * np.arange(256)).cumsum()
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    return float(np.nanargmax(np.where(np.isfinite(spread), spread, -1.0)))


def _small(where: NDArray[np.bool_], pixels: float) -> NDArray[np.bool_]:
    """The connected parts that are smaller than a number of pixels."""
    parts, _ = ndimage.label(where)
    return where & (np.bincount(parts.ravel())[parts] < pixels)


def _grey(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.matmul(pixels.astype(np.float32), np.array([0.299, 0.587, 0.114], dtype=np.float32))


def _halved(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean of two by two; an odd last row or column is its own neighbour."""
    rows, cols = image.shape[:2]
    padded = np.pad(image, [(0, rows % 2), (0, cols % 2)] + [(0, 0)] * (image.ndim - 2), mode="edge")
    quarter = np.float32(0.25)
    return (padded[::2, ::2] + padded[1::2, ::2] + padded[::2, 1::2] + padded[1::2, 1::2]) * quarter
