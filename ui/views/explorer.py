"""The explorer's page: choose a slide, click on tissue, see where else it occurs; or search with a picture."""

from __future__ import annotations

import atexit
import sys
from dataclasses import dataclass, replace
from typing import Any

import streamlit as st

from encoder.errors import HistoSeekError
from query import open_cohort
from query.choice import VectorTable
from query.cohort import Cohort
from query.queries import PointQuery, Query, TileQuery, read_picture
from query.results import Results
from ui.views.components import data_uri, gallery, overview

MAX_UPLOAD_BYTES = 50 * 2**20
FILTER_COLUMNS = ("slide_id", "patient_id", "site_id", "tissue", "x0", "y0")


@dataclass(frozen=True)
class Settings:
    """What the side bar asks for."""

    encoder: str
    grid: str
    k: int
    per_slide: int | None
    other_slides: bool
    where: str | None


def main() -> None:
    """Draw the page for the store named on the command line."""
    st.set_page_config(page_title="HistoSeek", page_icon="🔬", layout="wide")
    if len(sys.argv) < 2:
        st.error("No store was named. Start the explorer with: histoseek ui --store S")
        st.stop()
    try:
        _page(_cohort(sys.argv[1]))
    except HistoSeekError as error:
        st.error(str(error))


@st.cache_resource(show_spinner="Opening the store")
def _cohort(uri: str) -> Cohort:
    # Held to the very end, a store makes DuckDB write notices of leaks when the server stops.
    atexit.register(_cohort.clear)
    return open_cohort(uri)


def _page(cohort: Cohort) -> None:
    if not cohort.vector_tables:
        st.info("No slide of this store is indexed yet. Index some with: histoseek index SLIDES --store S --encoder E")
        return
    settings = _sidebar(cohort)
    searchable = set(cohort.searchable_slides(settings.encoder, settings.grid))
    slides = [row for row in cohort.slides.to_pylist() if row["slide_id"] in searchable]
    if not slides:
        st.info("No tissue was found on the slides that were indexed this way.")
        return
    from_slide, from_picture = st.tabs(["From a slide", "From a picture"])
    with from_slide:
        _from_slide(cohort, slides, settings)
    with from_picture:
        _from_picture(cohort, settings)


def _vectors_name(cohort: Cohort, table: VectorTable) -> str:
    mpp = next(row["mpp"] for row in cohort.grids.to_pylist() if row["grid_id"] == table.grid_id)
    return f"{table.encoder_name}, {mpp:g} um/px"


def _sidebar(cohort: Cohort) -> Settings:
    with st.sidebar:
        st.title("HistoSeek")
        st.caption("Click on tissue, see where else it occurs.")
        vectors = st.selectbox(
            "Searched with",
            cohort.vector_tables,
            format_func=lambda table: _vectors_name(cohort, table),
            key="vectors",
        )
        k = st.slider("Hits", 4, 60, 20, step=4, key="k")
        other = st.toggle("Other slides only", value=len(cohort.slides) > 1, key="other_slides")
        limited = st.toggle("At most three of one slide", value=False, key="limited")
        where = st.text_input(
            "Filter",
            placeholder="organ = 'colon' AND tissue > 0.8",
            help=f"A condition over {', '.join(FILTER_COLUMNS)} and the columns of your manifest.",
            key="where",
        )
    return Settings(vectors.encoder_id, vectors.grid_id, k, 3 if limited else None, other, where.strip() or None)


def _from_slide(cohort: Cohort, slides: list[dict[str, Any]], settings: Settings) -> None:
    by_id = {row["slide_id"]: row for row in slides}
    wanted = st.query_params.get("slide")
    if wanted is not None and wanted not in by_id:
        st.warning(f"Slide {wanted} has no tiles among these vectors.")
    if st.session_state.get("slide") not in by_id:
        st.session_state.slide = wanted if wanted in by_id else next(iter(by_id))
    left, right = st.columns([5, 6], gap="large")
    with left:
        chosen = st.selectbox("Slide", list(by_id), key="slide")
    row = by_id[chosen]
    st.query_params["slide"] = chosen
    query = _query_of_url(chosen)
    results = _search(cohort, query, settings) if query is not None else None
    with left:
        clicked = overview(
            f"overview-{chosen}",
            chosen,
            cohort.store.thumbnail(chosen) or b"",
            row["width0"],
            row["height0"],
            _boxes(results, chosen),
        )
        st.caption(_about(row))
    with right:
        if results is None:
            st.info("Click on tissue in the overview to see where else it occurs.")
            picked = None
        else:
            picked = _show(results, "slide")
    if clicked is not None and clicked["slide_id"] == chosen:
        st.query_params.from_dict({"slide": chosen, "at": f"{clicked['x0']},{clicked['y0']}"})
        st.rerun()
    if picked is not None:
        _go_to(picked)


