"""`verify` finds what is wrong in a store, and nothing where nothing is."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from encoder.errors import StoreError
from indexer.schema import tiles_table_name, vectors_table_name
from indexer.store import Store, open_store
from indexer.verify import verify


@pytest.fixture
def store(store_copy: Path) -> Store:
    return open_store(str(store_copy))


def _names(store: Store) -> tuple[str, str]:
    ((encoder_id, grid_id, _),) = store.vector_tables()
    return tiles_table_name(grid_id), vectors_table_name(encoder_id, grid_id)


def _kinds(store: Store) -> set[str]:
    return {problem.kind for problem in verify(store.uri).problems}


def _change(store: Store, name: str, where: str, change: dict[str, Any]) -> None:
    """Put changed copies of rows in the place of the rows."""
    rows = store.read(name, where=where)
    store.lance.delete("x", name, where)
    changed = [row | change for row in rows.to_pylist()]
    store.lance.append("x", name, pa.Table.from_pylist(changed, schema=rows.schema))


def test_a_sound_store_is_found_sound(tiny_store: Path) -> None:
    report = verify(str(tiny_store))
    assert report.ok and report.slides == 3
    store = open_store(str(tiny_store))
    assert report.rows == {name: store.count(name) for name in _names(store)}
    assert all(count > 0 for count in report.rows.values())


def test_no_store_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="There is no store"):
        verify(str(tmp_path / "s"))


def test_lost_rows_are_found(store: Store) -> None:
    tiles, vectors = _names(store)
    first = store.slide_tile_ids(tiles.removeprefix("tiles_"), 0)[0]
    store.lance.delete("x", vectors, f"tile_id = {first}")
    assert _kinds(store) == {"count"}
    store.lance.delete("x", tiles, f"tile_id = {first + (1 << 32)} OR tile_id = {first}")
    assert "count" in _kinds(store)


def test_doubled_rows_are_found(store: Store) -> None:
    _, vectors = _names(store)
    store.lance.append("x", vectors, store.read(vectors, where="slide_no = 1"))
    assert _kinds(store) == {"duplicate", "count"}


def test_rows_of_unfinished_slides_are_found(store: Store) -> None:
    store.lance.delete("x", "done", "slide_no = 2")
    report = verify(store.uri)
    assert {problem.kind for problem in report.problems} == {"orphan"}
    assert {problem.table for problem in report.problems} == set(_names(store))


def test_vectors_without_tiles_are_found(store: Store) -> None:
    tiles, _ = _names(store)
    store.lance.delete("x", tiles, "slide_no = 1")
    assert _kinds(store) == {"count", "orphan"}


@pytest.mark.parametrize("value", [float("inf"), 0.0, 1.0])
def test_vectors_that_are_not_of_unit_length_are_found(store: Store, value: float) -> None:
    _, vectors = _names(store)
    row = store.read(vectors, where="slide_no = 0").slice(0, 1)
    where = f"tile_id = {row['tile_id'][0].as_py()}"
    dim = row.schema.field("vector").type.list_size
    broken = row.set_column(
        row.schema.get_field_index("vector"),
        row.schema.field("vector"),
        pa.array([[value] * dim], pa.list_(pa.float32(), dim)),
    )
    store.lance.delete("x", vectors, where)
    store.lance.append("x", vectors, broken)
    assert _kinds(store) == {"vector"}


def test_tiles_that_lie_elsewhere_are_found(store: Store) -> None:
    tiles, _ = _names(store)
    first = store.slide_tile_ids(tiles.removeprefix("tiles_"), 0)[0]
    _change(store, tiles, f"tile_id = {first}", {"x0": 7})
    assert _kinds(store) == {"position"}


def test_identities_that_repeat_or_disagree_are_found(store: Store) -> None:
    store.lance.append("x", "slides", store.read("slides", where="slide_no = 0"))
    assert _kinds(store) == {"duplicate"}
    store.lance.delete("x", "slides", "slide_no = 0")
    assert "orphan" in _kinds(store)


def test_an_encoder_that_was_not_copied_is_found(store: Store) -> None:
    store.lance.delete("x", "encoder_files", "file = 'encoder.json' OR file = 'encoder.safetensors'")
    assert _kinds(store) == {"encoder"}


def test_files_that_are_gone_or_changed_are_found(store: Store, cohort_folder: Path, tmp_path: Path) -> None:
    rows = store.slides().select(["slide_id", "path"]).to_pylist()
    copies = []
    for row in rows:
        copies.append(shutil.copy(row["path"], tmp_path / Path(row["path"]).name))
    table = pa.table({"slide_id": [row["slide_id"] for row in rows], "path": [str(copy) for copy in copies]})
    store.lance.update_columns("x", "slides", "slide_id", table)
    assert verify(store.uri).ok
    Path(copies[0]).unlink()
    with Path(copies[1]).open("r+b") as stream:
        stream.seek(1000)
        stream.write(b"other")
    report = verify(store.uri)
    assert [(problem.kind, problem.slide_id) for problem in report.problems] == [
        ("missing file", rows[0]["slide_id"]),
        ("changed file", rows[1]["slide_id"]),
    ]
    assert verify(store.uri, slides=False).ok


@pytest.mark.parametrize("which", [0, 1])
def test_a_table_that_is_gone_is_found(store: Store, which: int) -> None:
    name = _names(store)[which]
    shutil.rmtree(Path(store.uri) / f"{name}.lance")
    assert ("unreadable", name) in {(problem.kind, problem.table) for problem in verify(store.uri).problems}


def test_a_damaged_data_file_is_found(store: Store) -> None:
    tiles, _ = _names(store)
    uri = store.uri
    for file in (Path(uri) / f"{tiles}.lance" / "data").iterdir():
        os.truncate(file, 100)
    report = verify(uri)
    assert {(problem.kind, problem.table) for problem in report.problems} == {("unreadable", tiles)}
