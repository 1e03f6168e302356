"""A map that can be moved, drawn around and clicked: pictures from the server, gestures in the browser."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import streamlit as st

from encoder.errors import QueryError
from query.projection.colouring import Categories, Colouring, Numbers
from query.projection.palette import MISSING, hex_of, ramp_stops
from query.projection.window import Window
from ui.views.component import component, data_uri

_HTML = "<div class='hs-map'></div>"
_LEAST_PX, _MOST_PX = 40, 2048


@dataclass(frozen=True)
class View:
    """The part of a map that a browser shows, and how large.

    Attributes:
        token: of the map that was shown.
        window: the part.
        width_px, height_px: of the picture that suits it.
        pixel_ratio: pixels of the picture per pixel of the page.
    """

    token: str
    window: Window
    width_px: int
    height_px: int
    pixel_ratio: float

    @classmethod
    def told(cls, told: Any) -> View | None:
        """Read what the browser says; None for anything that no browser of ours says."""
        try:
            sides = Window(*(float(told[name]) for name in ("left", "bottom", "right", "top")))
            width_px, height_px = (min(max(int(told[name]), _LEAST_PX), _MOST_PX) for name in ("width_px", "height_px"))
            ratio = min(max(float(told["pixel_ratio"]), 0.25), 4.0)
            return cls(str(told["token"]), sides, width_px, height_px, ratio)
        except (KeyError, TypeError, ValueError, OverflowError, QueryError):
            return None


@dataclass(frozen=True)
class Gestures:
    """What is done about what people do on the map; each is called before the run that it causes.

    Attributes:
        moved: another part was moved into view.
        drawn: a line was drawn around something: its corners in coordinates of the map.
        picked: a click: x and y, and what was in view.
    """

    moved: Callable[[View], None]
    drawn: Callable[[Sequence[tuple[float, float]]], None]
    picked: Callable[[float, float, View], None]


def density_map(
    key: str,
    png: bytes,
    view: View,
    extent: Window,
    gestures: Gestures,
    colours: Colouring | None = None,
    polygon: Sequence[tuple[float, float]] = (),
    mark: tuple[float, float] | None = None,
    busy_token: str = "",
) -> None:
    """Show a map.

    Args:
        key: of the widget.
        png: the picture of a part of it.
        view: the part, and of which map: another token lets the browser go back to the whole.
        extent: all of the map.
        gestures: answers to what is done on it.
        colours: for the legend; None for the density.
        polygon: the line that is drawn on it.
        mark: a point that is ringed.
        busy_token: changes when what a gesture asked for has arrived.
    """
    data = {
        "image": data_uri(png, "png"),
        "token": view.token,
        "window": asdict(view.window),
        "width_px": view.width_px,
        "height_px": view.height_px,
        "extent": asdict(extent),
        "polygon": [list(corner) for corner in polygon],
        "mark": None if mark is None else list(mark),
        "legend": _legend(colours),
        "busy_token": busy_token,
    }
    component("density_map", _HTML)(
        key=key,
        data=data,
        on_view_change=partial(_moved, key, gestures),
        on_drawn_change=partial(_drawn, key, gestures),
        on_picked_change=partial(_picked, key, gestures),
    )


def _legend(colours: Colouring | None) -> dict[str, Any] | None:
    if isinstance(colours, Categories):
        return {"column": colours.column, "classes": [asdict(line) for line in colours.legend]}
    if isinstance(colours, Numbers):
        return {
            "column": colours.column,
            "low": f"{colours.low:.3g}",
            "high": f"{colours.high:.3g}",
            "stops": list(ramp_stops()),
            "missing": colours.missing,
            "missing_colour": hex_of(MISSING),
        }
    return None


def _moved(key: str, gestures: Gestures) -> None:
    view = View.told(st.session_state[key].view)
    if view is not None:
        gestures.moved(view)


def _drawn(key: str, gestures: Gestures) -> None:
    told = st.session_state[key].drawn
    with suppress(KeyError, TypeError, ValueError, OverflowError):  # what no browser of ours says
        corners = [(float(x), float(y)) for x, y in told["corners"]]
        gestures.drawn(corners)


def _picked(key: str, gestures: Gestures) -> None:
    told = st.session_state[key].picked
    view = View.told(told)
    if view is not None:
        with suppress(KeyError, TypeError, ValueError, OverflowError):
            gestures.picked(float(told["x"]), float(told["y"]), view)
