"""Reading a table as of one version, rows by their positions, and the stamp that changes with every commit."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from encoder.errors import StoreError
from indexer import schema
from indexer.store import Store, create_store, open_store

NAME = "vectors_e_g"
DIM = 8


def add_rows(store: Store, ids: np.ndarray, dim: int = DIM) -> None:
    """Append one commit of rows whose vectors are made of their ids."""
    layout = schema.vectors_schema(dim, 1.0)
    store.lance.create(NAME, layout)
    matrix = np.random.default_rng(0).permutation(np.outer(ids + 1, np.arange(1, dim + 1)).ravel())
    columns = {
        "tile_id": ids,
        "slide_no": (ids // 10).astype(np.int32),
        "x0": np.zeros(len(ids), np.int32),
        "y0": np.zeros(len(ids), np.int32),
        "tissue": np.ones(len(ids), np.float32),
        "norm": np.ones(len(ids), np.float32),
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(matrix.astype(np.float32)), dim),
    }
    store.lance.append("vectors", NAME, pa.table(columns).cast(layout))


def scanned(store: Store, version: int, where: str | None = None, batch_rows: int = 8192) -> list[int]:
    batches = store.scan(NAME, ["tile_id"], where, batch_rows, version=version)
    return [tile_id for batch in batches for tile_id in batch["tile_id"].to_pylist()]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Twelve commits of 25 rows; their ids fall from commit to commit, so that no sorting hides a wrong order."""
    made = create_store(str(tmp_path / "s"))
    for part in reversed(range(12)):
        add_rows(made, np.arange(part * 25, part * 25 + 25))
    return made


def test_a_pinned_scan_keeps_the_order_of_the_commits_and_sees_nothing_later(store: Store) -> None:
    version = store.table_version(NAME)
    expected = [i for part in reversed(range(12)) for i in range(part * 25, part * 25 + 25)]
    assert scanned(store, version) == expected
    assert scanned(store, version, batch_rows=7) == expected
    assert scanned(store, version, "slide_no IN (20, 3, 11)") == [i for i in expected if i // 10 in (20, 3, 11)]
    assert [b["tile_id"].to_pylist() for b in store.scan(NAME, ["tile_id"])] != []
    add_rows(store, np.arange(900, 905))
    store.lance.delete("gone", NAME, "slide_no = 3")
    assert scanned(store, version) == expected
    later = [i for i in expected if i // 10 != 3] + list(range(900, 905))
    assert scanned(store, store.table_version(NAME)) == later
    assert [i for batch in store.scan(NAME, ["tile_id"]) for i in batch["tile_id"].to_pylist()] == later


def test_batches_are_no_longer_than_asked(store: Store) -> None:
    sizes = [len(batch) for batch in store.scan(NAME, ["vector"], batch_rows=10, version=store.table_version(NAME))]
    assert sum(sizes) == 300
    assert max(sizes) == 10


def test_taken_rows_are_those_at_the_scan_positions_also_after_deletions(store: Store) -> None:
    store.lance.delete("gone", NAME, "slide_no IN (0, 7, 12, 29) OR tile_id % 9 = 4")
    version = store.table_version(NAME)
    order = scanned(store, version)
    assert len(order) < 270
    places = np.random.default_rng(1).integers(0, len(order), 500)  # out of order, and with repetitions
    rows = store.lance.take(NAME, places, ["tile_id", "vector"], version)
    assert rows["tile_id"].to_pylist() == [order[place] for place in places]
    whole = dict(zip(order, store.read(NAME)["vector"].to_pylist(), strict=True))
    assert rows["vector"].to_pylist() == [whole[order[place]] for place in places]
    assert store.lance.take(NAME, [], None, version).schema.names == store.table_schema(NAME).names
    assert store.lance.take(NAME, [2, 0, 1], ["tile_id"], version)["tile_id"].to_pylist() == [
        order[2],
        order[0],
        order[1],
    ]


@pytest.mark.parametrize("compacted", [False, True])
def test_parts_of_a_scan_are_its_rows_between_two_positions_also_after_deletions(store: Store, compacted: bool) -> None:
    store.lance.delete("gone", NAME, "slide_no IN (0, 7, 12, 29) OR tile_id % 9 = 4")
    if compacted:
        store.lance.optimize(NAME)
    version = store.table_version(NAME)
    order = scanned(store, version)
    for first, end in [(0, 1), (0, 40), (3, 190), (24, 26), (100, 100), (len(order) - 7, len(order)), (5, 9999)]:
        batches = list(store.scan(NAME, ["tile_id"], None, 16, version, (first, end)))
        assert [i for batch in batches for i in batch["tile_id"].to_pylist()] == order[first:end], (first, end)
        assert all(0 < len(batch) <= 16 for batch in batches)


def test_scans_of_one_version_do_not_disturb_each_other(store: Store) -> None:
    version = store.table_version(NAME)
    expected = scanned(store, version, batch_rows=7)
    begun = store.scan(NAME, ["tile_id"], batch_rows=7, version=version)
    left = store.scan(NAME, ["tile_id"], batch_rows=7, version=version)
    next(left)
    found = next(begun)["tile_id"].to_pylist()
    left.close()
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: scanned(store, version, batch_rows=7), range(12))) == [expected] * 12
    found += [tile_id for batch in begun for tile_id in batch["tile_id"].to_pylist()]
    assert found == expected
    other = [batch.schema.names for batch in store.scan(NAME, ["slide_no", "tile_id"], batch_rows=7, version=version)]
    assert other[0] == ["slide_no", "tile_id"]


