"""The map page: all tiles in one picture, like beside like; a line drawn around some shows them and filters by them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import streamlit as st

from encoder.errors import HistoSeekError
from encoder.progress import format_seconds
from query.choice import VectorTable
from query.cohort import Cohort
from query.projection.colouring import Colouring, colour_by, colour_columns
from query.projection.drawing import draw_map, png_of
from query.projection.making import unplaced_rows
from query.projection.models import LEAST_ROWS
from query.projection.tile_map import TileMap
from query.projection.window import nearest_point, whole_window
from ui.views.address import go, put
from ui.views.density_map import Gestures, View, density_map
from ui.views.keeping import save_popover
from ui.views.map_shelf import Work, map_shelf
from ui.views.map_tiles import Chosen, tiles_part, vectors_name
from ui.views.plain import plain
from ui.views.selection import Selection, parse_selection, select, selected_keys, selected_tiles
from ui.views.settings import vector_names

_METHODS = {"PCA": "pca", "UMAP": "umap"}
_DENSITY = "number of tiles"
_PICK_PX = 7.0  # on the screen
_FIRST_SIZE_PX = (760, 560)
_VIEW, _PICKED, _PROBLEM, _WHOLE_PAGE, _DRAWN, _RUNS = (
    f"map_{name}" for name in ("view", "picked", "problem", "whole_page", "drawn", "runs")
)


def show(cohort: Cohort) -> None:
    """Draw the page."""
    selection, problem = parse_selection(st.query_params.get("lasso"))
    if problem is not None:
        st.warning(plain(problem))
    bar = st.container(horizontal=True, vertical_alignment="bottom")
    table = _vectors(cohort, bar)
    method = _method(bar, selection)
    tile_map = _map_or_offer(cohort, table, method)
    if tile_map is None:
        return
    column, colours = _colours(cohort, bar, tile_map)
    chosen = _chosen(cohort, tile_map, selection)
    _buttons(cohort, bar, table, chosen)
    left, right = st.columns([7, 6], gap="medium")
    with left:
        _map_part(cohort, tile_map, colours, chosen)
        for words in _about(tile_map, column):
            st.caption(plain(words))
    with right:
        tiles_part(cohort, table, tile_map, colours, chosen, st.session_state.get(_PICKED))


def _vectors(cohort: Cohort, bar: Any) -> VectorTable:
    names = dict(zip(vector_names(cohort), cohort.vector_tables, strict=True))
    if len(names) == 1:
        return cohort.vector_tables[0]
    return names[bar.selectbox("Vectors", list(names), key="vectors", bind="query-params", width=280)]


def _method(bar: Any, selection: Selection | None) -> str:
    names = list(_METHODS)
    first = next((name for name in names if selection is not None and _METHODS[name] == selection.method), names[0])
    chosen = bar.segmented_control(
        "Map",
        names,
        default=first,
        required=True,
        key="method",
        bind="query-params",
        help="PCA is the plane in which the vectors spread most: distances mean something, but much lies on top of "
        "each other. UMAP keeps each tile's nearest together; how far apart groups lie means little.",
    )
    return _METHODS[str(chosen)]


def _map_or_offer(cohort: Cohort, table: VectorTable, method: str) -> TileMap | None:
    """The map; where it takes long to make, an offer to make it, or how far that has come."""
    shelf = map_shelf()
    work = shelf.work(cohort, table, method)
    if work is not None and not work.ended:
        _progress(work, method)
        return None
    if shelf.wait_seconds(cohort, table, method) > 1 and method == "pca":
        with st.spinner("Computing the map. It is kept in the store: only this once."):
            return shelf.ready(cohort, table, method)
    tile_map = shelf.ready(cohort, table, method)
    if tile_map is not None:
        return tile_map
    if work is not None and work.problem is not None:
        st.error(plain(work.problem))
    if len(cohort.room(table).rows) < LEAST_ROWS:
        st.info(f"{method.upper()} needs at least {LEAST_ROWS} tiles. Choose PCA.")
        return None
    seconds = shelf.wait_seconds(cohort, table, method)
    tiles, missing = len(cohort.room(table).rows), unplaced_rows(cohort, table, method)
    name = method.upper()
    what = f"The {name} of these {tiles:,} tiles is not computed yet."
    if missing is not None:
        what = f"{missing:,} of {tiles:,} tiles came after the {name} was computed, and have no place on it yet."
    with st.container(border=True, width=760):
        st.markdown(f"**{what}**")
        st.markdown(
            f"It takes about {_about_seconds(seconds)} on two cores, longer where they have other work, "
            "and is kept in the store. The other pages can be used meanwhile."
        )
        if st.button(f"Compute {method.upper()}", type="primary", key="compute"):
            shelf.begin(cohort, table, method)
            st.rerun()
    return None


@st.fragment(run_every=1.0)
def _progress(work: Work, method: str) -> None:
    if work.ended:
        st.rerun()
    left = max(0.0, work.seconds - work.elapsed)
    words = f"{format_seconds(work.elapsed)} so far" + (f", about {_about_seconds(left)} left" if left >= 5 else "")
    # The parts of the work are of different lengths: of the whole, only the time can be told.
    share = min(0.97, work.elapsed / max(work.seconds, 1.0))
    with st.container(border=True, width=760):
        st.markdown(f"**Computing {method.upper()}** · {words}")
        st.progress(share, text=work.step + ("" if work.share is None else f": {100 * work.share:.0f} %"))
        st.caption("You can leave this page; the map will be here when you come back.")


def _about_seconds(seconds: float) -> str:
    """A duration that is not known to the second."""
    if seconds > 90:
        return f"{round(seconds / 60)} min"
    return f"{10 * max(1, round(seconds / 10))} s"


def _colours(cohort: Cohort, bar: Any, tile_map: TileMap) -> tuple[str | None, Colouring | None]:
    shelf, store = map_shelf(), cohort.store
    stamp = store.lance.stamp(["annotations"])  # they may be added at any time
    columns = shelf.remembered(tile_map, ("columns", stamp), lambda: colour_columns(store, tile_map))
    name = bar.selectbox("Colour by", [_DENSITY, *columns], key="colour", bind="query-params", width=240)
    if name == _DENSITY:
        return None, None
    return name, shelf.remembered(tile_map, ("colours", name, stamp), lambda: colour_by(store, tile_map, name))


def _chosen(cohort: Cohort, tile_map: TileMap, selection: Selection | None) -> Chosen | None:
    if selection is None:
        return None
    try:
        ids = selected_tiles(cohort, selection)
    except HistoSeekError as error:
        st.warning(plain(error))
        return None
    # Tiles of the same grid are the same tiles, whoever made vectors of them.
    rows = tile_map.rows.row_of(ids) if selection.grid_id == tile_map.rows.grid_id else np.empty(0, np.int64)
    return Chosen(selection, ids, np.sort(rows[rows >= 0]))


def _buttons(cohort: Cohort, bar: Any, table: VectorTable, chosen: Chosen | None) -> None:
    if chosen is None:
        return
    selection, ids = chosen.selection, chosen.ids
    with bar:
        search = st.button(
            "Search only among these",
            icon=":material/filter_alt:",
            type="primary",
            key="search_among",
            disabled=not len(ids),
        )
        if len(ids):
            words = f"The {len(ids):,} tile{'s' * (len(ids) > 1)} inside the line"
            save_popover(cohort, selection.grid_id, words, lambda: selected_keys(cohort, selection, ids))
        st.button("Clear", icon=":material/close:", key="clear_lasso", on_click=put, kwargs={"lasso": None})
    if search:
        go("search", lasso=selection.to_text(), vectors=vectors_name(cohort, table))


# --- the map


@st.fragment
def _map_part(cohort: Cohort, tile_map: TileMap, colours: Colouring | None, chosen: Chosen | None) -> None:
    # Only this part runs again while the map is moved.
    if st.session_state.pop(_WHOLE_PAGE, False):
        st.rerun()
    problem = st.session_state.pop(_PROBLEM, None)
    if problem is not None:
        st.warning(plain(problem))
    view = _view(tile_map)
    picked = st.session_state.get(_PICKED)
    row = -1 if picked is None else int(tile_map.rows.row_of(np.array([picked]))[0])
    runs = st.session_state[_RUNS] = st.session_state.get(_RUNS, 0) + 1
    density_map(
        "map",
        _drawn(tile_map, view, colours, chosen),
        view,
        tile_map.extent,
        Gestures(_moved, lambda corners: _lassoed(tile_map, corners), lambda x, y, at: _clicked(tile_map, x, y, at)),
        colours,
        chosen.selection.polygon if chosen is not None and _drawn_here(chosen.selection, tile_map) else (),
        None if row < 0 else (float(tile_map.xy[row, 0]), float(tile_map.xy[row, 1])),
        str(runs),
    )


def _view(tile_map: TileMap) -> View:
    """What the browser shows of this map; all of it where it shows another one."""
    rows = tile_map.rows
    token = f"{rows.encoder_id} {rows.grid_id} {tile_map.method}"
    known: View | None = st.session_state.get(_VIEW)
    if known is not None and known.token == token:
        return known
    width_px, height_px = _FIRST_SIZE_PX if known is None else (known.width_px, known.height_px)
    ratio = 1.0 if known is None else known.pixel_ratio
    return View(token, whole_window(tile_map.extent, width_px, height_px), width_px, height_px, ratio)


def _drawn(tile_map: TileMap, view: View, colours: Colouring | None, chosen: Chosen | None) -> bytes:
    """The picture as PNG: the last one, where it is the same."""
    question = (id(tile_map), view, None if colours is None else id(colours), chosen and chosen.selection)
    kept: tuple[Any, Any, bytes] | None = st.session_state.get(_DRAWN)
    if kept is not None and kept[0] == question:
        return kept[2]
    selected = None
    if chosen is not None:
        selected = np.zeros(len(tile_map), np.bool_)
        selected[chosen.rows] = True
    pixels = draw_map(tile_map, view.window, view.width_px, view.height_px, colours, selected, view.pixel_ratio)
    png = png_of(pixels)
    st.session_state[_DRAWN] = (question, (tile_map, colours), png)  # what is held keeps its id
    return png


def _drawn_here(selection: Selection, tile_map: TileMap) -> bool:
    rows = tile_map.rows
    return (selection.method, selection.encoder_id, selection.grid_id) == (
        tile_map.method,
        rows.encoder_id,
        rows.grid_id,
    )


def _moved(view: View) -> None:
    st.session_state[_VIEW] = view


def _lassoed(tile_map: TileMap, corners: Sequence[tuple[float, float]]) -> None:
    try:
        put(lasso=select(tile_map, corners).to_text())
    except HistoSeekError as error:
        st.session_state[_PROBLEM] = str(error)
    else:
        st.session_state[_WHOLE_PAGE] = True


def _clicked(tile_map: TileMap, x: float, y: float, view: View) -> None:
    within_px = _PICK_PX * view.pixel_ratio
    row = nearest_point(tile_map.xy, x, y, view.window, view.width_px, view.height_px, within_px)
    st.session_state[_PICKED] = None if row is None else int(tile_map.rows.tile_id[row])
    st.session_state[_WHOLE_PAGE] = True


def _about(tile_map: TileMap, column: str | None) -> list[str]:
    """What to know of the map, below it."""
    first = f"{len(tile_map):,} tiles"
    shares = tile_map.settings.get("shares")
    if shares:
        across, up = (f"{100 * share:.0f} %" for share in shares)
        first += f" · {across} of the variance lie across, {up} up"
    if not tile_map.stored:
        first += " · not in the store"
    if column is None:
        first += " · the redder, the more tiles"
    return [first, *tile_map.notes]
