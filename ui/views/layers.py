"""What can lie over a slide: how like the query each tile is, the tiles' outlines, what was taken for tissue."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import streamlit as st

from query.cohort import Cohort
from query.overlay import Overlay, similarity_overlay, tissue_overlay
from query.resolve import slide_code
from ui.views.asked import Asked, query_of
from ui.views.plain import plain
from ui.views.settings import Settings
from ui.views.viewer import Layer

LAYERS = ("Plain", "Similarity", "Tiles", "Tissue")
_KEPT, _MOST_KEPT = "layers", 8
_OPACITY = {"Similarity": 0.75, "Tissue": 0.5}


@dataclass(frozen=True)
class Shown:
    """A layer for the viewer, and what to write below it."""

    layer: Layer
    overlay: Overlay


def layer_of(
    name: str, cohort: Cohort, settings: Settings, slide: Mapping[str, Any], asked: Asked | None
) -> tuple[Shown | None, dict[str, Any] | None]:
    """Make the layer that was chosen.

    Returns:
        A picture over the slide, or the outlines of its tiles, or neither.

    Raises:
        HistoSeekError: it cannot be made: the slide's file has moved, say.
    """
    encoder, grid = settings.table.encoder_id, settings.table.grid_id
    if name == "Tiles":
        return None, _tiles(cohort, settings, str(slide["slide_id"]))
    if name == "Similarity":
        if asked is None:
            st.caption("Click on tissue first: the layer shows how alike every tile is.")
            return None, None
        version = cohort.room(settings.table).rows.version
        key: tuple[Any, ...] = (name, slide["slide_id"], asked, settings.table, version)
        return _kept(key, name, lambda: similarity_overlay(cohort, query_of(asked), slide["slide_id"], encoder, grid))
    if name == "Tissue":
        key = (name, slide["slide_id"], slide["fingerprint"], grid)
        with st.spinner("Looking for tissue"):
            return _kept(key, name, lambda: tissue_overlay(dict(slide), grid, cohort.store))
    return None, None


def legend(shown: Shown) -> None:
    """Write what the colours of a layer mean."""
    entries = "".join(
        f"<span style='display:inline-flex;align-items:center;gap:5px;margin-right:14px'>"
        f"<i style='flex:none;width:12px;height:12px;border-radius:3px;background:{html.escape(entry.colour)}'></i>"
        f"{html.escape(entry.label)}</span>"
        for entry in shown.overlay.legend
    )
    st.html(f"<div style='font-size:13px;opacity:0.85'>{entries}</div>")
    if shown.overlay.note:
        st.caption(plain(shown.overlay.note))


def _kept(key: tuple[Any, ...], name: str, make: Any) -> tuple[Shown, None]:
    kept: dict[tuple[Any, ...], Shown] = st.session_state.setdefault(_KEPT, {})
    if key not in kept:
        overlay = make()
        area = (overlay.x0, overlay.y0, overlay.width0, overlay.height0)
        kept[key] = Shown(Layer(overlay.png, *area, opacity=_OPACITY[name]), overlay)
        while len(kept) > _MOST_KEPT:
            del kept[next(iter(kept))]
    return kept[key], None


def _tiles(cohort: Cohort, settings: Settings, slide_id: str) -> dict[str, Any]:
    room = cohort.room(settings.table)
    rows = room.rows.of_slide(slide_code(slide_id, room.slides))
    found = room.rows
    return {
        "x0": found.x0[rows].tolist(),
        "y0": found.y0[rows].tolist(),
        "extent_px0": int(found.extent_px0[rows[0]]) if rows.size else 0,
    }
