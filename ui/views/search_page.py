"""The search page: look around a slide, click on tissue, see where else it occurs."""

from __future__ import annotations

from functools import partial
from typing import Any

import streamlit as st

from encoder.errors import HistoSeekError
from indexer.grid import parse_tile_key
from query.cohort import Cohort
from query.results import Results
from ui.views.address import put
from ui.views.asked import Asked, asked_of_link, put_asked
from ui.views.found import find
from ui.views.gallery import GalleryEvent, gallery
from ui.views.hits import hit_cards
from ui.views.keeping import keep_row, kept_keys, toggle_kept
from ui.views.layers import LAYERS, layer_of, legend
from ui.views.pictures import picture_upload
from ui.views.places import asked_boxes, chosen_boxes, window_around
from ui.views.plain import plain
from ui.views.sentences import sentences
from ui.views.settings import Settings, search_settings
from ui.views.slides import Slides, searchable
from ui.views.viewer import Answers, Box, Window, viewer

_NOTICE, _JUMPS, _TOLD = "notice", "jumps", "told_view"


def show(cohort: Cohort) -> None:
    """Draw the page."""
    with st.sidebar:
        picture_upload()
    _body(cohort, search_settings(cohort))


@st.fragment
def _body(cohort: Cohort, settings: Settings) -> None:
    # Only this part runs again after a click: the side bar and the frame stay as they are.
    with sentences():
        slides = searchable(cohort, [settings.table])
        if not slides.ids:
            st.info("No tissue was found on the slides that were indexed this way.")
            return
        asked = asked_of_link()
        left, right = st.columns([7, 6], gap="medium")
        with right:
            results = _answer(cohort, settings, asked)
        with left, st.container(key="slide_part"):
            shown = _shown_slide(slides, asked)
            _slide_part(cohort, settings, slides, shown, asked, results)
        with right:
            _hits_part(cohort, slides, asked, results)


def _answer(cohort: Cohort, settings: Settings, asked: Asked | None) -> Results | None:
    notice = st.session_state.pop(_NOTICE, None)
    if notice:
        st.warning(plain(notice))
    if asked is None:
        return None
    try:
        return find(cohort, settings, asked)
    except HistoSeekError as error:
        st.error(plain(error))
        return None


def _shown_slide(slides: Slides, asked: Asked | None) -> str:
    wanted = st.query_params.get("slide") or (asked.slide_id if asked else None)
    if wanted in slides:
        return str(wanted)
    if wanted is not None:
        st.warning(f"Slide {plain(wanted)} has no tiles among these vectors.")
    return slides.ids[0]


def _slide_part(
    cohort: Cohort, settings: Settings, slides: Slides, shown: str, asked: Asked | None, results: Results | None
) -> None:
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.session_state["slide_choice"] = shown
        st.selectbox("Slide", slides.ids, key="slide_choice", on_change=_slide_chosen, width=250)
        layer = st.segmented_control(
            "Layer", LAYERS, default=LAYERS[0], required=True, key="layer", bind="query-params"
        )
    row = slides.row(shown)
    overlay, tiles = None, None
    try:
        overlay, tiles = layer_of(str(layer), cohort, settings, row, asked)
    except HistoSeekError as error:
        st.warning(plain(error))
    window = _window(shown)
    viewer(
        "viewer",
        row,
        Answers(point=_clicked, region=_cut, window=_moved),
        boxes=_boxes(shown, asked, results),
        layer=None if overlay is None else overlay.layer,
        tiles=tiles,
        window=window,
        window_token=f"{shown}:{st.session_state.get(_JUMPS, 0)}",
    )
    if overlay is not None:
        legend(overlay)
    st.caption(plain(_about(row)))


def _hits_part(cohort: Cohort, slides: Slides, asked: Asked | None, results: Results | None) -> None:
    if asked is None:
        st.markdown("#### Where else does it occur?")
        st.markdown(
            "Click on tissue in the slide, or draw a region with the frame button, "
            "and the most similar tissue of all slides appears here."
        )
        return
    if results is None:
        return
    _question(asked, results, slides)
    if results.nothing_close and len(results):
        st.warning("Nothing close: even the nearest tissue is no more alike than random tissue often is.")
    if not len(results):
        st.info("No tile matches. Loosen the filter, or leave out less.")
        for note in results.plan.notes:
            st.caption(plain(note))
        return
    event_cards = hit_cards(
        results, slides.numbers, asked, kept_keys(results.plan.grid_id), st.query_params.get("chosen")
    )
    gallery(
        "hits",
        event_cards,
        ("show", "search", "like", "unlike", "keep"),
        on_event=partial(_carded, results.plan.grid_id),
    )
    keep_row(cohort, results)
    with st.expander("How this was found"):
        for note in results.plan.notes:
            st.caption(plain(note))
        st.code(results.explain(), language=None)


def _question(asked: Asked, results: Results, slides: Slides) -> None:
    """What was asked, and how to get back to it or away from it."""
    picture, text = st.columns([1, 6], vertical_alignment="center")
    image = results.query_image
    if image is not None:
        picture.image(image, width="stretch")
    with text:
        st.markdown(f"**{len(results)} most similar** of {results.plan.rows_matching:,} tiles")
        st.caption(plain(_query_words(asked, results)))
    with st.container(horizontal=True):
        if asked.slide_id in slides and (
            st.query_params.get("slide") not in (None, asked.slide_id) or st.query_params.get("chosen")
        ):
            st.button("Back to the query", icon=":material/undo:", on_click=_back, args=(asked,))
        st.button("Clear", icon=":material/close:", on_click=_clear)


