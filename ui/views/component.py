"""Parts of a page that Streamlit does not have: made once from an HTML frame, a style sheet and a script."""

from __future__ import annotations

import base64
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import Any

import streamlit as st

_EVENTS = "events"


@cache
def component(name: str, html: str) -> Callable[..., Any]:
    """Register a part: `<name>.css` and `<name>.js` of this folder around its frame.

    Args:
        name: of the files.
        html: what the part is mounted with.
    """
    folder = files("ui.views")
    return st.components.v2.component(
        f"histoseek_{name}",
        html=html,
        css=folder.joinpath(f"{name}.css").read_text(encoding="utf-8"),
        js=folder.joinpath(f"{name}.js").read_text(encoding="utf-8"),
    )


def count_event() -> None:
    """Note that something was done in a part, so that every part is drawn anew once it is answered."""
    st.session_state[_EVENTS] = events() + 1


def events() -> int:
    """How many things were done in parts of this session's pages."""
    return int(st.session_state.get(_EVENTS, 0))


def nothing() -> None:
    """A trigger without a callback would not be part of the result."""


def data_uri(content: bytes, kind: str = "jpeg") -> str:
    """Wrap a picture's bytes for an img element."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def server_path(path: str) -> str:
    """Address of one of the server's own routes."""
    return f"/hs/{path}"
