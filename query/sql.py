"""A user's SQL: one SELECT over the store's tables, within limits, without any vector or picture."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pyarrow as pa

from encoder.errors import QueryError
from indexer.schema import tiles_table_name
from indexer.store import Store
from query.guard import Limits, check_select, fetch, locked_connection
from query.rows import finished_tiles


def run_sql(store: Store, slides: pa.Table, text: str, limits: Limits) -> pa.Table:
    """Run one SELECT; only the tables that it names are read.

    Args:
        slides: the cohort's slides with their status.

    Raises:
        QueryError: it is no single SELECT, fails, or passes its limits.
    """
    readers = _relations(store, slides)
    connection = locked_connection(limits)
    try:
        named = check_select(connection, text)
        for name, read in readers.items():
            if name.lower() in named:
                connection.register(name, read())
        try:
            return fetch(connection, text, limits, "sql")
        except QueryError as error:
            if "Table with name" in error.message:
                raise QueryError(error.message, f"Relations are: {', '.join(readers)}.") from error
            raise
    finally:
        connection.close()


def _relations(store: Store, slides: pa.Table) -> dict[str, Callable[[], pa.Table]]:
    readers: dict[str, Callable[[], pa.Table]] = {
        "slides": lambda: slides,
        "annotations": store.annotations,
        "runs": store.runs,
        "quarantine": store.quarantine,
    }
    grids = [grid for grid in store.grids()["grid_id"].to_pylist() if tiles_table_name(grid) in store.tables()]
    for grid in grids:
        readers[tiles_table_name(grid)] = partial(finished_tiles, store, grid)
    if grids:
        readers["tiles"] = readers[tiles_table_name(grids[-1])]
    return readers
