"""Where a query or a tile lies in its slide: what is drawn there, and what is shown around it."""

from __future__ import annotations

from encoder.errors import HistoSeekError
from indexer.grid import parse_tile_key
from ui.views.asked import Asked
from ui.views.viewer import Box, Window

# Sides of a tile that are shown around one that was jumped to.
_AROUND = 9


def asked_boxes(asked: Asked) -> list[Box]:
    """The region or the point that a query asks for, to be drawn; none for others."""
    kind, _, rest = asked.text.partition(":")
    try:
        numbers = [int(part) for part in rest.rpartition("@")[2].split(",")]
    except ValueError:
        return []
    if kind == "region" and len(numbers) >= 4:
        xs, ys = numbers[::2], numbers[1::2]
        return [Box(min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys), "query")]
    return [Box(numbers[0], numbers[1], 0, 0, "query")] if kind in {"at", "tile"} and len(numbers) == 2 else []


def chosen_boxes(tile_key: str, side_px0: int) -> list[Box]:
    """A tile that was jumped to, to be drawn; none where the text is no key."""
    try:
        _, x0, y0 = parse_tile_key(tile_key)
    except HistoSeekError:
        return []
    return [Box(x0, y0, side_px0, side_px0, "chosen")]


def window_around(tile_key: str, side_px0: int) -> Window:
    """A tile in the middle of what lies around it.

    Raises:
        QueryError: the text is no key.
    """
    _, x0, y0 = parse_tile_key(tile_key)
    return Window(x0 + side_px0 // 2, y0 + side_px0 // 2, _AROUND * side_px0)
