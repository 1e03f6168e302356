"""One driver per store: the `runs` row with its heartbeat, and the refusal of a second driver."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import socket
import threading
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa

from encoder.errors import StoreError
from indexer import schema
from indexer.store import Store
from indexer.tables import sql_text

HEARTBEAT_SECONDS = 30.0
STALE_AFTER = timedelta(seconds=120)

_ACTIVE = ("starting", "running")
_LIBRARIES = ("histoseek", "lancedb", "numpy", "openslide-python", "pyarrow", "pyvips", "timm", "torch")


@dataclass(frozen=True)
class Process:
    """What identifies a process, also after its number was given to another one.

    Attributes:
        host: name of the machine, for people.
        machine: boot and process namespace; two processes that share it can see each other.
        pid: process number within it.
        started: when it started, in the words of the operating system.
    """

    host: str
    machine: str
    pid: int
    started: str


class RunLock:
    """Holds a store for one run: registers it, keeps its heartbeat, and writes how it ended.

    Args:
        store: opened for writing.
        command: what the user asked for.
        config: of the run, as JSON can hold it.
        device: that embeds.
        shard: part of the slides that this run touches; None for all.

    Raises:
        StoreError: another driver, whose part is not disjoint, is at work on the store.
    """

    def __init__(
        self, store: Store, command: str, config: dict[str, Any], device: str, shard: tuple[int, int] | None
    ) -> None:
        self.run_id = uuid.uuid4().hex[:16]
        self._store = store
        self._shard = shard
        self._stop = threading.Event()
        self._beating = threading.Thread(target=self._beat, name=_thread_name(self.run_id), daemon=True)
        me = this_process()
        now = datetime.now(UTC)
        self._row = {
            "run_id": self.run_id,
            "command": command,
            "config": json.dumps(config, sort_keys=True),
            "versions": json.dumps(_versions()),
            "device": device,
            "host": me.host,
            "machine": me.machine,
            "pid": me.pid,
            "pid_started": me.started,
            "shard": _shard_text(shard),
            "started_at": now,
            "heartbeat_at": now,
            "finished_at": None,
            "status": "starting",
            "counts": "{}",
            "stages": "{}",
        }
        self._ended = False

    def __enter__(self) -> RunLock:
        others = self._others()
        self._refuse_beside([row for row in others if is_alive(row)])
        dead = [row for row in others if not is_alive(row)]
        if dead:
            self._update("run-dead", [{"run_id": row["run_id"], "status": "died"} for row in dead])
        self._beating.start()  # before the row is there: its thread is what makes it alive
        try:
            self._store.lance.append("run-starting", "runs", pa.Table.from_pylist([self._row], schema=schema.RUNS))
            # Two drivers may both have seen nobody. Rows lie in the order of their commits, so of those that
            # are starting the first stays; one that is already running was there before.
            self._refuse_beside([row for row in self._others(before_mine=True) if is_alive(row)])
            self._update("run-running", [{"run_id": self.run_id, "status": "running"}])
        except BaseException:
            self._leave("withdrawn")
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave("interrupted" if kind is KeyboardInterrupt else "failed")

    def check(self) -> None:
        """Make sure that the run still holds the store.

        Raises:
            StoreError: its row says otherwise; another driver took this one for dead.
        """
        rows = self._store.read("runs", ["status"], f"run_id = {sql_text(self.run_id)}")["status"].to_pylist()
        if rows != ["running"]:
            raise StoreError(
                f"Another driver has taken over the store {self._store.uri}: "
                "no heartbeat of this run arrived in time, and nothing more of it is written.",
                fix="Index again once the other driver is through.",
            )

    def finish(self, status: str, counts: dict[str, Any], stages: dict[str, Any]) -> None:
        """Write the end of the run: `finished`, `interrupted` or `failed`, with its counts and seconds."""
        self._stop.set()
        self._beating.join()
        self._end(status, counts, stages)

    def _leave(self, status: str) -> None:
        """Say that the run is over where it did not finish; what ended it matters more than that this succeeds."""
        self._stop.set()
        self._beating.join()
        if not self._ended:
            with contextlib.suppress(StoreError):  # the thread is gone, so the row counts as dead all the same
                self._end(status, {}, {})

    def _end(self, status: str, counts: dict[str, Any], stages: dict[str, Any]) -> None:
        now = datetime.now(UTC)
        row = {
            "run_id": self.run_id,
            "status": status,
            "heartbeat_at": now,
            "finished_at": now,
            "counts": json.dumps(counts),
            "stages": json.dumps(stages),
        }
        self._update("run-finished", [row])
        self._ended = True

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            try:
                self._update("heartbeat", [{"run_id": self.run_id, "heartbeat_at": datetime.now(UTC)}])
            except StoreError:
                continue  # one missed beat is harmless; a store that is gone stops the run at its next commit

    def _update(self, point: str, rows: list[dict[str, Any]]) -> None:
        fields = [schema.RUNS.field(name) for name in rows[0]]
        self._store.lance.update_columns(point, "runs", "run_id", pa.Table.from_pylist(rows, schema=pa.schema(fields)))

    def _others(self, before_mine: bool = False) -> list[dict[str, Any]]:
        columns = ["run_id", "command", "host", "machine", "pid", "pid_started", "shard"]
        columns += ["started_at", "heartbeat_at", "status"]
        where = " OR ".join(f"status = {sql_text(status)}" for status in _ACTIVE)
        rows = self._store.read("runs", columns, where).to_pylist()
        mine = next((n for n, row in enumerate(rows) if row["run_id"] == self.run_id), len(rows))
        return [
            row
            for n, row in enumerate(rows)
            if n != mine and (not before_mine or n < mine or row["status"] == "running")
        ]

    def _refuse_beside(self, alive: list[dict[str, Any]]) -> None:
        for row in alive:
            if not are_disjoint(self._shard, _parse_shard(row["shard"])):
                raise StoreError(
                    f"The store {self._store.uri} is being written by process {row['pid']} on {row['host']} "
                    f"since {row['started_at']:%Y-%m-%d %H:%M:%S} UTC; "
                    "wait for it, stop it, or give each driver its own --shard i/n."
                )


def are_disjoint(a: tuple[int, int] | None, b: tuple[int, int] | None) -> bool:
    """Whether two shards `(i, n)` can have no slide in common."""
    return a is not None and b is not None and a[1] == b[1] and a[0] != b[0]


def is_alive(row: dict[str, Any], now: datetime | None = None) -> bool:
    """Whether the driver of an unfinished `runs` row may still be at work.

    Of this machine the process table tells at once, and of this process its heartbeat threads; of another
    machine, or where the process table is hidden, the age of the heartbeat.
    """
    me = this_process()
    if row["machine"] == me.machine:
        started = process_started(row["pid"])
        if started is None or (started and started != row["pid_started"]):
            return False
        if row["pid"] == me.pid:
            return any(thread.name == _thread_name(row["run_id"]) for thread in threading.enumerate())
        if started:
            return True
    return (now or datetime.now(UTC)) - row["heartbeat_at"] < STALE_AFTER


def this_process() -> Process:
    """Identity of the running process."""
    pid = os.getpid()
    return Process(socket.gethostname(), _machine(), pid, process_started(pid) or "")


def process_started(pid: int) -> str | None:
    """Start time of a process of this machine: None where there is none, "" where it cannot be told."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # a name may hold anything
    except OSError:  # no such process, or the process table is hidden or not there
        return "" if _exists(pid) else None
    return None if fields[0] in "ZX" else fields[19]


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _thread_name(run_id: str) -> str:
    return f"heartbeat {run_id}"


def _machine() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id")
    namespace = Path("/proc/self/ns/pid")
    try:
        return f"{boot.read_text().strip()} {namespace.readlink()}"
    except OSError:
        return f"{socket.gethostname()} {platform.system()}"


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _shard_text(shard: tuple[int, int] | None) -> str | None:
    return None if shard is None else f"{shard[0]}/{shard[1]}"


def _parse_shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    part, whole = text.split("/")
    return int(part), int(whole)
