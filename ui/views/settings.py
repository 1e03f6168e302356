"""How the explorer searches: the side bar, whose every choice is part of the link."""

from __future__ import annotations

from dataclasses import dataclass

import streamlit as st

from encoder.errors import HistoSeekError
from query.choice import VectorTable
from query.cohort import Cohort
from ui.views.address import put
from ui.views.filters import filter_controls
from ui.views.plain import plain
from ui.views.selection import Selection, parse_selection, selected_tiles

_HITS = 20
_LEAVE_OUT = {"nothing": "Nothing", "slide": "Same slide", "patient": "Same patient"}
_PER_SLIDE = ("No limit", "1", "2", "3", "5", "10")


@dataclass(frozen=True)
class Settings:
    """What a search asks for beside its query.

    Attributes:
        table: the vectors that are compared.
        k: hits wanted.
        leave_out: `nothing`, `slide` or `patient`: what of the query's own is left out.
        per_slide: most hits of one slide; None for no limit.
        where: condition over the store's columns; None for none.
        selection: tiles of a map that alone are searched; None for all.
    """

    table: VectorTable
    k: int
    leave_out: str
    per_slide: int | None
    where: str | None
    selection: Selection | None = None

    @property
    def exclude(self) -> tuple[str, ...]:
        """As `Cohort.search` takes it."""
        return () if self.leave_out == "nothing" else (self.leave_out,)


def choose_vectors(cohort: Cohort) -> VectorTable:
    """Let people choose among the store's encoders and grids, where there is a choice."""
    tables = cohort.vector_tables
    names = dict(zip(vector_names(cohort), tables, strict=True))
    if len(names) == 1:
        return tables[0]
    return names[st.selectbox("Searched with", list(names), key="vectors", bind="query-params")]


def vector_names(cohort: Cohort) -> list[str]:
    """Names that people can tell the store's vectors by, in the order of `vector_tables`."""
    mpps = {row["grid_id"]: row["mpp"] for row in cohort.grids.select(["grid_id", "mpp"]).to_pylist()}
    names = [f"{table.encoder_name}, {mpps[table.grid_id]:g} µm/px" for table in cohort.vector_tables]
    return [
        name if names.count(name) == 1 else f"{name} ({table.encoder_id}, {table.grid_id})"
        for name, table in zip(names, cohort.vector_tables, strict=True)
    ]


def search_settings(cohort: Cohort) -> Settings:
    """Draw the side bar."""
    with st.sidebar:
        table = choose_vectors(cohort)
        selection = _selection(cohort, table)
        k = st.slider("Hits", 4, 60, _HITS, step=4, key="k", bind="query-params")
        several = len(cohort.searchable_slides(table.encoder_id, table.grid_id)) > 1
        leave_out = st.selectbox(
            "Leave out",
            list(_LEAVE_OUT),
            index=1 if several else 0,
            format_func=_LEAVE_OUT.__getitem__,
            key="leave_out",
            bind="query-params",
            help="Hits of the query's own slide or patient are often hits of its stain or scanner.",
        )
        limit = st.selectbox("At most per slide", _PER_SLIDE, key="per_slide", bind="query-params")
        with st.expander("Filter", icon=":material/filter_alt:", expanded=True):
            built = filter_controls(cohort, table)
            written = st.text_input(
                "Condition",
                placeholder="organ = 'colon' AND tissue > 0.8",
                key="where",
                bind="query-params",
                help="SQL over the columns of slides and tiles; it holds beside the controls above.",
            )
    per_slide = int(limit) if limit.isdecimal() else None
    parts = [part for part in (built, (written or "").strip()) if part]
    where = "".join(parts) or None
    if len(parts) > 1:
        where = " AND ".join(f"({part}\n)" for part in parts)
        try:
            # By itself: `true) OR (true` must not undo the controls, but be refused as what it is.
            cohort.room(table).filter.slides(parts[1])
        except HistoSeekError:
            where = parts[1]
    return Settings(table, k, leave_out, per_slide, where, selection)


def _selection(cohort: Cohort, table: VectorTable) -> Selection | None:
    """The selection of the link, where it is one of these vectors; and how to search everywhere again."""
    selection, problem = parse_selection(st.query_params.get("lasso"))
    if problem is not None:
        st.warning(plain(problem))
    if selection is None:
        return None
    if (selection.encoder_id, selection.grid_id) != (table.encoder_id, table.grid_id):
        st.caption("The selection on the map is one of other vectors and is not used here.")
        return None
    try:
        tiles = len(selected_tiles(cohort, selection))
    except HistoSeekError as error:  # a search says the same: it never quietly looks everywhere instead
        st.warning(plain(error))
    else:
        st.info(f"Only among {tiles:,} tiles selected on the map", icon=":material/gesture_select:")
    st.button("Search everywhere", on_click=put, kwargs={"lasso": None}, width="stretch")
    return selection