def test_positions_need_a_version_and_no_filter(store: Store) -> None:
    for version, where in ((None, None), (store.table_version(NAME), "slide_no = 3")):
        with pytest.raises(ValueError, match="positions in one version of the table, without a filter"):
            list(store.scan(NAME, ["tile_id"], where, version=version, between=(0, 5)))


@pytest.mark.parametrize("row", [-1, 300])
def test_a_row_that_is_not_there_is_an_error(store: Store, row: int) -> None:
    with pytest.raises(StoreError, match=f"has no row {row}: it has 300"):
        store.lance.take(NAME, [0, row], ["tile_id"], store.table_version(NAME))


def test_a_version_that_was_removed_or_never_was_is_an_error(store: Store) -> None:
    version = store.table_version(NAME)
    with pytest.raises(StoreError, match=f"Version {version + 9} of the table {NAME}.*is gone.*Open the store again"):
        scanned(store, version + 9)
    store.lance.optimize(NAME)
    store.lance.prune(NAME, timedelta(0))
    fresh = open_store(store.uri, read_only=True)
    for reader in (store, fresh):  # one that never read it, and one that kept its description
        with pytest.raises(StoreError, match="is gone"):
            reader.lance.take(NAME, [1, 299], None, version - 3)


def test_the_dataset_takes_filters_along_and_is_the_latest(store: Store) -> None:
    import pyarrow.compute as pc

    rows = store.lance.dataset(NAME).to_table(columns=["tile_id"], filter=pc.field("slide_no") == 4)
    assert sorted(rows["tile_id"].to_pylist()) == list(range(40, 50))
    add_rows(store, np.arange(900, 905))
    assert store.lance.dataset(NAME).count_rows() == 305
    assert store.lance.dataset("annotations").count_rows() == 0
    with pytest.raises(StoreError, match="has no table vectors_a_b"):
        store.lance.dataset("vectors_a_b")


def test_every_commit_changes_the_stamp_however_quick(tmp_path: Path) -> None:
    writer = create_store(str(tmp_path / "s"))
    reader = open_store(str(tmp_path / "s"), read_only=True)
    names = ["slides", "annotations", "runs"]
    stamps = [reader.lance.stamp(names)]
    for n in range(30):
        writer.annotate("grade", ["1"], [n])
        stamps.append(reader.lance.stamp(names))
    assert len(set(stamps)) == 31
    assert reader.lance.stamp(names) == stamps[-1]


def test_an_old_stamp_is_not_read_again_and_a_commit_is_seen_all_the_same(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(store.uri) / f"{NAME}.lance" / "_versions"
    before = time.time() - 60
    os.utime(folder, (before, before))
    reads: list[str] = []
    pinned = store.lance._pinned
    version = pinned.version
    monkeypatch.setattr(pinned, "version", lambda name: reads.append(name) or version(name))
    first = store.lance.stamp([NAME])
    assert [store.lance.stamp([NAME]) for _ in range(5)] == [first] * 5
    assert reads == [NAME]
    add_rows(store, np.arange(900, 905))
    assert store.lance.stamp([NAME]) != first
    # A second commit that bears the time of the first one, as within one tick of the clock.
    seen, when = store.lance.stamp([NAME]), folder.stat().st_mtime_ns
    add_rows(store, np.arange(910, 915))
    os.utime(folder, ns=(when, when))
    assert store.lance.stamp([NAME]) != seen


def test_a_table_that_appears_changes_the_stamp(tmp_path: Path) -> None:
    store = create_store(str(tmp_path / "s"))
    before = store.lance.stamp([NAME])
    add_rows(store, np.arange(5))
    assert store.lance.stamp([NAME]) != before


def test_sizes_of_a_table(store: Store) -> None:
    lance = store.lance
    folder = Path(store.uri) / f"{NAME}.lance"
    assert lance.bytes_on_disk(NAME) == sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    assert (lance.versions_count(NAME), lance.fragments_count(NAME)) == (13, 12)
    assert (lance.versions_count("x"), lance.fragments_count("x"), lance.bytes_on_disk("x")) == (0, 0, 0)