def _query_words(asked: Asked, results: Results) -> str:
    kinds = {"tile": "From a tile", "at": "From a point", "region": "From a region", "picture": "From your picture"}
    parts = (
        [kinds[asked.text.partition(":")[0]] + (f" of {asked.slide_id}" if asked.slide_id else "")]
        if asked.text
        else []
    )
    parts += [f"{len(asked.like)} marked like it"] if asked.like else []
    parts += [f"{len(asked.unlike)} marked unlike it"] if asked.unlike else []
    plan = results.plan
    how = "exact" if plan.exact else "approximate" if plan.recall is None else f"finds about {100 * plan.recall:.0f} %"
    return " · ".join([*parts, how, f"{1000 * sum(plan.seconds.values()):.0f} ms"])


def _boxes(shown: str, asked: Asked | None, results: Results | None) -> list[Box]:
    chosen = st.query_params.get("chosen")
    boxes = []
    if results is not None:
        for row in results.to_json_rows():
            if row["slide_id"] == shown:
                side, mine = row["extent_px0"], row["tile_key"] == chosen
                boxes.append(Box(row["x0"], row["y0"], side, side, "chosen" if mine else "hit", str(row["rank"])))
    place = results.query_place if results is not None else None
    if place is not None and place.slide_id == shown:
        boxes.append(Box(place.x0, place.y0, place.extent_px0, place.extent_px0, "query"))
    elif asked is not None and asked.slide_id == shown:
        boxes += asked_boxes(asked)
    if chosen is not None and chosen.rpartition("@")[0] == shown and not any(box.kind == "chosen" for box in boxes):
        boxes += chosen_boxes(chosen, _side_px0())
    return boxes


def _clicked(slide_id: str, x0: int, y0: int) -> None:
    put_asked(Asked(f"at:{slide_id}@{x0},{y0}"))
    put(slide=slide_id, chosen=None)


def _cut(slide_id: str, corners: tuple[int, int, int, int]) -> None:
    put_asked(Asked(f"region:{slide_id}@{','.join(map(str, corners))}"))
    put(slide=slide_id, chosen=None)


def _moved(slide_id: str, window: Window) -> None:
    if st.query_params.get("slide", slide_id) == slide_id:  # a link to a slide that is not here stays as it is
        st.session_state[_TOLD] = window.to_text()
        put(slide=slide_id, view=window.to_text())


def _window(shown: str) -> Window | None:
    """What the link says of a slide; where that is not what the viewer told last, the viewer goes there."""
    if st.query_params.get("slide", shown) != shown:
        return None
    view = st.query_params.get("view")
    if view != st.session_state.get(_TOLD):
        st.session_state[_TOLD] = view
        _jump()
    return Window.of_text(view)


def _slide_chosen() -> None:
    put(slide=st.session_state["slide_choice"], view=None, chosen=None)
    _jump()


def _carded(grid_id: str, event: GalleryEvent) -> None:
    """Do what was asked of a hit."""
    key = event.tile_key
    try:
        if event.action == "show":
            put(chosen=key)
            _look_at(key)
        elif event.action == "search":
            put_asked(Asked(f"tile:{key}"))
            put(chosen=None)
            _look_at(key)
        elif event.action == "keep":
            toggle_kept(key, grid_id)
        else:
            put_asked((asked_of_link() or Asked()).marked(key, event.action == "like"))
    except HistoSeekError as error:
        st.session_state[_NOTICE] = str(error)


def _back(asked: Asked) -> None:
    put(slide=asked.slide_id, chosen=None, view=None)
    kind, _, key = asked.text.partition(":")
    box = next(iter(asked_boxes(asked)), None)
    if kind == "tile":
        _look_at(key)
    elif box is not None:
        side = max(box.width0, box.height0, 3 * _side_px0())
        window = Window(round(box.x0 + box.width0 / 2), round(box.y0 + box.height0 / 2), round(3 * side))
        put(view=window.to_text())
    _jump()


def _clear() -> None:
    put_asked(None)
    put(chosen=None)


def _look_at(tile_key: str) -> None:
    put(slide=parse_tile_key(tile_key)[0], view=window_around(tile_key, _side_px0()).to_text())
    _jump()


def _side_px0() -> int:
    return int(st.session_state.get("extent_px0", 512))


def _jump() -> None:
    """Let the viewer go where the link says, rather than stay where it was moved."""
    st.session_state[_JUMPS] = st.session_state.get(_JUMPS, 0) + 1


def _about(row: dict[str, Any]) -> str:
    parts = [f"{row['width0']:,} x {row['height0']:,} pixels", f"{row['mpp']:.3f} µm/px ({row['mpp_source']})"]
    own = {"slide_id", "slide_no", "path", "fingerprint", "vendor", "width0", "height0", "mpp", "mpp_source"}
    own |= {"manifest_mpp", "mask", "objective", "status", "registered_at", "reasons", "thumbnail"}
    parts += [f"{name}: {value}" for name, value in row.items() if name not in own and value not in (None, "")]
    return " · ".join(parts)