def _from_picture(cohort: Cohort, settings: Settings) -> None:
    left, right = st.columns([5, 6], gap="large")
    with left:
        upload = st.file_uploader("Picture of tissue", type=["png", "jpg", "jpeg", "tif", "tiff"], key="upload")
        mpp = st.number_input("Micrometres per pixel (0: as in the store)", 0.0, 20.0, 0.0, step=0.05, key="upload_mpp")
        if upload is None:
            return
        if upload.size > MAX_UPLOAD_BYTES:
            st.error(f"The picture has {upload.size / 2**20:.0f} MB; at most {MAX_UPLOAD_BYTES // 2**20} are taken.")
            return
        try:
            query = read_picture(upload.getvalue(), mpp or None)
        except HistoSeekError as error:
            st.error(str(error))
            return
        st.image(query.pixels, width="content")
    with right:
        # An uploaded picture belongs to no slide that could be left out.
        results = _search(cohort, query, replace(settings, other_slides=False))
        picked = _show(results, "picture") if results is not None else None
    if picked is not None:
        _go_to(picked)


def _search(cohort: Cohort, query: Query, settings: Settings) -> Results | None:
    try:
        return cohort.search(
            query,
            k=settings.k,
            where=settings.where,
            exclude=("slide",) if settings.other_slides else (),
            per_slide=settings.per_slide,
            encoder=settings.encoder,
            grid=settings.grid,
        )
    except HistoSeekError as error:
        st.error(str(error))
        return None


def _show(results: Results, place: str) -> str | None:
    rows = results.to_json_rows()
    if not rows:
        st.info("No tile matches the filter.")
        return None
    st.caption(f"{len(rows)} most similar tiles of {results.plan.rows_matching:,}. A click on one searches from it.")
    for note in results.plan.notes:
        st.caption(note)
    hits = [
        {
            "rank": row["rank"],
            "slide_id": row["slide_id"],
            "tile_key": row["tile_key"],
            "caption": _how_near(row["distance"], row["percentile"]),
            "image": data_uri(thumb) if thumb else "",
        }
        for row, thumb in zip(rows, results.thumbnails(), strict=True)
    ]
    return gallery(f"gallery-{place}", hits)


def _how_near(distance: float, percentile: float | None) -> str:
    """A distance, and how rare one so small is among random pairs of tiles."""
    if percentile is None:
        return f"distance {distance:.3f}"
    share = f"{percentile:.2g} %" if percentile >= 0.01 else "less than 0.01 %"
    return f"distance {distance:.3f}: {share} of random pairs are nearer"


def _query_of_url(slide_id: str) -> Query | None:
    key = st.query_params.get("tile")
    if key is not None and key.rpartition("@")[0] == slide_id:
        return TileQuery(key)
    x0, comma, y0 = st.query_params.get("at", "").partition(",")
    if comma and x0.isdecimal() and y0.isdecimal():
        return PointQuery(slide_id, int(x0), int(y0))
    return None


def _go_to(tile_key: str) -> None:
    """Make a hit the query: its slide is shown, its place framed."""
    st.session_state.pop("slide", None)
    st.query_params.from_dict({"slide": tile_key.rpartition("@")[0], "tile": tile_key})
    st.rerun()


def _boxes(results: Results | None, slide_id: str) -> list[dict[str, Any]]:
    if results is None:
        return []
    boxes = [
        {"x0": row["x0"], "y0": row["y0"], "extent_px0": row["extent_px0"], "kind": "hit"}
        for row in results.to_json_rows()
        if row["slide_id"] == slide_id
    ]
    if results.query_place is not None and results.query_place.slide_id == slide_id:
        box = results.query_place
        boxes.append({"x0": box.x0, "y0": box.y0, "extent_px0": box.extent_px0, "kind": "query"})
    return boxes


def _about(row: dict[str, Any]) -> str:
    parts = [f"{row['width0']:,} x {row['height0']:,} pixels", f"{row['mpp']:.3f} um/px ({row['mpp_source']})"]
    own = {"slide_id", "slide_no", "path", "fingerprint", "vendor", "width0", "height0", "mpp", "mpp_source"}
    own |= {"manifest_mpp", "mask", "objective", "status", "registered_at", "reasons", "thumbnail"}
    parts += [f"{name}: {value}" for name, value in row.items() if name not in own and value not in (None, "")]
    return " · ".join(parts)
