"""Opening a store, reading it, and the rules that every table access obeys."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from encoder.errors import StoreError
from indexer import schema
from indexer.store import Store, create_store, open_store
from indexer.verify import verify


def test_an_absent_place_is_no_store_and_stays_absent(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="There is no store at"):
        open_store(str(tmp_path / "nowhere"))
    assert not (tmp_path / "nowhere").exists()


def test_a_folder_with_other_things_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(StoreError, match="is not a HistoSeek store"):
        open_store(str(tmp_path))
    with pytest.raises(StoreError, match="folder with other things"):
        create_store(str(tmp_path))
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "slide.svs"
    file.write_text("x")
    for opener in (open_store, create_store):
        with pytest.raises(StoreError, match="is a file, not a store"):
            opener(str(file))


def test_a_creation_that_was_killed_is_taken_up(tmp_path: Path) -> None:
    (tmp_path / "s" / "meta.lance" / "data").mkdir(parents=True)
    with pytest.raises(StoreError, match="is not a HistoSeek store"):
        open_store(str(tmp_path / "s"))
    store = create_store(str(tmp_path / "s"))
    assert store.count("meta") == 1
    assert open_store(str(tmp_path / "s")).tables() == sorted(schema.FIXED_TABLES)


def test_creating_twice_changes_nothing(tmp_path: Path) -> None:
    first = create_store(str(tmp_path / "s"))
    before = {name: first.table_version(name) for name in first.tables()}
    create_store(str(tmp_path / "s"))
    assert {name: first.table_version(name) for name in first.tables()} == before


def test_another_format_version_is_refused(tmp_path: Path) -> None:
    store = create_store(str(tmp_path / "s"))
    row = {"format_version": 99, "created_by": "later", "created_at": None}
    store.lance.append("meta", "meta", pa.Table.from_pylist([row], schema=schema.META))
    with pytest.raises(StoreError, match="format version 99"):
        open_store(str(tmp_path / "s"))


def test_an_open_handle_sees_what_another_one_writes(tmp_path: Path) -> None:
    writer = create_store(str(tmp_path / "s"))
    reader = open_store(str(tmp_path / "s"), read_only=True)
    assert len(reader.annotations()) == 0
    version = reader.table_version("annotations")
    writer.annotate("grade", ["G2", 3.5, None], [1, 2, 3], author="me")
    rows = reader.annotations("grade").to_pylist()
    assert [(row["slide_no"], row["value"], row["number"]) for row in rows] == [
        (1, "G2", None),
        (2, "3.5", 3.5),
        (3, None, None),
    ]
    assert reader.table_version("annotations") == version + 1


def test_a_store_opened_for_reading_refuses_to_write(tmp_path: Path) -> None:
    create_store(str(tmp_path / "s"))
    with pytest.raises(StoreError, match="for reading only"):
        open_store(str(tmp_path / "s"), read_only=True).annotate("grade", ["G1"], [0])


def test_annotations_of_tiles_need_their_grid(tmp_path: Path) -> None:
    store = create_store(str(tmp_path / "s"))
    with pytest.raises(StoreError, match="given together"):
        store.annotate("label", ["x"], [0], tile_ids=[5])
    with pytest.raises(StoreError, match="differ in number"):
        store.annotate("label", ["x"], [0, 1])
    store.annotate("label", ["x"], [0], tile_ids=[5], grid_id="g")
    assert store.annotations()["tile_id"].to_pylist() == [5]


def test_an_unknown_table_is_named(tmp_path: Path) -> None:
    store = create_store(str(tmp_path / "s"))
    with pytest.raises(StoreError, match="has no table tiles_x"):
        store.read("tiles_x")
    assert (store.count("tiles_x"), store.table_version("tiles_x")) == (0, 0)


def test_scan_streams_all_rows_in_their_order(tmp_path: Path) -> None:
    store = create_store(str(tmp_path / "s"))
    store.annotate("a", list(range(25)), list(range(25)))
    store.annotate("a", list(range(25, 40)), list(range(25, 40)))
    batches = list(store.scan("annotations", ["slide_no"], "slide_no >= 10", batch_rows=8))
    assert max(len(batch) for batch in batches) <= 8
    assert np.concatenate([batch["slide_no"].to_numpy() for batch in batches]).tolist() == list(range(10, 40))


def test_a_deletion_of_nothing_makes_no_version(tmp_path: Path) -> None:
    store = create_store(str(tmp_path / "s"))
    store.annotate("a", ["x"], [0])
    version = store.table_version("annotations")
    store.lance.delete("purged", "annotations", "slide_no = 7")
    assert store.table_version("annotations") == version


def test_a_file_uri_is_a_path(tmp_path: Path) -> None:
    uri = f"file://{tmp_path / 'my%20store'}"
    with pytest.raises(StoreError, match="There is no store at"):
        open_store(uri, read_only=True)
    assert not list(tmp_path.iterdir())
    assert create_store(uri).uri == str(tmp_path / "my store")
    assert open_store(uri).count("meta") == 1


def test_what_two_drivers_both_wrote_is_read_once(store_copy: Path) -> None:
    store = open_store(str(store_copy))
    encoders, grids = store.encoders(), store.grids()
    for name in ("encoders", "grids", "encoder_files"):
        store.lance.append("x", name, store.read(name))
    assert store.encoders().equals(encoders) and store.grids().equals(grids)
    assert len(store.load_encoder_files(encoders["encoder_id"][0].as_py())) == 2
    assert verify(store.uri, slides=False).ok


def test_a_damaged_table_is_named(store_copy: Path) -> None:
    ((encoder_id, grid_id, _),) = open_store(str(store_copy)).vector_tables()
    name = schema.vectors_table_name(encoder_id, grid_id)
    for file in (store_copy / f"{name}.lance" / "_versions").iterdir():
        os.truncate(file, 10)
    for act in (Store.count, Store.table_version, Store.table_schema, Store.read):
        with pytest.raises(StoreError, match=f"The table {name} "):
            act(open_store(str(store_copy)), name)
    report = verify(str(store_copy), slides=False)
    assert [(problem.kind, problem.table) for problem in report.problems] == [("unreadable", name)]


def test_pictures_come_by_tile_id(tiny_store: Path) -> None:
    store = open_store(str(tiny_store), read_only=True)
    ((encoder_id, grid_id, rows),) = store.vector_tables()
    ids = store.slide_tile_ids(grid_id, 1)
    thumbs = store.thumbs(grid_id, [int(ids[3]), int(ids[0]), -1])
    assert set(thumbs) == {int(ids[0]), int(ids[3])}
    assert all(content.startswith(b"\xff\xd8") for content in thumbs.values())
    assert set(store.tile_images(grid_id, ids[:2])) == set(ids[:2].tolist())
    assert sum(store.rows_per_slide(schema.vectors_table_name(encoder_id, grid_id)).values()) == rows


def test_slides_come_without_thumbnails_unless_asked(tiny_store: Path) -> None:
    store = open_store(str(tiny_store), read_only=True)
    assert "thumbnail" not in store.slides().column_names
    with_them = store.slides(thumbnails=True)
    assert with_them["slide_no"].to_pylist() == [0, 1, 2]
    assert with_them["thumbnail"][1].as_py() == store.thumbnail(with_them["slide_id"][1].as_py())
    with pytest.raises(StoreError, match="no slide nobody"):
        store.thumbnail("nobody")


def test_vectors_tables_are_told_by_their_names() -> None:
    name = schema.vectors_table_name("resnet18-1a2b3c4d", "m1-0-t128-5e6f7a8b")
    assert schema.split_vectors_name(name) == ("resnet18-1a2b3c4d", "m1-0-t128-5e6f7a8b")
    assert schema.split_vectors_name("tiles_m1-0-t128-5e6f7a8b") is None
