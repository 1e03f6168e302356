"""The collections page: what people have put together, to look through, search with, and take away."""

from __future__ import annotations

import streamlit as st

from encoder.errors import HistoSeekError
from query.cohort import Cohort
from query.collections import (
    MOST_NAME_LETTERS,
    CollectionInfo,
    collection_tiles,
    collections,
    delete_collection,
    load_collection,
    rename_collection,
)
from query.tile_list import TileList
from ui.views.address import go, put
from ui.views.asked import MAX_MARKS
from ui.views.component import data_uri
from ui.views.downloads import download_row
from ui.views.gallery import Card, gallery
from ui.views.plain import plain
from ui.views.settings import vector_names

# The widget that says which collection is open, and what went wrong before this run.
_CHOICE, _PROBLEM = "collection_choice", "collection_problem"
_PAGE_TILES = 120


def show(cohort: Cohort) -> None:
    """Draw the page."""
    problem = st.session_state.pop(_PROBLEM, None)
    if problem is not None:
        st.error(plain(problem))
    found = {info.name: info for info in collections(cohort)}
    if not found:
        st.info(
            "No collections yet. Search for something and press “Save as collection” below the hits, or above the "
            "map when you have drawn around tiles: it appears here, for everybody who opens this store."
        )
        return
    wanted = st.query_params.get("collection")
    if wanted is not None and wanted not in found:
        st.warning(f"There is no collection “{plain(wanted)}”. It may have another name now, or be deleted.")
    # The link says which one is open: the widget follows it.
    chosen = wanted if wanted is not None and wanted in found else next(iter(found))
    st.session_state[_CHOICE] = chosen
    left, right = st.columns([2, 5], gap="large")
    with left:
        st.selectbox("Collection", list(found), key=_CHOICE, on_change=_chosen)
        _overview(list(found.values()))
    with right:
        _opened(cohort, chosen)


def _chosen() -> None:
    put(collection=st.session_state[_CHOICE])


def _overview(found: list[CollectionInfo]) -> None:
    rows = [
        {"Name": info.name, "Tiles": info.tiles, "Slides": info.slides, "By": info.author, "When": info.at.date()}
        for info in found
    ]
    when = st.column_config.DateColumn(format="D MMM YYYY")
    st.dataframe(rows, hide_index=True, width="stretch", column_config={"When": when})


def _opened(cohort: Cohort, name: str) -> None:
    saved = load_collection(cohort, name)
    tiles = collection_tiles(cohort, saved)
    info = saved.info
    heading, buttons = st.columns([4, 3], vertical_alignment="bottom")
    with heading:
        # As it is: a name may hold what Markdown would take for its own.
        st.subheader(plain(info.name), anchor=False)
        by = f" by {info.author}" if info.author else ""
        st.caption(plain(f"{_counted(info)} · {info.at.day} {info.at:%B %Y, %H:%M} UTC{by}"))
    with buttons, st.container(horizontal=True, horizontal_alignment="right"):
        with st.popover("Rename", icon=":material/edit:"):
            _rename_form(cohort, info)
        if st.button("Delete", icon=":material/delete:", key="delete"):
            _confirm_deletion(cohort, info)
    if info.note:
        st.markdown(plain(info.note))
    if info.missing:
        st.warning(f"{info.missing:,} of its tiles are no longer in the store and are not shown.")
    if not len(tiles):
        st.info("There is no tile to show.")
        return
    search, files = st.columns([3, 4], vertical_alignment="bottom")
    with search:
        _search_button(cohort, tiles)
    with files:
        download_row(tiles, info.name)
    pages = -(-len(tiles) // _PAGE_TILES)
    page = st.pagination(pages, key=f"page_of_{info.name}") if pages > 1 else 1
    key = _tile_cards(tiles.part((page - 1) * _PAGE_TILES, _PAGE_TILES))
    if key is not None:
        _search_from(cohort, tiles.grid_id, q=f"tile:{key}", slide=key.rpartition("@")[0])


def _tile_cards(tiles: TileList) -> str | None:
    """Draw tiles; the key of the one that is clicked."""
    rows = zip(tiles.to_json_rows(), tiles.thumbnails(), strict=True)
    cards = [
        Card(
            row["tile_key"],
            f"{row['rank']} · {row['slide_id']}",
            image=data_uri(thumb) if thumb else "",
            hint="Search from this tile",
        )
        for row, thumb in rows
    ]
    event = gallery("collection_tiles", cards, ("search",))
    return None if event is None else event.tile_key


def _search_button(cohort: Cohort, tiles: TileList) -> None:
    count = min(len(tiles), MAX_MARKS)
    label = "Search with these as examples" if count == len(tiles) else f"Search with {count} of these as examples"
    if st.button(label, icon=":material/search:", type="primary", key="search_examples"):
        keys = tiles.table["tile_key"].to_pylist()
        # Evenly spread: what was saved together often lies together.
        like = [keys[number * len(keys) // count] for number in range(count)]
        _search_from(cohort, tiles.grid_id, q=None, like=like)


def _search_from(cohort: Cohort, grid_id: str, **params: str | list[str] | None) -> None:
    """Open the search page, with vectors of the collection's grid."""
    names = dict(zip(vector_names(cohort), cohort.vector_tables, strict=True))
    fitting = [name for name, table in names.items() if table.grid_id == grid_id]
    present = st.query_params.get("vectors", next(iter(names), None))
    vectors = present if present in fitting else next(iter(fitting), None)
    asked = {"q": None, "like": None, "unlike": None, "lasso": None} | params
    go("search", vectors=vectors if len(names) > 1 else None, **asked)


def _rename_form(cohort: Cohort, info: CollectionInfo) -> None:
    with st.form("rename", border=False):
        name = st.text_input("New name", info.name, max_chars=MOST_NAME_LETTERS, key=f"rename_{info.name}")
        sent = st.form_submit_button("Rename", type="primary")
    if not sent or name == info.name:
        return
    try:
        renamed = rename_collection(cohort, info.name, name)
    except HistoSeekError as error:
        st.error(plain(error))
        return
    put(collection=renamed.name)
    st.rerun()


@st.dialog("Delete this collection?")
def _confirm_deletion(cohort: Cohort, info: CollectionInfo) -> None:
    st.markdown(plain(f"“{info.name}” with {_counted(info)} will no longer be listed for anybody."))
    st.caption("The tiles themselves stay in the store.")
    if st.button("Delete", type="primary", key="delete_surely", on_click=_delete, args=(cohort, info.name)):
        st.rerun()


def _delete(cohort: Cohort, name: str) -> None:
    try:
        delete_collection(cohort, name)
    except HistoSeekError as error:  # told by the run that follows: this is called before it
        st.session_state[_PROBLEM] = str(error)
    else:
        put(collection=None)


def _counted(info: CollectionInfo) -> str:
    tiles, slides = "tile" if info.tiles == 1 else "tiles", "slide" if info.slides == 1 else "slides"
    return f"{info.tiles:,} {tiles} of {info.slides:,} {slides}"
