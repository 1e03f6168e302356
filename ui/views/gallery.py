"""Tiles as pictures that can be clicked, marked and kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import streamlit as st

from ui.views.component import component, count_event, events, nothing

Action = Literal["show", "search", "like", "unlike", "keep"]


@dataclass(frozen=True)
class Card:
    """One tile of a gallery.

    Attributes:
        tile_key: of the tile.
        title: first line below the picture.
        lines: further lines, smaller.
        image: address or data URI of the picture; empty where there is none.
        hint: what a pointer that rests on the picture is told.
        mark: `like` or `unlike` where it is marked.
        kept: whether it is kept for a collection.
        chosen: whether it is the one that is shown in its slide.
    """

    tile_key: str
    title: str
    lines: tuple[str, ...] = ()
    image: str = ""
    hint: str = ""
    mark: Literal["like", "unlike"] | None = None
    kept: bool = False
    chosen: bool = False


@dataclass(frozen=True)
class GalleryEvent:
    """What was done to a card."""

    action: Action
    tile_key: str


def gallery(
    key: str,
    cards: Sequence[Card],
    actions: Sequence[Action] = ("show", "search"),
    width_px: int = 128,
    on_event: Callable[[GalleryEvent], None] | None = None,
) -> GalleryEvent | None:
    """Show tiles.

    Args:
        key: of the widget.
        cards: the tiles in their order.
        actions: what can be done to each; the first is what a click on the picture does.
        width_px: least width of a card.
        on_event: called with what was done before the run that it causes.

    Returns:
        What was done, in the run that it caused; else None.
    """

    def told() -> None:
        event = _event(st.session_state[key].picked)
        if event is not None and on_event is not None:
            count_event()
            on_event(event)

    data = {
        "cards": [asdict(card) for card in cards],
        "actions": list(actions),
        "width_px": width_px,
        "events": events(),
    }
    frame = component("gallery", "<div class='hs-gallery' role='list'></div>")
    result = frame(key=key, data=data, on_picked_change=told if on_event else nothing)
    return _event(result.picked)


def _event(picked: dict[str, str] | None) -> GalleryEvent | None:
    return GalleryEvent(picked["action"], str(picked["tile_key"])) if picked else None  # type: ignore[arg-type]
