"""Pictures of a few tiles: found by their places as by looking through the table, also after it has changed."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from indexer import schema
from indexer.store import Store, open_store


def looked_through(store: Store, grid_id: str, wanted: list[int]) -> dict[int, bytes]:
    rows = store.read(schema.tiles_table_name(grid_id), ["tile_id", "thumb"]).to_pylist()
    return {row["tile_id"]: row["thumb"] for row in rows if row["tile_id"] in wanted and row["thumb"] is not None}


def test_pictures_are_found_by_place_as_by_looking(store_copy: Path) -> None:
    store = open_store(str(store_copy))
    grid_id = store.grids()["grid_id"][0].as_py()
    name = schema.tiles_table_name(grid_id)
    ids = store.read(name, ["tile_id"])["tile_id"].to_pylist()
    wanted = [ids[7], ids[0], ids[-1], ids[7], 123]  # out of order, repeated, unknown
    expected = looked_through(store, grid_id, wanted)
    assert len(expected) == 3
    assert store.thumbs(grid_id, wanted) == expected
    assert store._places[name]._known is None  # the first question looks through
    assert store.thumbs(grid_id, wanted) == expected
    known = store._places[name]._known
    assert known is not None
    assert store.thumbs(grid_id, []) == {}
    assert store.thumbs(grid_id, [123]) == {}

    row = store.read(name, where=f"tile_id = {ids[0]}").to_pylist()[0] | {"tile_id": 123, "thumb": b"new"}
    store.lance.append("tiles", name, pa.Table.from_pylist([row], schema=schema.TILES))
    assert store.thumbs(grid_id, wanted) == expected | {123: b"new"}
    assert store._places[name]._known is not known


def test_a_pruned_version_is_read_anew(store_copy: Path) -> None:
    store = open_store(str(store_copy))
    grid_id = store.grids()["grid_id"][0].as_py()
    name = schema.tiles_table_name(grid_id)
    ids = store.read(name, ["tile_id"])["tile_id"].to_pylist()[:3]
    for _ in range(2):
        store.thumbs(grid_id, ids)
    places = store._places[name]
    assert places._known is not None
    stamp, _, *rest = places._known
    places._known = (stamp, 10_000, *rest)  # a version that is gone
    assert store.thumbs(grid_id, ids) == looked_through(store, grid_id, ids)
