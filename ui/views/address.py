"""Where a view is: its page and the parameters of its link, so that it can be bookmarked and sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import streamlit as st

_PAGES = "pages"
_PRESENT, _LINK, _CHOICES = "present_page", "carried_link", "carried_choices"

# Parameters that say what is searched and how; they go along from page to page.
SHARED = frozenset({"vectors", "k", "leave_out", "per_slide", "where", "lasso", "q", "like", "unlike"})
_UNBOUND = frozenset({"lasso", "q", "like", "unlike"})  # the others are bound to a control
FILTER, TILE_FILTER = "f_", "ft_"


def set_pages(pages: Mapping[str, Any]) -> None:
    """Tell this session's pages by their names, for `go`."""
    st.session_state[_PAGES] = dict(pages)


def carry(page: str) -> None:
    """Take along to another page what the last one was asked, where the link itself asks nothing.

    Args:
        page: that is about to be drawn.
    """
    changed = st.session_state.get(_PRESENT, page) != page
    st.session_state[_PRESENT] = page
    if not changed or any(_is_shared(name) for name in st.query_params):
        return
    put(**st.session_state.get(_LINK, {}))
    for name, value in st.session_state.get(_CHOICES, {}).items():
        st.session_state.setdefault(name, value)


def remember() -> None:
    """Note what this page is asked, for `carry`."""
    st.session_state[_LINK] = {name: st.query_params.get_all(name) for name in _UNBOUND if name in st.query_params}
    choices = st.session_state.setdefault(_CHOICES, {})
    choices |= {
        name: value for name, value in st.session_state.items() if _is_shared(str(name)) and name not in _UNBOUND
    }


def _is_shared(name: str) -> bool:
    return name in SHARED or name.startswith((FILTER, TILE_FILTER))


def go(page: str, **params: str | Sequence[str] | None) -> NoReturn:
    """Open a page; what the present link says of the search goes along.

    Args:
        page: as it was named in `set_pages`.
        params: of the link, lists for repeated ones; None or empty for one that shall not be there.
    """
    kept: dict[str, Any] = {name: st.query_params.get_all(name) for name in st.query_params if _is_shared(name)}
    kept.update(params)
    st.switch_page(st.session_state[_PAGES][page], query_params={name: value for name, value in kept.items() if value})


def put(**params: str | Sequence[str] | None) -> None:
    """Change parameters of this view's link; None or empty removes one."""
    for name, value in params.items():
        wanted = [value] if isinstance(value, str) else list(value or ())
        wanted = [item for item in wanted if item]
        if st.query_params.get_all(name) == wanted:
            continue
        if wanted:
            st.query_params[name] = wanted
        else:
            del st.query_params[name]
    if _LINK in st.session_state:
        remember()


def listed(name: str) -> tuple[str, ...]:
    """Values of a parameter that may be repeated, each once."""
    return tuple(dict.fromkeys(value for value in st.query_params.get_all(name) if value))
