"""The encoders page: one query, asked of each of the store's encoders side by side."""

from __future__ import annotations

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
from ui.views.settings import vector_names
from ui.views.slides import Slides, searchable
from ui.views.viewer import Answers, Box, Window, viewer

_HITS, _MOST_BESIDE = 12, 4
_OPEN = "open_hit"


def show(cohort: Cohort) -> None:
    """Draw the page."""
    _go_to_opened_hit()
    tables = dict(zip(vector_names(cohort), cohort.vector_tables, strict=True))
    asked = asked_of_link()
    with st.sidebar:
        chosen = st.multiselect(
            "Encoders", list(tables), default=list(tables)[:_MOST_BESIDE], max_selections=_MOST_BESIDE, key="beside"
        )
        others = st.toggle("Other slides only", value=cohort.slides.num_rows > 1, key="others")
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
            st.markdown(f"**{name}**")
            try:
                results = _search(cohort, tables[name], asked, others)
            except HistoSeekError as error:
                st.error(str(error))
                continue
            found[name] = results
            if results.nothing_close:
                st.warning("Nothing close.")
            if not len(results):
                st.info("No tile matches.")
            gallery(
                f"beside-{name}", hit_cards(results, slides.numbers, asked), ("show",), width_px=124, on_event=_open_hit
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
    boxes = []
    if asked is not None and asked.slide_id == shown:
        place = [int(part) for part in asked.text.rpartition("@")[2].split(",") if part.isdigit()]
        boxes = [Box(place[0], place[1], 0, 0, "query")] if len(place) >= 2 else []
    viewer(
        "beside_viewer",
        slides.row(shown),
        Answers(point=_clicked, region=_cut, window=_moved),
        boxes=boxes,
        window=Window.of_text(st.query_params.get("view")),
        window_token=str(shown),
        height="360px",
        busy_token=repr(asked),
    )


def _agreement(found: dict[str, Results]) -> None:
    """How many hits the encoders share: of tiles of one grid, which are the same tiles."""
    for one, other in combinations(found, 2):
        if found[one].plan.grid_id == found[other].plan.grid_id and len(found[one]):
            keys = [set(found[name].table["tile_key"].to_pylist()) for name in (one, other)]
            st.caption(f"{one} and {other} share {len(keys[0] & keys[1])} of {len(found[one])} hits.")


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


def _open_hit(event: GalleryEvent) -> None:
    st.session_state[_OPEN] = event.tile_key


def _go_to_opened_hit() -> None:
    # A page can be left in a run only, not in what is called before it.
    key = st.session_state.pop(_OPEN, None)
    if key is not None:
        go("search", slide=key.rpartition("@")[0], chosen=key)
