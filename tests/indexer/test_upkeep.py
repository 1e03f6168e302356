"""`maintain`: what it joins, indexes and removes, that rows stay as they were, and what it refuses."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from encoder.errors import StoreError, UsageError
from encoder.progress import SilentReporter
from indexer import ann, schema, upkeep
from indexer.run_lock import RunLock
from indexer.store import Store, create_store, open_store
from indexer.upkeep import maintain

NAME = "vectors_e_g"


def write(store: Store, slides: range, dim: int = 16) -> None:
    """Append one commit of twenty unit vectors per slide."""
    layout = schema.vectors_schema(dim, 1.0)
    store.lance.create(NAME, layout)
    for slide in slides:
        matrix = np.random.default_rng(slide).standard_normal((20, dim)).astype(np.float32)
        matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
        columns = {
            "tile_id": 1000 * (50 - slide) + np.arange(20),
            "slide_no": np.full(20, slide, np.int32),
            "x0": np.zeros(20, np.int32),
            "y0": np.zeros(20, np.int32),
            "tissue": np.ones(20, np.float32),
            "norm": np.ones(20, np.float32),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel()), dim),
        }
        store.lance.append("vectors", NAME, pa.table(columns).cast(layout))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Ten commits of vectors, eight of them known to an index, and some annotations."""
    made = create_store(str(tmp_path / "s"))
    write(made, range(8))
    ann.create_index(made, NAME, "ivf-sq", 4)
    write(made, range(8, 10))
    for n in range(5):
        made.annotate("grade", [str(n)], [n])
    return made


def table(report: upkeep.UpkeepReport, name: str) -> upkeep.TableUpkeep:
    (found,) = [one for one in report.tables if one.table == name]
    return found


def versions(store: Store) -> dict[str, int]:
    return {name: store.table_version(name) for name in store.tables() if name != "runs"}


def add_run(store: Store, **values: Any) -> None:
    now = datetime.now(UTC)
    row = dict.fromkeys(schema.RUNS.names) | {"run_id": "other", "pid": 1, "started_at": now, "heartbeat_at": now}
    store.lance.append("runs", "runs", pa.Table.from_pylist([row | values], schema=schema.RUNS))


def test_rows_and_answers_stay_and_files_and_versions_go(store: Store) -> None:
    rows, annotations = store.read(NAME), store.annotations()
    query = np.asarray(rows["vector"][150].as_py(), np.float32)
    answer = ann.nearest(store, NAME, query, 10, None, 20, None)
    report = maintain(store.uri, 0, SilentReporter())
    assert store.read(NAME).equals(rows)
    assert store.annotations().equals(annotations)
    version = store.table_version(NAME)
    assert pa.Table.from_batches(store.scan(NAME, version=version)).equals(rows.combine_chunks())
    after = ann.nearest(store, NAME, query, 10, None, 20, None)
    assert after.tile_id.tolist() == answer.tile_id.tolist()
    done = table(report, NAME)
    assert done.before is not None
    assert done.after is not None
    assert (done.before.fragments, done.after.fragments) == (10, 1)
    assert (done.before.versions, done.after.versions) == (14, 1)
    assert done.rows_indexed == 40
    state = ann.index_state(store, NAME)
    assert state is not None
    assert (state.rows_indexed, state.rows_unindexed) == (200, 0)
    assert done.after.bytes == store.lance.bytes_on_disk(NAME)
    assert report.saved_bytes is not None
    assert report.saved_bytes > 0
    assert (report.failed, report.exit_code, report.changed) == ((), 0, True)


@pytest.mark.parametrize("keep_days", [0, 7])
def test_a_second_run_changes_no_table_but_runs(store: Store, keep_days: float) -> None:
    maintain(store.uri, keep_days)
    before = versions(store)
    again = maintain(store.uri, keep_days)
    assert versions(store) == before
    assert not again.changed
    assert all(one.before == one.after for one in again.tables if one.table != "runs")


def test_many_small_runs_leave_one_file_and_a_whole_index(store: Store) -> None:
    for slide in range(10, 14):
        write(store, range(slide, slide + 1))
        maintain(store.uri)
    assert store.lance.fragments_count(NAME) == 1
    (index,) = [found for found in store.lance.indices(NAME) if found.columns == ["vector"]]
    assert (index.num_segments, index.num_indexed_rows) == (1, 280)
    assert len(store.read(NAME)) == 280


def test_young_versions_are_kept_and_old_and_untagged_ones_go(store: Store) -> None:
    before = store.table_version(NAME)
    store.lance._handle(NAME).tags.create("paper", 5)
    kept = maintain(store.uri, 7)
    assert list(store.scan(NAME, ["tile_id"], version=before))
    assert table(kept, NAME).after.versions > table(kept, NAME).before.versions  # type: ignore[union-attr]
    assert kept.saved_bytes is not None
    assert kept.saved_bytes < 0
    gone = maintain(store.uri, 0)
    assert gone.failed == ()
    assert table(gone, NAME).after.versions == 2  # type: ignore[union-attr]
    fresh = open_store(store.uri, read_only=True)
    assert len(list(fresh.scan(NAME, ["tile_id"], version=5))) > 0
    with pytest.raises(StoreError, match="is gone"):
        list(fresh.scan(NAME, ["tile_id"], version=before))


