"""The encoders page: one query, asked of each of the store's encoders side by side."""

from __future__ import annotations

from functools import partial
from itertools import combinations

import streamlit as st

from encoder.errors import HistoSeekError
from query.choice import VectorTable
from query.cohort import Cohort
from query.results import Results
from ui.views.address import go, put
from ui.views.asked import Asked, asked_of_link, put_asked, query_of
from ui.views.gallery import GalleryEvent, gallery
from ui.views.hits import hit_cards
from ui.views.places import asked_boxes, window_around
from ui.views.plain import plain
from ui.views.settings import vector_names
from ui.views.slides import Slides, searchable
from ui.views.viewer import Answers, Window, viewer

_HITS, _MOST_BESIDE = 12, 4
_OPEN = "open_hit"


def show(cohort: Cohort) -> None:
    """Draw the page."""
    _go_to_opened_hit(cohort)
    tables = dict(zip(vector_names(cohort), cohort.vector_tables, strict=True))
    asked = asked_of_link()
    with st.sidebar:
        chosen = st.multiselect(
            "Encoders",
            list(tables),
            default=list(tables)[:_MOST_BESIDE],
            max_selections=_MOST_BESIDE,
            key="beside",
            bind="query-params",
        )
        several = len(searchable(cohort, cohort.vector_tables).ids) > 1
        others = st.toggle("Other slides only", value=several, key="others", bind="query-params")
        st.caption("Filters of the search page are not used here.")
    if len(tables) == 1:
        st.info(
            "This store has the vectors of one encoder. Index it with a second one, "
            "`histoseek index --store S --encoder E2`, and both answer here side by side."
        )
    slides = searchable(cohort, cohort.vector_tables)
    if not slides.ids:
        st.info("No tissue was found on the slides that were indexed.")
        return
    _query_part(slides, asked)
    if asked is None:
        st.markdown("Click on tissue in the slide: each encoder shows what it finds most similar.")
        return
    if not chosen:
        st.info("Choose an encoder in the side bar.")
        return
    found: dict[str, Results] = {}
    for column, name in zip(st.columns(len(chosen), gap="medium"), chosen, strict=True):
        with column:
            st.markdown(f"**{plain(name)}**")
            try:
                results = _search(cohort, tables[name], asked, others)
            except HistoSeekError as error:
                st.error(plain(error))
                continue
            found[name] = results
            if results.nothing_close:
                st.warning("Nothing close.")
            if not len(results):
                st.info("No tile matches.")
            gallery(
                f"beside-{name}",
                hit_cards(results, slides.numbers, asked),
                ("show",),
                width_px=124,
                on_event=partial(_open_hit, name, int(results.table["extent_px0"][0].as_py()) if len(results) else 0),
            )
    _agreement(found)


def _search(cohort: Cohort, table: VectorTable, asked: Asked, others: bool) -> Results:
    exclude = ("slide",) if others and asked.on_slides else ()
    return cohort.search(query_of(asked), k=_HITS, exclude=exclude, encoder=table.encoder_id, grid=table.grid_id)


def _query_part(slides: Slides, asked: Asked | None) -> None:
    wanted = st.query_params.get("slide") or (asked.slide_id if asked else None)
    shown = wanted if wanted is not None and wanted in slides else slides.ids[0]
    st.session_state["beside_slide"] = shown
    st.selectbox("Slide", slides.ids, key="beside_slide", on_change=_slide_chosen)
    if wanted is not None and wanted != shown:
        st.warning(f"Slide {plain(wanted)} has no tiles among these vectors.")
    viewer(
        "beside_viewer",
        slides.row(shown),
        Answers(point=_clicked, region=_cut, window=_moved),
        boxes=asked_boxes(asked) if asked is not None and asked.slide_id == shown else (),
        window=Window.of_text(st.query_params.get("view")),
        window_token=str(shown),
        height="360px",
    )


def _agreement(found: dict[str, Results]) -> None:
    """How many hits the encoders share: of tiles of one grid, which are the same tiles."""
    for one, other in combinations(found, 2):
        if found[one].plan.grid_id == found[other].plan.grid_id and len(found[one]):
            keys = [set(found[name].table["tile_key"].to_pylist()) for name in (one, other)]
            st.caption(f"{plain(one)} and {plain(other)} share {len(keys[0] & keys[1])} of {len(found[one])} hits.")


def _clicked(slide_id: str, x0: int, y0: int) -> None:
    put_asked(Asked(f"at:{slide_id}@{x0},{y0}"))
    put(slide=slide_id)


def _cut(slide_id: str, corners: tuple[int, int, int, int]) -> None:
    put_asked(Asked(f"region:{slide_id}@{','.join(map(str, corners))}"))
    put(slide=slide_id)


def _moved(slide_id: str, window: Window) -> None:
    put(slide=slide_id, view=window.to_text())


def _slide_chosen() -> None:
    put(slide=st.session_state["beside_slide"], view=None)


def _open_hit(vectors: str, side_px0: int, event: GalleryEvent) -> None:
    st.session_state[_OPEN] = vectors, side_px0, event.tile_key


def _go_to_opened_hit(cohort: Cohort) -> None:
    # A page can be left in a run only, not in what is called before it.
    opened = st.session_state.pop(_OPEN, None)
    if opened is not None:
        vectors, side_px0, key = opened
        view = window_around(key, side_px0).to_text()
        one = len(cohort.vector_tables) == 1
        go("search", slide=key.rpartition("@")[0], chosen=key, view=view, vectors=None if one else vectors)
