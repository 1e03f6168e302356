"""A slide that can be zoomed, clicked and cut: the deep-zoom viewer as a part of the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import streamlit as st

from ui.views.component import component, count_event, data_uri, events, server_path


@dataclass(frozen=True)
class Box:
    """A square or a rectangle drawn over a slide, in level-0 pixels.

    Attributes:
        kind: `query`, `hit` or `chosen`.
        label: written beside it; empty for none.
    """

    x0: float
    y0: float
    width0: float
    height0: float
    kind: Literal["query", "hit", "chosen"]
    label: str = ""


@dataclass(frozen=True)
class Layer:
    """A picture over a slide.

    Attributes:
        png: the picture.
        x0, y0, width0, height0: the area it covers, level-0 pixels.
        opacity: 0 to 1.
        sharp: whether its pixels are shown as squares.
    """

    png: bytes
    x0: float
    y0: float
    width0: float
    height0: float
    opacity: float = 0.6
    sharp: bool = True


@dataclass(frozen=True)
class Window:
    """The part of a slide that is shown, in level-0 pixels: its centre and its width."""

    x0: int
    y0: int
    width0: int

    def to_text(self) -> str:
        """As a link holds it."""
        return f"{self.x0},{self.y0},{self.width0}"

    @classmethod
    def of_text(cls, text: str | None) -> Window | None:
        """Read what `to_text` wrote; None for anything else."""
        try:
            x0, y0, width0 = (int(part) for part in (text or "").split(","))
        except ValueError:
            return None
        return cls(x0, y0, width0) if 0 < width0 < 2**31 and max(abs(x0), abs(y0)) < 2**31 else None


@dataclass(frozen=True)
class Answers:
    """What is done about what people do in the viewer; each is called before the run that it causes.

    Attributes:
        point: after a click, with the slide's id and x0, y0.
        region: after a rectangle was drawn, with the slide's id and left, top, right, bottom.
        window: after another part of the slide was moved into view.
    """

    point: Callable[[str, int, int], None]
    region: Callable[[str, tuple[int, int, int, int]], None]
    window: Callable[[str, Window], None]


_SHOWN = "viewer_shown"
_HTML = "<div class='hs-viewer'></div>"


def viewer(
    key: str,
    slide: Mapping[str, Any],
    answers: Answers,
    boxes: Sequence[Box] = (),
    layer: Layer | None = None,
    tiles: Mapping[str, Any] | None = None,
    window: Window | None = None,
    window_token: str = "",
    height: str = "min(72vh, 820px)",
) -> None:
    """Show a slide.

    Args:
        key: of the widget.
        slide: its row of the store.
        answers: to what is done in it.
        boxes: drawn over it.
        layer: a picture over it.
        tiles: x0 and y0 (lists) and extent_px0 of the tiles whose outlines are drawn; None for none.
        window: what is shown at first, and again whenever `window_token` changes.
        window_token: see there.
        height: of the viewer, CSS.
    """
    st.session_state[_SHOWN] = (key, slide["slide_id"])
    fingerprint = str(slide.get("fingerprint") or "")[:12]
    data = {
        "slide_id": slide["slide_id"],
        "route": server_path(f"slides/{int(slide['slide_no'])}"),
        "assets": server_path("assets/openseadragon"),
        "version": fingerprint,
        "width0": slide["width0"],
        "height0": slide["height0"],
        "mpp": slide["mpp"],
        "boxes": [asdict(box) for box in boxes],
        "layer": None if layer is None else _layer(layer),
        "tiles": tiles,
        "window": None if window is None else asdict(window),
        "window_token": window_token,
        "height": height,
        "events": events(),
    }
    component("viewer", _HTML)(
        key=key,
        data=data,
        on_point_change=partial(_pointed, key, answers),
        on_region_change=partial(_cut, key, answers),
        on_window_change=partial(_moved, key, answers),
    )


def forget_viewer() -> None:
    """Take no more word from the viewer of a page that is left: it may still tell what it showed last."""
    st.session_state.pop(_SHOWN, None)


def _pointed(key: str, answers: Answers) -> None:
    told = st.session_state[key].point
    if told:
        count_event()
        answers.point(str(told["slide_id"]), int(told["x0"]), int(told["y0"]))


def _cut(key: str, answers: Answers) -> None:
    told = st.session_state[key].region
    if told:
        count_event()
        left, top, right, bottom = (int(told[name]) for name in ("x0", "y0", "x1", "y1"))
        answers.region(str(told["slide_id"]), (left, top, right, bottom))


def _moved(key: str, answers: Answers) -> None:
    told = st.session_state[key].window
    if told and st.session_state.get(_SHOWN) == (key, told["slide_id"]):
        answers.window(str(told["slide_id"]), Window(int(told["x0"]), int(told["y0"]), int(told["width0"])))


def _layer(layer: Layer) -> dict[str, Any]:
    return {**asdict(layer), "png": None, "url": data_uri(layer.png, "png")}
