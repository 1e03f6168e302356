"""A user's SQL: one SELECT over the store's tables, within limits, without any vector or picture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from encoder.errors import QueryError
from indexer.schema import split_vectors_name, tiles_table_name
from indexer.store import Store
from query.database import Connection, Limits, fetch, locked_connection
from query.guard import check_select


def run_sql(store: Store, slides: pa.Table, text: str, limits: Limits) -> pa.Table:
    """Run one SELECT; of the tables that it names, only the columns that it needs are read, in a stream.

    Args:
        slides: the cohort's slides with their status.

    Raises:
        QueryError: it is no single SELECT, fails, or passes its limits.
    """
    relations, tiles = _relations(store, slides), _tile_relations(store)
    connection = locked_connection(limits)
    try:
        named = check_select(text)
        known = f"Relations are: {', '.join([*relations, *tiles])}."
        hidden = named & {inner.lower() for name in tiles for inner in _inner(name)}
        if hidden:
            raise QueryError(f"sql: there is no relation {min(hidden)!r}.", known)
        for name, read in relations.items():
            if name.lower() in named:
                connection.register(name, read())
        for name, grid in tiles.items():
            if name.lower() in named:
                _register_tiles(connection, name, store, grid, slides)
        try:
            return fetch(connection, text, limits, "sql")
        except QueryError as error:
            if "Table with name" in error.message:
                raise QueryError(error.message, known) from error
            raise
    finally:
        connection.close()


def _relations(store: Store, slides: pa.Table) -> dict[str, Callable[[], Any]]:
    return {
        "slides": lambda: slides,
        "annotations": lambda: store.lance.dataset("annotations"),  # may have a row for every tile
        "runs": store.runs,
        "quarantine": store.quarantine,
        "indexes": store.indexes,
    }


def _tile_relations(store: Store) -> dict[str, str]:
    """Relations that show the tiles of a grid, and the grid of each."""
    tables = store.tables()
    grids = [grid for grid in store.grids()["grid_id"].to_pylist() if tiles_table_name(grid) in tables]
    relations = {tiles_table_name(grid): grid for grid in grids}
    return relations | {"tiles": grids[-1]} if grids else relations


def _inner(name: str) -> tuple[str, str]:
    """What a relation of tiles is made of: its rows, with those that nobody may see, and its slides."""
    return f"{name}#rows", f"{name}#slides"


def _register_tiles(connection: Connection, name: str, store: Store, grid: str, slides: pa.Table) -> None:
    """Show the tiles of finished slides under the names that people know them by.

    DuckDB takes from the table on disk the columns that it needs, filtered where it can, as it needs them.
    """
    rows, places = _inner(name)
    # Marks before tiles: what is marked as finished by then has all of its tiles.
    finished = pc.is_in(slides["slide_no"], value_set=_finished_slides(store, grid))
    connection.register(places, slides.select(["slide_no", "slide_id"]).filter(finished))
    dataset = store.lance.dataset(tiles_table_name(grid))
    connection.register(rows, dataset)
    columns = ", ".join(f't."{field.name}"' for field in dataset.schema if not _is_picture(field.type))
    connection.execute(
        f'CREATE TEMP VIEW "{name}" AS '
        f"SELECT s.slide_id, {columns}, s.slide_id || '@' || t.x0 || ',' || t.y0 AS tile_key "
        f'FROM "{rows}" t JOIN "{places}" s USING (slide_no)'
    )


def _finished_slides(store: Store, grid: str) -> pa.Array:
    """Numbers of the slides that some encoder has finished on a grid."""
    done = store.read("done", ["table_name", "slide_no"])
    tables = [name for name in pc.unique(done["table_name"]).to_pylist() if _grid_of(name) == grid]
    of_grid = pc.is_in(done["table_name"], value_set=pa.array(tables, pa.string()))
    return pc.unique(done["slide_no"].filter(of_grid))


def _grid_of(table_name: str) -> str | None:
    pair = split_vectors_name(table_name)
    return None if pair is None else pair[1]


def _is_picture(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
