"""One search at a time, kept for the runs of the page that change nothing of it."""

from __future__ import annotations

from typing import Any
from weakref import ref

import streamlit as st

from query.cohort import Cohort
from query.facets import Condition, to_where
from query.results import Results
from ui.views.asked import Asked, query_of
from ui.views.selection import selected_tiles
from ui.views.settings import Settings

_KEPT = "found"


def find(cohort: Cohort, settings: Settings, asked: Asked) -> Results:
    """Search, unless this session has just asked the same of the same rows.

    Raises:
        HistoSeekError: the query cannot be answered as asked.
    """
    room = cohort.room(settings.table)
    question = (asked, settings, ref(room))
    kept: tuple[Any, Results] | None = st.session_state.get(_KEPT)
    if kept is not None and kept[0] == question:
        return kept[1]
    exclude, where = _left_out(cohort, settings, asked)
    results = cohort.search(
        query_of(asked),
        k=settings.k,
        where=where,
        exclude=exclude,
        per_slide=settings.per_slide,
        among=None if settings.selection is None else selected_tiles(cohort, settings.selection),
        encoder=settings.table.encoder_id,
        grid=settings.table.grid_id,
    )
    st.session_state[_KEPT] = (question, results)
    if len(results):
        st.session_state["extent_px0"] = results.table["extent_px0"][0].as_py()
    return results


def _left_out(cohort: Cohort, settings: Settings, asked: Asked) -> tuple[tuple[str, ...], str | None]:
    """What to exclude, and the condition.

    Of a query with marks only its own slide or patient is left out: a hit that was marked as right must not take
    all others of its slide away.
    """
    if asked.slide_id is None or settings.leave_out == "nothing":
        return (), settings.where
    if not (asked.like or asked.unlike):
        return settings.exclude, settings.where
    slides = cohort.slides.select(["slide_id", "patient_id"]).to_pylist()
    patient = next((row["patient_id"] for row in slides if row["slide_id"] == asked.slide_id), None)
    if settings.leave_out == "patient" and patient:
        own = tuple(row["slide_id"] for row in slides if row["patient_id"] == patient)
    else:
        own = (asked.slide_id,)
    kept = f"NOT ({to_where([Condition('slide_id', values=own)])})"
    return (), kept if settings.where is None else f"({settings.where}) AND {kept}"
