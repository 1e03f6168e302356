"""The frame around the explorer's pages: the store, the navigation, and one sentence where something is wrong."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import streamlit as st

from encoder.errors import HistoSeekError
from query.cohort import Cohort
from ui.server.opened import opened_cohort, served_store
from ui.server.sign_in import sign_in_needed
from ui.views import address
from ui.views.plain import plain
from ui.views.sentences import sentences
from ui.views.viewer import forget_viewer

_TITLE = "HistoSeek"
_FOLDER = Path(__file__).resolve().parent
_NO_VECTORS = "No slide of this store is indexed yet. Index some with: histoseek index SLIDES --store S --encoder E"


def main() -> None:
    """Draw the explorer for the store that this process serves."""
    # Pictures of our own: a named icon would be fetched from the internet.
    st.set_page_config(page_title=_TITLE, page_icon=str(_FOLDER / "mark.svg"), layout="wide", initial_sidebar_state=270)
    st.logo(str(_FOLDER / "logo.svg"), size="large", icon_image=str(_FOLDER / "mark.svg"))
    st.html(_STYLE)
    if not _signed_in():
        return
    store = served_store()
    if store is None:
        st.error("No store is served. Start the explorer with: histoseek ui --store S")
        return
    try:
        with st.spinner("Opening the store"):
            cohort = opened_cohort(store)
    except HistoSeekError as error:
        st.error(plain(error))
        return
    pages = {
        "search": _page(cohort, "ui.views.search_page", "Search", "search", "", indexed=True),
        "map": _page(cohort, "ui.views.map_page", "Map", "scatter_plot", "map", indexed=True),
        "encoders": _page(cohort, "ui.views.encoders_page", "Encoders", "compare", "encoders", indexed=True),
        "collections": _page(cohort, "ui.views.collections_page", "Collections", "bookmarks", "collections"),
        "cohort": _page(cohort, "ui.views.cohort_page", "Cohort", "inventory_2", "cohort"),
    }
    address.set_pages(pages)
    page = st.navigation(list(pages.values()), position="top")
    forget_viewer()
    address.carry(page.title)
    page.run()
    address.remember()


def _signed_in() -> bool:
    """Whether the page may be shown; where a sign-in is configured, only to those who have signed in."""
    try:
        if not sign_in_needed() or st.user.is_logged_in:
            return True
    except HistoSeekError as error:
        st.error(plain(error))
        return False
    st.markdown("#### Sign in to see the slides")
    st.button("Sign in", type="primary", on_click=st.login)
    return False


def _page(cohort: Cohort, module: str, title: str, icon: str, path: str, indexed: bool = False) -> st.Page:
    show: Callable[[], None] = partial(_draw, cohort, module, indexed)
    return st.Page(show, title=title, icon=f":material/{icon}:", url_path=path, default=not path)


def _draw(cohort: Cohort, module: str, indexed: bool) -> None:
    from importlib import import_module  # each page imports what it alone needs when it is opened

    try:
        tables = cohort.vector_tables
    except HistoSeekError:
        logging.getLogger("histoseek").exception("the store cannot be read")
        uri = plain(cohort.store.uri)
        st.error(f"The store at {uri} cannot be read any more. If it was moved, start the explorer where it is now.")
        return
    with sentences():
        if indexed and not tables:
            st.info(_NO_VECTORS)
        else:
            import_module(module).show(cohort)


_STYLE = """
<style>
  .stMainBlockContainer { padding: 4.2rem 1.6rem 2rem; max-width: none; }
  /* The slide stays in view while the hits beside it are looked through. */
  .st-key-slide_part { position: sticky; top: 4.2rem; }
  [data-testid="stSidebarUserContent"] { padding-top: 0.5rem; }
</style>
"""
