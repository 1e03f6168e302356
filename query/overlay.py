"""Pictures that lie over a slide: values of its tiles by colour, and what its tissue map says of each place."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from encoder.errors import QueryError, SlideError
from indexer.grid import Grid
from indexer.store import Store
from query.background import Background
from query.engines.contract import Ask
from query.engines.nearest_of import nearest_distances
from query.resolve import slide_code
from query.rows import TileRows
from query.search import background_for

if TYPE_CHECKING:
    from indexer.tissue import TissueMap
    from query.cohort import Cohort

# Longer side of a picture; what is finer is drawn together.
MAX_SIDE_PX = 2000
_LEGEND_STEPS = 5


@dataclass(frozen=True)
class LegendEntry:
    """What a colour means; the colour as `#rrggbb`."""

    colour: str
    label: str


@dataclass(frozen=True)
class Overlay:
    """A picture and where it lies.

    Attributes:
        png: RGBA, transparent where there is nothing to say; its pixels may be wide: draw them unsmoothed.
        x0, y0, width0, height0: the area that it covers, level-0 pixels, not rounded.
        legend: what its colours mean.
        note: what it shows, in a sentence or two.
    """

    png: bytes
    x0: float
    y0: float
    width0: float
    height0: float
    legend: tuple[LegendEntry, ...]
    note: str


@dataclass(frozen=True)
class Ramp:
    """Colours of values from 0 to 1.

    Attributes:
        stops: value, and its red, green, blue and opacity from 0 to 255; ascending from 0 to 1, straight between.
    """

    stops: tuple[tuple[float, tuple[int, int, int, int]], ...]

    @cached_property
    def table(self) -> NDArray[np.uint8]:
        """Colours of 256 values, uint8 [256, 4]."""
        places = [place for place, _ in self.stops]
        colours = np.array([colour for _, colour in self.stops], np.float64)
        steps = np.linspace(0, 1, 256)
        return np.rint(np.stack([np.interp(steps, places, channel) for channel in colours.T], axis=1)).astype(np.uint8)

    def rgba(self, values: NDArray[np.floating]) -> NDArray[np.uint8]:
        """Colours of values [n], uint8 [n, 4]; transparent where a value is NaN."""
        known = np.isfinite(values)
        colours = self.table[np.rint(255 * np.clip(np.where(known, values, 0.0), 0.0, 1.0)).astype(np.int64)]
        colours[~known] = 0
        return colours

    def colour(self, value: float) -> str:
        """Colour of a value as `#rrggbb`, opaque."""
        return _hex(tuple(self.rgba(np.array([value]))[0, :3].tolist()))


# From nothing over blue and green to yellow: each step is lighter than the one before, none is a colour of
# haematoxylin and eosin, and all stay apart for the colour-blind.
SIMILARITY = Ramp(
    (
        (0.0, (10, 40, 100, 0)),
        (0.1, (10, 48, 112, 90)),
        (0.4, (0, 104, 134, 160)),
        (0.7, (38, 166, 112, 205)),
        (0.9, (170, 212, 50, 230)),
        (1.0, (255, 236, 40, 245)),
    )
)


def value_overlay(
    x0: NDArray[np.integer],
    y0: NDArray[np.integer],
    extent_px0: float,
    stride_px0: float,
    values: NDArray[np.floating],
    ramp: Ramp,
    legend: tuple[LegendEntry, ...] = (),
    note: str = "",
) -> Overlay:
    """Draw one value per tile of one slide, a pixel per stride, around the centre of its tile.

    Where there are more than 2,000 along a side, several tiles share a pixel, which shows the largest value.

    Args:
        x0, y0: corners of the tiles, level-0 pixels [n], n at least 1; those of one grid.
        extent_px0: side of a tile.
        stride_px0: from one tile of the grid to the next, not rounded.
        values: from 0 to 1 [n]; NaN is transparent.
        ramp: colours of the values.
        legend, note: of the overlay.
    """
    left, top = int(x0.min()), int(y0.min())
    columns, rows = (np.rint((at - start) / stride_px0).astype(np.int64) for at, start in ((x0, left), (y0, top)))
    step = -(-(int(max(columns.max(), rows.max())) + 1) // MAX_SIDE_PX)
    columns, rows = columns // step, rows // step
    picture = np.zeros((int(rows.max()) + 1, int(columns.max()) + 1, 4), np.uint8)
    # What is written last stays; NaN is sorted to the end and must not cover a value.
    order = np.argsort(np.where(np.isfinite(values), values, -np.inf), kind="stable")
    picture[rows[order], columns[order]] = ramp.rgba(values)[order]
    side = step * stride_px0
    off = (extent_px0 - stride_px0) / 2
    return Overlay(_png(picture), left + off, top + off, picture.shape[1] * side, picture.shape[0] * side, legend, note)


def similarity_overlay(
    cohort: Cohort, query: Any, slide_id: str, encoder: str | None = None, grid: str | None = None
) -> Overlay:
    """Colour every tile of a slide by its exact distance to a query: from the nearest to the slide's median.

    The tiles that the query consists of do not count for the ends of the scale.

    Args:
        query, encoder, grid: as in `Cohort.search`.
        slide_id: of the slide to draw.

    Raises:
        QueryError: the query cannot be answered, or the slide is unknown or has no vectors here.
    """
    room, probe = cohort.probe(query, encoder, grid)
    code = slide_code(slide_id, room.slides)
    rows, own = room.rows, room.rows.of_slide(code)
    if not own.size:
        raise QueryError(
            f"Slide {slide_id} has no vectors of {rows.encoder_id} on {rows.grid_id}: "
            f"it is {room.slides['status'][code].as_py()}.",
            "Index it, or choose a slide that is indexed.",
        )
    distances = nearest_distances([Ask(vector, probe.row) for vector in probe.vectors], own, room.take)
    asked = probe.own_rows if probe.row is None else np.array([probe.row])
    others = distances[~np.isin(own, asked)]
    counted = others if others.size else distances
    nearest, median = float(counted.min()), float(np.median(counted))
    span = median - nearest
    values = np.clip((median - distances) / span, 0.0, 1.0) if span > 0 else (distances <= nearest).astype(np.float64)
    note = f"Distance of each tile to {probe.words}. Transparent: farther than half of the slide's tiles."
    share = _stride_share(cohort.grid(rows.grid_id))
    return value_overlay(
        rows.x0[own],
        rows.y0[own],
        float(rows.extent_px0[own[0]]),
        _stride_px0(rows, own, share),
        values,
        SIMILARITY,
        _distance_legend(nearest, median, background_for(probe, room)),
        note,
    )


def tissue_overlay(slide_row: dict[str, Any], grid_id: str, store: Store) -> Overlay:
    """Draw what the tissue map of a grid says of each place of a slide, computed anew from the slide's file.

    Args:
        slide_row: of the store's slides.
        grid_id: whose settings decide what tissue is; the slide's drawn mask counts too, as in indexing.
        store: that holds the grid.

    Raises:
        QueryError: there is no such grid, or the slide or its mask can no longer be read.
    """
    from indexer.tissue import tissue_mask  # SciPy and OpenSlide: only where a slide is read
    from query.slide_tile import open_indexed

    settings = {row["grid_id"]: row["settings"] for row in store.grids().to_pylist()}
    if grid_id not in settings:
        raise QueryError(f"The store has no grid {grid_id!r}.", f"Known are: {', '.join(settings)}.")
    drawn = slide_row["mask"]
    try:
        with open_indexed(slide_row) as slide:
            found = tissue_mask(slide, Grid.from_json(settings[grid_id]).tissue, None if drawn is None else Path(drawn))
    except SlideError as error:
        raise QueryError(
            f"The tissue of slide {slide_row['slide_id']} cannot be drawn: {error.message}",
            error.fix or "Make the slide's file available where it was indexed from.",
        ) from error
    return _drawn_tissue(found)


def _drawn_tissue(found: TissueMap) -> Overlay:
    from indexer.tissue import Place

    # Orange, sky blue and bluish green stay apart for the colour-blind, and from pink and purple.
    looks = {
        Place.TISSUE: ("tissue", (0, 158, 115, 70)),
        Place.PEN: ("pen", (230, 130, 0, 190)),
        Place.BLUR: ("blur", (86, 180, 233, 190)),
        Place.DARK: ("dark", (0, 0, 0, 170)),
        Place.OUTSIDE_MASK: ("outside the drawn mask", (90, 90, 90, 120)),
        Place.UNREADABLE: ("unreadable", (240, 228, 66, 190)),
    }
    step = -(-max(found.places.shape) // MAX_SIDE_PX)
    places = _most_frequent(found.places, step)
    colours = np.zeros((len(Place), 4), np.uint8)
    legend = []
    for place, (name, rgba) in looks.items():
        colours[place] = rgba
        share = float(np.mean(found.places == place))
        if share:
            legend.append(LegendEntry(_hex(rgba[:3]), f"{name}, {_percent(100 * share)} of the slide"))
    side = step * found.pitch_px0
    return Overlay(
        _png(colours[places]),
        float(found.x0),
        float(found.y0),
        places.shape[1] * side,
        places.shape[0] * side,
        tuple(legend),
        found.note or "What the grid takes for tissue, and why other places are left out.",
    )


def _most_frequent(places: NDArray[np.uint8], step: int) -> NDArray[np.uint8]:
    """What each block of `step` by `step` holds most of; the smaller number where it is equal."""
    if step == 1:
        return places
    starts = [np.arange(0, length, step) for length in places.shape]
    kinds = np.unique(places)
    counts = [
        np.add.reduceat(np.add.reduceat((places == kind).astype(np.int32), starts[0], axis=0), starts[1], axis=1)
        for kind in kinds
    ]
    return kinds[np.argmax(np.stack(counts), axis=0)]


def _stride_share(grid: Grid) -> float:
    return grid.stride_px / grid.tile_px


def _stride_px0(rows: TileRows, own: NDArray[np.int64], stride_share: float) -> float:
    """Step of the grid on a slide, from the places of the slide's tiles: its file may be elsewhere.

    Places are rounded once, so over many tiles the step is known much better than to a pixel.
    """
    ids = rows.tile_id[own]
    along = ((ids & 0xFFFF, rows.x0[own]), (ids >> 16 & 0xFFFF, rows.y0[own]))
    number, place = max(along, key=lambda pair: int(np.ptp(pair[0])))
    steps = int(np.ptp(number))
    return float(np.ptp(place)) / steps if steps else stride_share * float(rows.extent_px0[own[0]])


def _distance_legend(nearest: float, median: float, background: Background) -> tuple[LegendEntry, ...]:
    """From the nearest to the median; both ends say how many are as near by chance."""
    entries = []
    for value in np.linspace(1, 0, _LEGEND_STEPS).tolist():
        distance = median + value * (nearest - median)
        label = f"{distance:.3f}" if distance >= 0.1 else f"{distance:.2g}"
        if value in (0.0, 1.0):
            share = float(background.percentile(np.array([distance]))[0])
            what = "nearest" if value else "median of the slide"
            label += f", {what}"
            label += "" if np.isnan(share) else f": {_percent(share)} of {background.describe()} are as near"
        entries.append(LegendEntry(SIMILARITY.colour(value), label))
    return tuple(entries)


def _percent(value: float) -> str:
    if value < 0.01:
        return "less than 0.01 %"
    return f"{value:.0f} %" if value >= 10 else f"{value:.2g} %"


def _hex(rgb: tuple[int, ...]) -> str:
    return "#" + "".join(f"{channel:02x}" for channel in rgb[:3])


def _png(picture: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()
