"""Which slides `exclude` leaves out: those that share a slide, patient or site with the query."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from encoder.errors import QueryError

EXCLUDABLE = {"slide": "slide_id", "patient": "patient_id", "site": "site_id"}


def check_exclude(exclude: Collection[str]) -> tuple[str, ...]:
    """Check the names of what to exclude.

    Raises:
        QueryError: one is unknown.
    """
    names = (exclude,) if isinstance(exclude, str) else tuple(dict.fromkeys(exclude))
    for name in names:
        if name not in EXCLUDABLE:
            raise QueryError(f"exclude does not know {name!r}.", f"Choose from: {', '.join(EXCLUDABLE)}.")
    return names


def excluded_slides(exclude: Collection[str], code: int | None, slides: pa.Table) -> NDArray[np.bool_]:
    """True for the slides that share a slide, patient or site with the query, bool [slides].

    A slide whose patient or site is unknown counts as one of its own.

    Args:
        exclude: of `slide`, `patient`, `site`.
        code: the query's slide as its row in `slides`; None where it has none.

    Raises:
        QueryError: something is to be excluded and the query has no slide.
    """
    out = np.zeros(slides.num_rows, np.bool_)
    if not exclude:
        return out
    if code is None:
        raise QueryError(
            f"exclude {', '.join(exclude)}: the query is a picture or vector and has no slide.",
            "Leave exclude out, or ask by a tile or a point of a slide.",
        )
    out[code] = True
    for name in exclude:
        values = np.asarray(slides[EXCLUDABLE[name]].to_pylist(), dtype=object)
        if not is_unknown(values[code]):
            out |= values == values[code]
    return out


def is_unknown(value: object) -> bool:
    """Whether a manifest's cell says nothing."""
    return value is None or value == "" or value != value
