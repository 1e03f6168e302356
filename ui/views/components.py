"""The page's two parts that Streamlit does not have: a clickable overview and a clickable gallery."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import streamlit as st


@cache
def _component(name: str, html: str) -> Callable[..., Any]:
    folder = files("ui.views")
    return st.components.v2.component(
        f"histoseek_{name}",
        html=html,
        css=folder.joinpath(f"{name}.css").read_text(encoding="utf-8"),
        js=folder.joinpath(f"{name}.js").read_text(encoding="utf-8"),
    )


def overview(
    key: str, slide_id: str, jpeg: bytes, width0: int, height0: int, boxes: Sequence[dict[str, Any]]
) -> dict[str, Any] | None:
    """Show a slide's overview.

    Args:
        key: of the widget.
        slide_id: of the slide.
        jpeg: the overview picture.
        width0: width of what the picture shows, in level-0 pixels.
        height0: height, likewise.
        boxes: squares to draw: x0, y0, extent_px0 and kind, `query` or `hit`.

    Returns:
        slide_id, x0, y0 of a click, in the run that the click caused; else None.
    """
    html = "<div class='hs-overview'><img><svg preserveAspectRatio='none'></svg></div>"
    data = {
        "slide_id": slide_id,
        "image": data_uri(jpeg),
        "width0": width0,
        "height0": height0,
        "boxes": list(boxes),
    }
    result = _component("overview", html)(key=key, data=data, on_clicked_change=_nothing)
    clicked = result.clicked
    return dict(clicked) if clicked else None


def gallery(key: str, hits: Sequence[dict[str, Any]]) -> str | None:
    """Show hits as pictures.

    Args:
        key: of the widget.
        hits: rank, slide_id, tile_key, caption, and image as a data URI.

    Returns:
        The tile key of a click, in the run that the click caused; else None.
    """
    result = _component("gallery", "<div class='hs-gallery'></div>")(
        key=key, data={"hits": list(hits)}, on_picked_change=_nothing
    )
    return str(result.picked) if result.picked else None


def data_uri(jpeg: bytes) -> str:
    """Wrap JPEG bytes for an img element."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


def _nothing() -> None:
    """A trigger without a callback would not be part of the result."""
