"""A filter built by hand: a control for each column that tells slides or tiles apart."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import ceil, floor, log10
from typing import Any

import streamlit as st

from query.choice import VectorTable
from query.cohort import Cohort
from query.facets import Bound, Condition, Facet, describe, facets, to_where
from ui.views.address import FILTER, TILE_FILTER
from ui.views.plain import plain

_UNKNOWN, _YES, _NO = "(unknown)", "yes", "no"
# So many controls fit below each other; with more columns people first choose which.
_MOST_SHOWN = 7
_MOST = 2**53 - 1  # of a browser's whole numbers
_PREFIXES = (FILTER, TILE_FILTER)


def filter_controls(cohort: Cohort, table: VectorTable) -> str | None:
    """Draw the controls; returns the condition that they make, None where all tiles pass."""
    found = [facet for facet in facets(cohort, table.encoder_id, table.grid_id) if not _too_large(facet)]
    linked = {name: st.query_params.get_all(name) for name in st.query_params if name.startswith(_PREFIXES)}
    chosen = _chosen(found)
    conditions = [condition for condition in map(_control, chosen) if condition is not None]
    _say_unused(linked, chosen)
    if conditions:
        st.caption(plain(describe(conditions)))
    return to_where(conditions)


def _chosen(found: Sequence[Facet]) -> Sequence[Facet]:
    if len(found) <= _MOST_SHOWN:
        return found
    names = [facet.column for facet in found]
    wanted = st.multiselect("Columns", names, default=names[:3], key=FILTER, bind="query-params")
    return [facet for facet in found if facet.column in wanted or _key(facet) in st.query_params]


def _too_large(facet: Facet) -> bool:
    """Whether its numbers are too long for a control; the written condition still takes them."""
    return any(isinstance(end, int | float) and abs(end) > _MOST for end in (facet.low, facet.high))


def _key(facet: Facet) -> str:
    # A manifest may have a column of the name that one of the tiles has.
    return f"{FILTER if facet.relation == 'slides' else TILE_FILTER}{facet.column}"


def _say_unused(linked: dict[str, list[str]], chosen: Sequence[Facet]) -> None:
    """Say which filters of the link have no control, or one that does not take what they ask for."""
    by_key = {_key(facet): facet for facet in chosen}
    for name, values in linked.items():
        if name == FILTER:
            continue
        facet = by_key.get(name)
        taken = st.session_state.get(name) if facet is not None else None
        if facet is not None and facet.kind == "range":
            used = not values or (taken is not None and [str(end) for end in taken] == _as_ends(values, taken))
        else:
            used = taken == values[-1] if isinstance(taken, str) else taken is not None and set(taken) >= set(values)
        if not used:
            words = f"{name.partition('_')[2]} = {', '.join(values)}"
            st.warning(f"The filter {plain(words)} of this link is not used: no slide here has it.")


def _as_ends(values: Sequence[str], taken: Sequence[object]) -> list[str]:
    """The ends that a link asks for, written as those of the control are."""
    try:
        return [str(type(end)(value)) for value, end in zip(values, taken, strict=True)]  # type: ignore[call-arg]
    except (TypeError, ValueError):
        return list(values)


def _control(facet: Facet) -> Condition | None:
    key = _key(facet)
    name = facet.column.replace("_", " ").capitalize()
    if facet.kind == "text":
        part = st.text_input(name, placeholder="contains …", key=key, bind="query-params")
        return Condition(facet.column, contains=part, relation=facet.relation) if part else None
    if facet.kind == "range":
        return _range(facet, name, key)
    words = {_words(choice.value): choice.value for choice in facet.choices}
    unknown = word_for_unknown(words)
    options = [*words, *([unknown] if facet.unknown else [])]
    wanted = st.multiselect(name, options, placeholder="any", key=key, bind="query-params")
    if not wanted:
        return None
    values = tuple(words[word] for word in wanted if word in words)
    return Condition(facet.column, values=values, include_unknown=unknown in wanted, relation=facet.relation)


def word_for_unknown(words: Collection[str]) -> str:
    """What stands for slides without a value; a manifest may have written the usual word as a value."""
    unknown = _UNKNOWN
    while unknown in words:
        unknown = f"({unknown})"
    return unknown


def _range(facet: Facet, name: str, key: str) -> Condition | None:
    low, high = _rounded(facet)
    if low is None or low == high:
        return None
    slider: Any = st.slider  # its overloads know one type of numbers at a time
    first, last = slider(name, low, high, value=(low, high), step=_step(facet), key=key, bind="query-params")
    if (first, last) == (low, high):
        return None
    return Condition(
        facet.column,
        low=None if first == low else first,
        high=None if last == high else last,
        relation=facet.relation,
    )


def _step(facet: Facet) -> float | None:
    """A step that people read easily; None for whole numbers and dates, which have their own."""
    if facet.whole or not (isinstance(facet.low, float) and isinstance(facet.high, float)) or facet.low == facet.high:
        return None
    return float(10.0 ** round(log10((facet.high - facet.low) / 200)))


def _rounded(facet: Facet) -> tuple[Bound | None, Bound | None]:
    """The ends of a range, on its steps and around all its values."""
    low, high, step = facet.low, facet.high, _step(facet)
    if facet.whole and isinstance(low, int | float) and isinstance(high, int | float):
        return int(low), int(high)
    if step is None or not isinstance(low, float) or not isinstance(high, float):
        return low, high
    return round(step * floor(low / step + 1e-9), 9), round(step * ceil(high / step - 1e-9), 9)


def _words(value: str | bool) -> str:
    if isinstance(value, bool):
        return _YES if value else _NO
    return value
