"""Hits that a person keeps while looking around, and what can be taken away: a collection or a file."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from encoder.errors import HistoSeekError, QueryError
from query.cohort import Cohort
from query.collections import add_tiles, collections, save_collection
from query.results import Results
from ui.views.downloads import download_row
from ui.views.plain import plain

_KEPT = "kept"
_IF_THERE = ("Leave it as it is", "Add these tiles to it", "Replace it")


def kept_keys(grid_id: str) -> tuple[str, ...]:
    """Keys of the tiles of a grid that this session keeps, in the order in which they were kept."""
    return tuple(key for key, grid in _kept().items() if grid == grid_id)


def toggle_kept(tile_key: str, grid_id: str) -> None:
    """Keep a tile, or keep it no longer."""
    if _kept().pop(tile_key, None) is None:
        _kept()[tile_key] = grid_id


def _kept() -> dict[str, str]:
    """Grid of each kept tile, by its key."""
    kept: dict[str, str] = st.session_state.setdefault(_KEPT, {})
    return kept


def _forget(grid_id: str) -> None:
    for key in kept_keys(grid_id):
        del _kept()[key]


def keep_row(cohort: Cohort, results: Results) -> None:
    """Offer to save the hits, or the kept ones, as a collection, and to download them."""
    grid_id = results.plan.grid_id
    kept = kept_keys(grid_id)
    if kept:
        with st.container(horizontal=True, vertical_alignment="center"):
            st.markdown(f":material/star: **{len(kept)}** kept for a collection")
            st.button("Forget them", on_click=_forget, args=(grid_id,), type="tertiary")
    save_popover(cohort, grid_id, f"The {len(results)} hits", lambda: tuple(results.table["tile_key"].to_pylist()))
    download_row(results, "hits")


def save_popover(cohort: Cohort, grid_id: str, words: str, keys: Callable[[], tuple[str, ...]]) -> None:
    """Offer to save tiles of a grid, or the kept ones of it, as a collection.

    Args:
        words: for the tiles.
        keys: gives theirs, when they are to be saved.
    """
    with st.popover("Save as collection", icon=":material/bookmark_add:"):
        _save_form(cohort, grid_id, words, keys)


def _save_form(cohort: Cohort, grid_id: str, words: str, keys: Callable[[], tuple[str, ...]]) -> None:
    kept = kept_keys(grid_id)
    choices = {words: keys}
    if kept:
        choices = {f"The {_tiles(len(kept))} kept with the star": lambda: kept} | choices
    with st.form("save", border=False):
        which = st.radio("Which tiles", list(choices), key="save_which")
        name = st.text_input("Name", max_chars=80, key="save_name")
        author = st.text_input("Your name (may be left empty)", max_chars=80, key="save_author")
        there = st.selectbox("If a collection of this name is there", _IF_THERE, key="save_if_there")
        sent = st.form_submit_button("Save", type="primary")
    if not sent:
        return
    try:
        done = _saved(cohort, grid_id, name, choices[which](), author, there)
    except HistoSeekError as error:
        st.error(plain(error))
    else:
        if which != words:
            _forget(grid_id)
        st.success(plain(done))


def _saved(cohort: Cohort, grid_id: str, name: str, keys: tuple[str, ...], author: str, if_there: str) -> str:
    """Save tiles; returns what was done, in words."""
    present = next((info for info in collections(cohort) if info.name.casefold() == name.strip().casefold()), None)
    if present is not None and if_there == _IF_THERE[0]:
        by = f" by {present.author}" if present.author else ""
        raise QueryError(
            f"“{present.name}” is there already: {_tiles(present.tiles)}{by}.",
            "Choose another name, or below it what to do with the one that is there.",
        )
    if present is not None and if_there == _IF_THERE[1]:
        added = add_tiles(cohort, present.name, keys, author=author)
        return f"“{present.name}” has {_tiles(len(added.tile_keys))} now."
    saved = save_collection(cohort, name, keys, author=author, grid=grid_id)
    return f"Saved {_tiles(len(keys))} as “{saved.name}”."


def _tiles(count: int) -> str:
    return f"{count:,} tile" if count == 1 else f"{count:,} tiles"
