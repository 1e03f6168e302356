"""One driver per store."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from encoder.errors import StoreError
from indexer import run_lock, schema
from indexer.run_lock import RunLock, are_disjoint, is_alive, process_started, this_process
from indexer.store import Store, create_store
from indexer.tables import Tables


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return create_store(str(tmp_path / "store"))


def _lock(store: Store, shard: tuple[int, int] | None = None) -> RunLock:
    return RunLock(store, "index", {}, "cpu", shard)


def _put(store: Store, **changes: Any) -> None:
    me = this_process()
    now = datetime.now(UTC)
    row: dict[str, Any] = dict.fromkeys(schema.RUNS.names)
    row |= {"run_id": "other", "host": "elsewhere", "machine": me.machine, "pid": me.pid, "status": "running"}
    row |= {"pid_started": me.started, "started_at": now, "heartbeat_at": now} | changes
    store.lance.append("x", "runs", pa.Table.from_pylist([row], schema=schema.RUNS))


def _status(store: Store) -> dict[str, str]:
    return {row["run_id"]: row["status"] for row in store.runs().to_pylist()}


def test_a_second_driver_is_refused_in_one_sentence(store: Store) -> None:
    with _lock(store) as first:
        with pytest.raises(StoreError) as refusal, _lock(store):
            pass
        text = str(refusal.value)
        assert f"process {os.getpid()}" in text and text.count(".") == 1 + store.uri.count(".")
        first.finish("finished", {"tiles": 3}, {})
    assert _status(store) == {first.run_id: "finished"}
    with _lock(store) as later:
        later.finish("finished", {}, {})


def test_disjoint_shards_work_side_by_side(store: Store) -> None:
    with _lock(store, (1, 2)) as a, _lock(store, (2, 2)) as b:
        with pytest.raises(StoreError), _lock(store, (2, 2)):
            pass
        with pytest.raises(StoreError), _lock(store, (2, 3)):
            pass
        with pytest.raises(StoreError), _lock(store):
            pass
        a.finish("finished", {}, {})
        b.finish("finished", {}, {})
    assert are_disjoint((1, 2), (2, 2)) and not are_disjoint((1, 2), (2, 3)) and not are_disjoint(None, (1, 2))


def test_how_a_run_ends_is_written(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), _lock(store) as failed:
        raise ZeroDivisionError
    with pytest.raises(KeyboardInterrupt), _lock(store) as interrupted:
        raise KeyboardInterrupt
    assert _status(store) == {failed.run_id: "failed", interrupted.run_id: "interrupted"}


def test_a_dead_process_of_this_machine_holds_nothing(store: Store) -> None:
    child = subprocess.Popen([sys.executable, "-S", "-c", "pass"])
    child.wait()
    _put(store, pid=child.pid, pid_started="1")
    with _lock(store) as run:
        run.finish("finished", {}, {})
    assert _status(store)["other"] == "died"


def test_a_number_given_to_another_process_holds_nothing(store: Store) -> None:
    _put(store, pid_started="12345")
    with _lock(store):
        assert _status(store)["other"] == "died"


def test_another_machine_is_believed_for_two_minutes(store: Store) -> None:
    now = datetime.now(UTC)
    row = {"machine": "another", "pid": 1, "pid_started": "1"}
    assert is_alive(row | {"heartbeat_at": now - timedelta(seconds=100)}, now)
    assert not is_alive(row | {"heartbeat_at": now - timedelta(seconds=121)}, now)
    _put(store, machine="another", pid=1, pid_started="1", heartbeat_at=now - timedelta(seconds=60))
    with pytest.raises(StoreError, match="elsewhere"), _lock(store):
        pass


def test_of_two_that_start_at_once_the_first_row_stays(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = _lock(store), _lock(store)
    seen: list[str] = []
    original = RunLock._others

    def others(self: RunLock, before_mine: bool = False) -> list[dict[str, Any]]:
        if not before_mine:
            return []  # neither has seen the other
        if self is first and not seen:
            seen.append("nested")
            with pytest.raises(StoreError), second:
                pass
        return original(self, before_mine)

    monkeypatch.setattr(RunLock, "_others", others)
    with first:
        assert _status(store) == {first.run_id: "running", second.run_id: "withdrawn"}


def test_the_heart_beats(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "HEARTBEAT_SECONDS", 0.02)
    with _lock(store) as run:
        begun = store.runs()["heartbeat_at"][0].as_py()
        deadline = datetime.now(UTC) + timedelta(seconds=20)
        while store.runs()["heartbeat_at"][0].as_py() == begun and datetime.now(UTC) < deadline:
            pass
        assert store.runs()["heartbeat_at"][0].as_py() > begun
        run.finish("finished", {}, {})


def test_a_run_whose_end_could_not_be_written_holds_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Tables.update_columns

    def full(self: Tables, point: str, *rest: Any) -> None:
        if point == "run-finished":
            raise StoreError("no space")
        original(self, point, *rest)

    monkeypatch.setattr(Tables, "update_columns", full)
    with pytest.raises(ZeroDivisionError), _lock(store) as failed:  # what went wrong first is what is told
        raise ZeroDivisionError
    monkeypatch.undo()
    assert _status(store) == {failed.run_id: "running"}
    with _lock(store) as later:
        later.finish("finished", {}, {})
    assert _status(store) == {failed.run_id: "died", later.run_id: "finished"}


def test_a_driver_that_was_taken_for_dead_notices(store: Store) -> None:
    with _lock(store) as run:
        run.check()
        row = pa.table({"run_id": [run.run_id], "status": ["died"]})
        store.lance.update_columns("x", "runs", "run_id", row)
        with pytest.raises(StoreError, match="has taken over the store"):
            run.check()


def test_where_the_process_table_is_hidden_the_heartbeat_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    def hidden(path: Path, *_: Any) -> str:
        raise FileNotFoundError(path)

    now, me = datetime.now(UTC), this_process()
    row = {"machine": me.machine, "pid": os.getppid(), "pid_started": process_started(os.getppid())}
    stale, fresh = (row | {"heartbeat_at": now - timedelta(seconds=age)} for age in (121, 100))
    assert is_alive(stale, now)
    monkeypatch.setattr(run_lock, "this_process", lambda: me)
    monkeypatch.setattr(Path, "read_text", hidden)
    assert process_started(os.getpid()) == "" and process_started(2**22 + 1) is None
    assert is_alive(fresh, now) and not is_alive(stale, now)


def test_process_start_times_are_told() -> None:
    assert process_started(os.getpid())
    assert process_started(2**22 + 1) is None
