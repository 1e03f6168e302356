"""What a killed run left behind: rows of slides that were never finished, and failures that were overcome."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from indexer import schema
from indexer.commits import resolve
from indexer.registration import in_shard
from indexer.store import Store
from indexer.tables import sql_in, sql_text
from indexer.work import scope_of


def recover(store: Store, shard: tuple[int, int] | None, run_id: str) -> int:
    """Delete the rows of unfinished slides and close the failures that were overcome.

    A slide whose rows are not as many as its `done` row says is not finished either: a table was lost, or its
    tiles were being written again. Its `done` row goes first, so that another crash finds it unfinished.

    Args:
        shard: part of the slides that this run may touch.

    Returns:
        Number of slides whose rows were deleted.
    """
    slides = store.read("slides", ["slide_no", "slide_id"]).to_pylist()
    ours = {row["slide_no"]: row["slide_id"] for row in slides if in_shard(row["slide_id"], shard)}
    done = [row for row in store.done().to_pylist() if row["slide_no"] in ours]
    # A table that is gone counts too: its slides are not finished.
    tables = sorted({*store.tables(), *(row["table_name"] for row in done)})
    grids = {name.removeprefix("tiles_") for name in tables if name.startswith("tiles_")}
    grids |= {grid_id for name in tables if (grid_id := _grid_of(name)) is not None}
    touched: set[int] = set()
    for name in tables:
        if schema.split_vectors_name(name) is not None:
            expected = {row["slide_no"]: row["rows"] for row in done if row["table_name"] == name}
            wrong = _wrong_slides(store, name, expected, ours)
            _purge(store, [name], wrong)
            done = [row for row in done if row["table_name"] != name or row["slide_no"] not in wrong]
            touched |= wrong
    for grid_id in sorted(grids):
        name = schema.tiles_table_name(grid_id)
        on_grid = [table for table in tables if _grid_of(table) == grid_id]
        rows = sorted((row for row in done if row["table_name"] in on_grid), key=lambda row: row["at"])
        wrong = _wrong_slides(store, name, {row["slide_no"]: row["tiles"] for row in rows}, ours)
        _purge(store, [*on_grid, name], wrong)
        done = [row for row in done if row["table_name"] not in on_grid or row["slide_no"] not in wrong]
        touched |= wrong
    _close_overcome(store, done, set(ours.values()), run_id)
    return len(touched)


def _wrong_slides(store: Store, name: str, expected: Mapping[int, int], ours: Collection[int]) -> set[int]:
    found = {number: rows for number, rows in store.rows_per_slide(name).items() if number in ours}
    return {number for number in found.keys() | expected.keys() if found.get(number, 0) != expected.get(number, 0)}


def _purge(store: Store, names: list[str], slide_nos: set[int]) -> None:
    if not slide_nos:
        return
    where = sql_in("slide_no", sorted(slide_nos))
    for name in names:
        store.lance.delete("purged-done", "done", f"table_name = {sql_text(name)} AND {where}")
    for name in names:
        store.lance.delete("purged", name, where)


def _close_overcome(store: Store, done: list[dict[str, Any]], slide_ids: set[str], run_id: str) -> None:
    by_slide: dict[str, list[dict[str, Any]]] = {}
    for row in done:
        by_slide.setdefault(row["slide_id"], []).append(row)
    failures = [row for row in store.quarantine(open_only=True).to_pylist() if row["slide_id"] in slide_ids]
    over = [row for row in failures if any(_overcame(d, row) for d in by_slide.get(row["slide_id"], []))]
    resolve(store, over, run_id)


def _overcame(done: dict[str, Any], failure: dict[str, Any]) -> bool:
    """Whether a slide was finished after a failure that stood in the way of it, or a bad tile is no more."""
    encoder_id, grid_id = schema.split_vectors_name(done["table_name"]) or ("", "")
    in_scope = scope_of(failure).covers(grid_id, encoder_id) and done["at"] > failure["at"]
    is_of_another_file = failure["fingerprint"] != done["fingerprint"]
    return in_scope and (failure["tile_key"] is None or is_of_another_file or not done["bad_tiles"])


def _grid_of(table_name: str) -> str | None:
    pair = schema.split_vectors_name(table_name)
    return None if pair is None else pair[1]