def orphan(store: Store, name: str) -> Path:
    file = Path(store.uri) / f"{name}.lance" / "data" / "00ff00ff.lance"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"half a write" * 1000)
    return file


def test_what_a_killed_write_left_goes_unless_it_may_still_be_written(store: Store) -> None:
    left, note = orphan(store, NAME), orphan(store, "annotations")
    report = maintain(store.uri, 7)
    assert report.orphans
    assert not left.exists()
    assert note.exists()  # anybody may annotate while this runs
    left = orphan(store, NAME)
    add_run(store, machine="elsewhere", status="running", heartbeat_at=datetime.now(UTC) - timedelta(hours=3))
    report = maintain(store.uri, 7)
    assert not report.orphans  # it may wake up
    assert left.exists()
    store.lance.delete("gone", "runs", "run_id = 'other'")
    add_run(store, machine="elsewhere", status="running", heartbeat_at=datetime.now(UTC) - timedelta(days=2))
    assert maintain(store.uri, 7).orphans
    assert not left.exists()


def test_it_never_runs_beside_an_indexing_run(store: Store) -> None:
    before = versions(store)
    with RunLock(store, "index", {}, "cpu", (1, 2)), pytest.raises(StoreError, match="is being written by"):
        maintain(store.uri)
    assert versions(store) == before


def test_it_is_a_run_like_others(store: Store) -> None:
    report = maintain(store.uri, 3)
    row = store.runs().to_pylist()[-1]
    assert (row["run_id"], row["command"], row["status"]) == (report.run_id, "maintain", "finished")
    assert json.loads(row["config"]) == {"keep_days": 3}
    assert json.loads(row["counts"])["rows_indexed"] == 40


def test_a_table_that_fails_is_named_and_the_others_are_done(store: Store) -> None:
    manifests = (Path(store.uri) / "annotations.lance" / "_versions").glob("*.manifest")
    for manifest in manifests:
        manifest.write_bytes(b"no manifest")
    report = maintain(store.uri, 0)
    assert report.failed == ("annotations",)
    assert report.exit_code == 1
    assert "annotations" in (table(report, "annotations").problem or "")
    assert table(report, NAME).after.fragments == 1  # type: ignore[union-attr]
    assert store.runs().to_pylist()[-1]["status"] == "finished"


def test_a_folder_that_never_became_a_table_is_left_alone(store: Store) -> None:
    (Path(store.uri) / "vectors_x_y.lance" / "data").mkdir(parents=True)
    assert maintain(store.uri, 0).exit_code == 0


def test_without_space_nothing_is_joined_and_the_number_is_said(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(store.uri)
    free = 30_000_000
    monkeypatch.setattr(upkeep.shutil, "disk_usage", lambda _: usage._replace(free=free))
    report = maintain(store.uri, 7)
    assert NAME in report.failed
    problem = table(report, NAME).problem or ""
    assert "0.07 GB beside it, and 0.03 GB are free" in problem
    assert store.lance.fragments_count(NAME) == 10
    assert "meta" not in report.failed  # it has nothing to join, so it needs no space
    monkeypatch.undo()
    assert maintain(store.uri, 7).exit_code == 0


def test_the_space_it_asks_for_is_at_least_what_it_takes(store: Store) -> None:
    asked = store.lance.optimize_bytes(NAME)
    before = store.lance.bytes_on_disk(NAME) or 0
    assert store.lance.optimize(NAME)
    taken = (store.lance.bytes_on_disk(NAME) or 0) - before
    assert taken - 50_000 < asked < 5 * taken  # manifests are counted apart
    assert store.lance.optimize_bytes(NAME) == 0
    assert not store.lance.optimize(NAME)


def test_a_negative_age_is_refused(store: Store) -> None:
    with pytest.raises(UsageError, match="kept for -1 days"):
        maintain(store.uri, -1)


def test_a_store_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="There is no store"):
        maintain(str(tmp_path / "nowhere"))
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_what_it_did(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    from ui.cli.upkeep import maintain as command

    command(store.uri, 0)
    first = capsys.readouterr().out
    assert f"{NAME}" in first
    assert "10 -> 1" in first
    assert "MB freed" in first
    command(store.uri, 0)
    assert capsys.readouterr().out.splitlines()[-1] == "nothing to do"
    command(store.uri, 0, json_output=True)
    document = json.loads(capsys.readouterr().out)
    assert (document["changed"], document["exit_code"], document["failed"]) == (False, 0, [])
    assert {one["table"] for one in document["tables"]} == set(store.tables())
