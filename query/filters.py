"""Which rows a search may return: `where` by DuckDB over slide and tile columns, `exclude` by group."""

from __future__ import annotations

import threading
from collections.abc import Collection
from contextlib import closing

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from encoder.errors import QueryError
from query.guard import Limits, check_expression, fetch, locked_connection

EXCLUDABLE = {"slide": "slide_id", "patient": "patient_id", "site": "site_id"}
_REMEMBERED = 8


class RowFilter:
    """Resolves `where` expressions for one set of rows; remembers the last few.

    Args:
        slides: the cohort's slides, sorted by id.
        tiles: tile columns that an expression may name, `slide_no` among them.
        slide_code: row of each tile's slide in `slides`, [N].
        limits: what one expression may use.
    """

    def __init__(
        self, slides: pa.Table, tiles: pa.Table, slide_code: NDArray[np.integer], limits: Limits | None = None
    ) -> None:
        self._slides, self._tiles, self._slide_code = slides, tiles, slide_code
        self._limits = limits or Limits()
        self._lock = threading.Lock()
        self._masks: dict[str, NDArray[np.bool_]] = {}
        self._row = _new_name("__row", [*slides.column_names, *tiles.column_names])

    def mask(self, where: str) -> NDArray[np.bool_]:
        """True for the rows that match, bool [N]; an expression that is NULL does not match.

        Raises:
            QueryError: the expression is refused, names an unknown column, or is not true or false.
        """
        with self._lock:
            known = self._masks.get(where)
        if known is not None:
            return known
        # Without the lock: a slow expression keeps nobody else waiting. Opened for one expression: a database
        # that lives on holds threads, and notices of its own.
        with closing(self._connect()) as connection:
            mask = self._resolve(connection, where)
        mask.flags.writeable = False
        with self._lock:
            mask = self._masks.setdefault(where, mask)
            if len(self._masks) > _REMEMBERED:
                del self._masks[next(iter(self._masks))]
        return mask

    def _connect(self) -> duckdb.DuckDBPyConnection:
        connection = locked_connection(self._limits)
        connection.register("slides", self._slides)
        connection.register("tiles", self._tiles.append_column(self._row, pa.array(np.arange(self._tiles.num_rows))))
        return connection

    def _resolve(self, connection: duckdb.DuckDBPyConnection, where: str) -> NDArray[np.bool_]:
        columns = {"slides": self._slides.column_names, "tiles": self._tiles.column_names}
        read = check_expression(connection, where, columns)
        joined = "tiles JOIN slides USING (slide_no)" if "tiles" in read else "slides"
        kind = self._fetch(connection, f"SELECT ({where}\n) AS matches FROM {joined} LIMIT 0").schema.field(0).type
        if not pa.types.is_boolean(kind):
            raise QueryError(
                f"where must be true or false for a tile, {where!r} is {kind}.",
                "Compare it with something, such as: organ = 'liver'",
            )
        if "tiles" in read:
            mask = np.zeros(self._tiles.num_rows, np.bool_)
            found = self._fetch(connection, f"SELECT {self._row} FROM {joined} WHERE ({where}\n)")
            mask[found[self._row].to_numpy()] = True
            return mask
        # Slides alone decide: a few rows for DuckDB, whatever the number of tiles.
        matching = self._fetch(connection, f"SELECT slide_no FROM {joined} WHERE ({where}\n)")["slide_no"].to_numpy()
        return np.isin(self._slides["slide_no"].to_numpy(), matching)[self._slide_code]

    def _fetch(self, connection: duckdb.DuckDBPyConnection, text: str) -> pa.Table:
        return fetch(connection, text, self._limits, "where")


def _new_name(name: str, taken: Collection[str]) -> str:
    """A name that no column has: manifests may name theirs as they like."""
    lower = {item.lower() for item in taken}
    while name in lower:
        name = f"{name}_"
    return name


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
