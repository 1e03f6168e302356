"""What is cleared before a run begins."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from indexer.recovery import recover
from indexer.schema import tiles_table_name, vectors_table_name
from indexer.store import Store, open_store
from indexer.verify import verify


@pytest.fixture
def store(store_copy: Path) -> Store:
    return open_store(str(store_copy))


def _names(store: Store) -> tuple[str, str]:
    ((encoder_id, grid_id, _),) = store.vector_tables()
    return tiles_table_name(grid_id), vectors_table_name(encoder_id, grid_id)


def test_a_sound_store_is_left_alone(store: Store) -> None:
    before = {name: store.table_version(name) for name in store.tables()}
    assert recover(store, None, "run") == 0
    assert {name: store.table_version(name) for name in store.tables()} == before


def test_orphans_are_found_where_as_many_rows_are_lost(store: Store) -> None:
    _, vectors = _names(store)
    first, last = (store.read(vectors, ["tile_id"], f"slide_no = {n}")["tile_id"].to_pylist() for n in (1, 2))
    count = min(len(first), len(last)) - 1
    store.lance.delete("x", "done", "slide_no = 2")
    store.lance.delete("x", vectors, f"tile_id IN ({', '.join(map(str, first[:count] + last[count:]))})")
    assert store.count(vectors) == sum(row["rows"] for row in store.done().to_pylist())
    assert recover(store, None, "run") == 2
    assert set(store.rows_per_slide(vectors)) == {0} and store.done()["slide_no"].to_pylist() == [0]
    assert verify(store.uri, slides=False).ok


@pytest.mark.parametrize("which", [0, 1])
def test_slides_of_a_table_that_is_gone_are_not_done(store: Store, which: int) -> None:
    names = _names(store)
    shutil.rmtree(Path(store.uri) / f"{names[which]}.lance")
    store = open_store(store.uri)
    assert recover(store, None, "run") == 3
    assert len(store.done()) == 0 and not any(store.rows_per_slide(name) for name in names)
