"""The tiles beside a map: those inside the line, or the one that was clicked, and what can be done with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import streamlit as st
from numpy.typing import NDArray

from indexer.grid import parse_tile_key, tile_key
from query.choice import VectorTable
from query.cohort import Cohort
from query.projection.colouring import Categories, Colouring
from query.projection.tile_map import TileMap
from ui.views.address import go
from ui.views.gallery import Card, GalleryEvent, gallery
from ui.views.hits import picture_of
from ui.views.keeping import kept_keys, toggle_kept
from ui.views.plain import plain
from ui.views.selection import Selection
from ui.views.settings import vector_names

_SHOWN_TILES = 60
_AROUND = 9  # sides of a tile that are shown around one that was searched from


@dataclass(frozen=True)
class Chosen:
    """The tiles inside the line that the link tells.

    Attributes:
        selection: the line.
        ids: of its tiles.
        rows: those of them that the map shows, row numbers of the map.
    """

    selection: Selection
    ids: NDArray[np.int64]
    rows: NDArray[np.int64]


def vectors_name(cohort: Cohort, table: VectorTable) -> str | None:
    """What the link calls these vectors; nothing where there are no others."""
    names = vector_names(cohort)
    return names[cohort.vector_tables.index(table)] if len(names) > 1 else None


def tiles_part(
    cohort: Cohort,
    table: VectorTable,
    tile_map: TileMap,
    colours: Colouring | None,
    chosen: Chosen | None,
    picked: int | None,
) -> None:
    """Draw the tiles.

    Args:
        table: the vectors that the map is of.
        colours: of its points, which the tiles tell in words.
        chosen: the tiles inside the line; None where there is none.
        picked: id of the tile that was clicked; None for none.
    """
    row = -1 if picked is None else int(tile_map.rows.row_of(np.array([picked]))[0])
    if row >= 0:
        st.markdown("##### The tile that was clicked")
        _cards(cohort, table, tile_map, "map_tile", np.array([row]), colours)
    if chosen is None:
        if row < 0:
            st.markdown("#### What lies where?")
            st.markdown(
                "Tiles that look alike to the encoder lie close together. Draw around some with the lasso button, "
                "or hold Shift and drag, and they appear here. A click shows a single tile; the wheel zooms."
            )
        return
    inside = chosen.rows
    slides = np.unique(tile_map.rows.slide_no[inside]).size
    st.markdown(f"##### {_counted(len(chosen.ids), 'tile')} of {_counted(slides, 'slide')} inside")
    if not len(chosen.ids):
        st.info("No tile lies inside the line. Draw around some.")
        return
    lost = len(chosen.ids) - inside.size
    if lost:
        st.caption(f"{_counted(lost, 'tile')} of them have no place on this map.")
    words = _made_of(colours, inside)
    if words:
        st.caption(words)
    shown = evenly_spread(inside, _SHOWN_TILES)
    if shown.size < inside.size:
        st.caption(f"{shown.size} of them, evenly spread over the slides:")
    _cards(cohort, table, tile_map, "map_tiles", shown, colours)


def evenly_spread(rows: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """At most so many of the rows, evenly spaced: rows of a slide lie together, so all slides have their share."""
    if rows.size <= most:
        return rows
    return rows[np.linspace(0, rows.size - 1, most).round().astype(np.int64)]


def _made_of(colours: Colouring | None, rows: NDArray[np.int64]) -> str:
    """The classes that the tiles are of, the most frequent first; empty where they are not coloured by classes."""
    if not isinstance(colours, Categories):
        return ""
    counts = np.bincount(colours.codes[rows], minlength=len(colours.legend))
    order = [line for line in np.argsort(-counts, kind="stable").tolist() if counts[line]]
    parts = [f"{colours.legend[line].name} {counts[line]:,}{_share(counts[line] / rows.size)}" for line in order]
    return plain(f"{colours.column}: {' · '.join(parts)}")


def _share(share: float) -> str:
    return f" ({100 * share:.0f} %)" if share >= 0.005 else ""


def _cards(
    cohort: Cohort,
    table: VectorTable,
    tile_map: TileMap,
    key: str,
    shown: NDArray[np.int64],
    colours: Colouring | None,
) -> None:
    """Draw tiles, and do what is asked of them: search from one, or keep it."""
    rows, slides = tile_map.rows, tile_map.slides
    ids = rows.tile_id[shown].tolist()
    thumbs = cohort.store.thumbs(rows.grid_id, ids)
    names, numbers = slides["slide_id"].to_pylist(), slides["slide_no"].to_pylist()
    slide_nos = dict(zip(names, numbers, strict=True))
    kept = kept_keys(rows.grid_id)
    cards = []
    for row, tile_id in zip(shown.tolist(), ids, strict=True):
        slide_id, x0, y0 = names[rows.slide_code[row]], int(rows.x0[row]), int(rows.y0[row])
        place = {"slide_id": slide_id, "x0": x0, "y0": y0, "extent_px0": int(rows.extent_px0[row])}
        tile = tile_key(slide_id, x0, y0)
        image = picture_of(place, thumbs.get(tile_id), slide_nos)
        words = _value_of(colours, row)
        lines = (f"{x0:,}, {y0:,}",) if words is None else (words, f"{x0:,}, {y0:,}")
        cards.append(Card(tile, slide_id, lines, image, "Search from this tile", kept=tile in kept))
    event = _gallery(key, cards, 176 if len(cards) == 1 else 104, rows.grid_id)
    if event is not None and event.action == "search":
        sides_px0 = dict(zip((card.tile_key for card in cards), rows.extent_px0[shown].tolist(), strict=True))
        _search_from(cohort, table, event.tile_key, sides_px0[event.tile_key])


def _gallery(key: str, cards: Sequence[Card], width_px: int, grid_id: str) -> GalleryEvent | None:
    """The one place that draws a gallery."""

    def told(event: GalleryEvent) -> None:
        if event.action == "keep":
            toggle_kept(event.tile_key, grid_id)

    return gallery(key, cards, ("search", "keep"), width_px, on_event=told)


def _value_of(colours: Colouring | None, row: int) -> str | None:
    if colours is None:
        return None
    if isinstance(colours, Categories):
        return colours.legend[colours.codes[row]].name
    value = float(colours.values[row])
    return "none" if np.isnan(value) else f"{value:.4g}"


def _search_from(cohort: Cohort, table: VectorTable, key: str, extent_px0: int) -> NoReturn:
    slide_id, x0, y0 = parse_tile_key(key)
    half = extent_px0 // 2
    go(
        "search",
        q=f"tile:{key}",
        slide=slide_id,
        view=f"{x0 + half},{y0 + half},{_AROUND * extent_px0}",
        like=None,
        unlike=None,
        lasso=None,
        vectors=vectors_name(cohort, table),
    )


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
