"""Hits that a person keeps while looking around, and what can be taken away: a collection or a file."""

from __future__ import annotations

import streamlit as st

from encoder.errors import HistoSeekError
from query.cohort import Cohort
from query.collections import save_collection
from query.results import Results
from ui.views.downloads import download_row

_KEPT = "kept"


def kept_keys() -> tuple[str, ...]:
    """Keys of the tiles that this session keeps, in the order in which they were kept."""
    return tuple(st.session_state.get(_KEPT, ()))


def toggle_kept(tile_key: str) -> None:
    """Keep a tile, or keep it no longer."""
    kept = [key for key in kept_keys() if key != tile_key]
    st.session_state[_KEPT] = kept if tile_key in kept_keys() else [*kept, tile_key]


def keep_row(cohort: Cohort, results: Results) -> None:
    """Offer to save the hits, or the kept ones, as a collection, and to download them."""
    save, files = st.columns([2, 3])
    with save, st.popover("Save as collection", icon=":material/bookmark_add:", width="stretch"):
        _save_form(cohort, results)
    with files:
        download_row(results, "hits")


def _save_form(cohort: Cohort, results: Results) -> None:
    kept = kept_keys()
    choices = {f"The {len(results)} hits": tuple(results.table["tile_key"].to_pylist())}
    if kept:
        choices = {f"The {len(kept)} tiles kept with the star": kept} | choices
    with st.form("save", border=False, clear_on_submit=True):
        which = st.radio("Which tiles", list(choices), key="save_which")
        name = st.text_input("Name", max_chars=80, key="save_name")
        author = st.text_input("Your name (may be left empty)", max_chars=80, key="save_author")
        sent = st.form_submit_button("Save", type="primary")
    if not sent:
        return
    try:
        saved = save_collection(cohort, name, choices[which], author=author, grid=results.plan.grid_id)
    except HistoSeekError as error:
        st.error(str(error))
    else:
        if choices[which] == kept:
            st.session_state.pop(_KEPT, None)
        st.success(f"Saved {len(choices[which])} tiles as “{saved.name}”.")
