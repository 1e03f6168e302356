"""A line drawn on a map, as a link tells it, and the tiles inside: a filter for every page."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from encoder.errors import QueryError
from query.cohort import Cohort
from query.projection.lasso import inside, simplified
from query.projection.models import METHODS
from query.projection.tile_map import TileMap
from query.rows import tile_keys
from ui.views.map_shelf import map_shelf

MOST_CORNERS = 64
_MOST_DRAWN = 4000
# Corners are rounded to this share of the line's own size.
_STEP = 1 / 2000
_SLUG = re.compile(r"[a-z0-9][a-z0-9-]*")
_DAMAGED = "The selection in this link is damaged and was left out. Draw it again on the map."


@dataclass(frozen=True)
class Selection:
    """A line around tiles of a map.

    Attributes:
        method: of the map.
        encoder_id, grid_id: whose vectors the map is of.
        polygon: corners in coordinates of the map, at most 64; the last joins the first.
    """

    method: str
    encoder_id: str
    grid_id: str
    polygon: tuple[tuple[float, float], ...]

    def to_text(self) -> str:
        """As a link holds it; `parse_selection` reads it."""
        numbers = [format(number, ".12g") for corner in self.polygon for number in corner]
        return "_".join([self.method, self.encoder_id, self.grid_id, *numbers])


def select(tile_map: TileMap, polygon: ArrayLike) -> Selection:
    """The selection that a drawn line means: with few corners and short numbers, as its link will have it.

    Args:
        tile_map: that it was drawn on.
        polygon: corners [M, 2] in coordinates of the map.

    Raises:
        QueryError: it is no line around anything.
    """
    if len(np.atleast_1d(polygon)) > _MOST_DRAWN:
        raise QueryError(f"A line of more than {_MOST_DRAWN:,} corners is no line drawn by hand.", "Draw it again.")
    corners = simplified(polygon, MOST_CORNERS)
    size = float((corners.max(axis=0) - corners.min(axis=0)).max())
    if not size > 0:
        raise QueryError("The line goes around nothing.", "Draw around some tiles.")
    digits = math.ceil(-math.log10(size * _STEP))
    rounded = [(round(x, digits) + 0.0, round(y, digits) + 0.0) for x, y in corners.tolist()]  # no minus zero
    rows = tile_map.rows
    return Selection(tile_map.method, rows.encoder_id, rows.grid_id, tuple(rounded))


def parse_selection(text: str | None) -> tuple[Selection | None, str | None]:
    """Read what `Selection.to_text` wrote.

    Args:
        text: of a link, by whomever it was written; None or empty for none.

    Returns:
        The selection, None where there is none; and what is wrong with the text, None where nothing is.
    """
    if not text:
        return None, None
    method, _, rest = text.partition("_")
    encoder_id, _, rest = rest.partition("_")
    grid_id, _, numbers = rest.partition("_")
    parts = numbers.split("_", 2 * MOST_CORNERS)
    try:
        values = [float(part) for part in parts]
    except ValueError:
        return None, _DAMAGED
    known = method in METHODS and _SLUG.fullmatch(encoder_id) and _SLUG.fullmatch(grid_id)
    if not known or len(values) % 2 or not 6 <= len(values) <= 2 * MOST_CORNERS or not np.isfinite(values).all():
        return None, _DAMAGED
    return Selection(method, encoder_id, grid_id, tuple(zip(values[::2], values[1::2], strict=True))), None


def selected_tiles(cohort: Cohort, selection: Selection) -> NDArray[np.int64]:
    """Ids of the tiles inside, in the order of the map's rows; read-only, and kept while the map stays.

    A plane that the store does not hold is computed; other maps must be there.

    Raises:
        QueryError: the store has no such vectors, or not the map.
    """
    table = cohort.choose(selection.encoder_id, selection.grid_id)
    shelf = map_shelf()
    tile_map = shelf.ready(cohort, table, selection.method)
    if tile_map is None:
        raise QueryError(
            f"The {selection.method.upper()} that this selection was drawn on is not computed, or not for all tiles.",
            "Compute it on the page Map, or clear the selection.",
        )

    def find() -> NDArray[np.int64]:
        found = tile_map.rows.tile_id[inside(tile_map.xy, selection.polygon)]
        found.flags.writeable = False
        return found

    return shelf.remembered(tile_map, selection, find)


def selected_keys(cohort: Cohort, selection: Selection, tile_ids: NDArray[np.int64]) -> tuple[str, ...]:
    """Keys of tiles that `selected_tiles` gave, in their order; those that are gone since are left out."""
    room = cohort.room(cohort.choose(selection.encoder_id, selection.grid_id))
    rows = room.rows.row_of(tile_ids)
    return tile_keys(room.rows, room.slides, rows[rows >= 0])
