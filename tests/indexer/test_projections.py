"""Maps in the store: what is read is what was written last, whoever else writes, and little is left behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from encoder.errors import StoreError
from indexer import schema
from indexer.projections import PlacedTiles, add_slides, read_map, read_marks, read_model, write_map
from indexer.store import Store, create_store, open_store
from indexer.upkeep import maintain

NAME = "vectors_e_g"


def tiles_of(slides: dict[int, int], seed: int = 0, mark: str = "a", fitted: bool = True) -> PlacedTiles:
    """Random places of so many tiles of each slide."""
    rng = np.random.default_rng(seed)
    counts = np.array(list(slides.values()), np.int64)
    ids = np.concatenate([(slide << 32) + np.arange(count) for slide, count in slides.items()])
    numbers = np.array(list(slides), np.int32)
    xy = rng.standard_normal((int(counts.sum()), 2)).astype(np.float32)
    return PlacedTiles(numbers, (mark,) * len(slides), np.full(len(slides), fitted), counts, ids, xy)


def write(store: Store, tiles: PlacedTiles, method: str = "pca", number: int = 1) -> str:
    model = {"mean": np.arange(3.0), "components": np.eye(2, 3), "rows": np.asarray(number)}
    return write_map(store, NAME, method, {"rows": number}, model, tiles)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return create_store(str(tmp_path / "s"))


def same(found: PlacedTiles, expected: PlacedTiles) -> bool:
    arrays = ("slide_no", "fitted", "counts", "tile_id", "xy")
    return found.marks == expected.marks and all(
        np.array_equal(getattr(found, name), getattr(expected, name)) for name in arrays
    )


def test_what_was_written_is_read(store: Store) -> None:
    assert read_map(store, NAME, "pca") is None and read_marks(store, NAME, "pca") is None
    tiles, other = tiles_of({4: 3, 2: 5, 9: 0}), tiles_of({4: 2}, seed=1)
    map_id = write(store, tiles)
    write(store, other, "umap", 7)
    found = read_map(open_store(store.uri, read_only=True), NAME, "pca")
    assert found is not None and found.map_id == map_id and found.settings == {"rows": 1}
    assert same(found.tiles, tiles) and found.tiles.xy.dtype == np.float32
    assert read_marks(store, NAME, "umap") == ({"rows": 7}, {4: "a"})
    model = read_model(store, map_id)
    np.testing.assert_array_equal(model["components"], np.eye(2, 3))
    assert int(model["rows"]) == 1
    some = found.tiles.of(np.array([False, True, True]))
    assert some.slide_no.tolist() == [2, 9]
    np.testing.assert_array_equal(some.xy, tiles.xy[3:])


def test_a_map_written_again_takes_the_place_of_the_first(store: Store) -> None:
    first = write(store, tiles_of({1: 4, 2: 4}))
    kept = write(store, tiles_of({1: 4}), "umap")
    second = write(store, tiles_of({1: 5}, seed=3), number=2)
    found = read_map(store, NAME, "pca")
    assert found is not None and found.map_id == second != first
    assert same(found.tiles, tiles_of({1: 5}, seed=3))
    assert sorted(set(store.read("projections", ["map_id"])["map_id"].to_pylist())) == sorted([kept, second])
    with pytest.raises(StoreError, match="replaced"):
        read_model(store, first)


def test_slides_are_added_and_replaced(store: Store) -> None:
    map_id = write(store, tiles_of({1: 4, 2: 3, 3: 2}))
    late = tiles_of({2: 6, 5: 1}, seed=4, mark="b", fitted=False)
    add_slides(store, map_id, NAME, "pca", late)
    found = read_map(store, NAME, "pca")
    assert found is not None
    about = dict(
        zip(found.tiles.slide_no.tolist(), zip(found.tiles.marks, found.tiles.fitted, strict=True), strict=True)
    )
    assert about == {1: ("a", True), 3: ("a", True), 2: ("b", False), 5: ("b", False)}
    assert same(found.tiles.of(np.isin(found.tiles.slide_no, [2, 5])), late)
    assert store.count("projections") == 5
    add_slides(store, map_id, NAME, "pca", late.of(np.zeros(2, np.bool_)))
    assert store.count("projections") == 5


def test_what_a_killed_or_slower_writer_left_is_ignored_and_goes(store: Store) -> None:
    old = write(store, tiles_of({1: 4}))
    new = write(store, tiles_of({1: 2}, seed=5), number=2)
    # As of one that took the old map for the map until now.
    add_slides(store, old, NAME, "pca", tiles_of({1: 4, 8: 3}))
    found = read_map(store, NAME, "pca")
    assert found is not None and found.map_id == new and same(found.tiles, tiles_of({1: 2}, seed=5))
    assert set(store.read("projections", ["map_id"])["map_id"].to_pylist()) == {new}


WRITER = """
import runpy, sys
here = runpy.run_path(sys.argv[2])
store = here["open_store"](sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for turn in range(3):
    tiles = here["tiles_of"]({slide: 50 for slide in range(20)}, seed=int(sys.argv[3]), mark=sys.argv[3])
    here["write"](store, tiles, number=turn)
"""


@pytest.mark.slow
def test_two_that_write_at_once_leave_one_whole_map(store: Store) -> None:
    store.lance._db.drop_table("projections")  # as in a store of before: both make it
    command = [sys.executable, "-c", WRITER, store.uri, __file__, "1"]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert other.stdin is not None and other.stdout is not None
    assert other.stdout.readline() == b"ready\n"
    other.stdin.write(b"go\n")
    other.stdin.flush()
    for turn in range(3):
        write(store, tiles_of(dict.fromkeys(range(20), 50), seed=2, mark="2"), number=turn)
    said = other.communicate(timeout=60)[1].decode()
    assert other.returncode == 0, said
    fresh = open_store(store.uri)
    found = read_map(fresh, NAME, "pca")
    assert found is not None and found.settings == {"rows": 2}
    (mark,) = set(found.tiles.marks)
    expected = tiles_of(dict.fromkeys(range(20), 50), seed=int(mark), mark=mark)
    assert same(found.tiles, expected)
    write(fresh, expected)
    assert fresh.count("projections") == 21


def test_upkeep_keeps_the_map_and_the_files_that_somebody_may_be_writing(store: Store) -> None:
    for turn in range(4):
        write(store, tiles_of({1: 4, 2: 3}, seed=turn), number=turn)
    file = Path(store.uri) / "projections.lance" / "data" / "00ff00ff.lance"
    file.write_bytes(b"half a write" * 1000)
    report = maintain(store.uri, 0)
    assert report.failed == () and file.exists()
    found = read_map(open_store(store.uri), NAME, "pca")
    assert found is not None and same(found.tiles, tiles_of({1: 4, 2: 3}, seed=3))
    assert store.lance.fragments_count("projections") == 1


def test_a_damaged_model_is_said(store: Store) -> None:
    map_id = write(store, tiles_of({1: 1}))
    rows = store.read("projections")
    model = pa.array([b"PK broken", None], pa.large_binary())
    broken = rows.set_column(rows.column_names.index("model"), schema.PROJECTIONS.field("model"), model)
    store.lance.delete("x", "projections", "true")
    store.lance.append("x", "projections", broken)
    with pytest.raises(StoreError, match="damaged"):
        read_model(store, map_id)
    # The places do not need it.
    assert read_map(store, NAME, "pca") is not None
