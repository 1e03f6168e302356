"""A user's SQL: one SELECT over the store's tables, within limits, without any vector or picture."""

from __future__ import annotations

from collections.abc import Callable

import duckdb
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
    tiles = _tile_relations(store)
    connection = locked_connection(limits)
    try:
        named = check_select(connection, text)
        for name, read in readers.items():
            if name.lower() in named:
                connection.register(name, read())
        for name, grid in tiles.items():
            if name.lower() in named:
                _register_tiles(connection, name, finished_tiles(store, grid), slides)
        try:
            return fetch(connection, text, limits, "sql")
        except QueryError as error:
            if "Table with name" in error.message:
                raise QueryError(error.message, f"Relations are: {', '.join([*readers, *tiles])}.") from error
            raise
    finally:
        connection.close()


def _relations(store: Store, slides: pa.Table) -> dict[str, Callable[[], pa.Table]]:
    return {
        "slides": lambda: slides,
        "annotations": store.annotations,
        "runs": store.runs,
        "quarantine": store.quarantine,
    }


def _tile_relations(store: Store) -> dict[str, str]:
    """Relations that show the tiles of a grid, and the grid of each."""
    tables = store.tables()
    grids = [grid for grid in store.grids()["grid_id"].to_pylist() if tiles_table_name(grid) in tables]
    relations = {tiles_table_name(grid): grid for grid in grids}
    return relations | {"tiles": grids[-1]} if grids else relations


def _register_tiles(connection: duckdb.DuckDBPyConnection, name: str, tiles: pa.Table, slides: pa.Table) -> None:
    """Show tiles with the names that people know them by; DuckDB computes those only where they are asked."""
    connection.register(f"{name}#rows", tiles)
    connection.register(f"{name}#slides", slides.select(["slide_no", "slide_id"]))
    connection.execute(
        f'CREATE TEMP VIEW "{name}" AS '
        "SELECT s.slide_id, t.*, s.slide_id || '@' || t.x0 || ',' || t.y0 AS tile_key "
        f'FROM "{name}#rows" t JOIN "{name}#slides" s USING (slide_no)'
    )
