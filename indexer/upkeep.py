"""Keeping a store small and fast: few files per table, whole indexes, no old versions, no rests of killed writes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from time import perf_counter
from typing import Any

from encoder.errors import StoreError, UsageError
from encoder.progress import Reporter
from indexer.run_lock import RunLock, this_process
from indexer.store import Store, open_store
from indexer.tables import is_local

KEEP_DAYS = 7.0

# Written without holding the store: an annotation or a map at any time, `runs` by this run's own heartbeat. A file
# that belongs to no version may be of a commit that is under way.
_ALWAYS_WRITTEN = ("annotations", "projections", "runs")
_SURELY_DEAD_AFTER = timedelta(days=1)
_TRIES = 3
_SPARE_BYTES = 64 << 20  # manifests, transactions, and what other programs write meanwhile


@dataclass(frozen=True)
class TableSize:
    """What a table takes.

    Attributes:
        fragments: files that the rows of its latest version lie in.
        versions: kept.
        bytes: of all its files; None for an object store.
    """

    fragments: int
    versions: int
    bytes: int | None


@dataclass(frozen=True)
class TableUpkeep:
    """What was done to a table.

    Attributes:
        before: None where the table could not be read.
        after: the same.
        rows_indexed: rows that its vector index did not know before.
        problem: why it was not done, or not to the end; None where it was.
    """

    table: str
    before: TableSize | None
    after: TableSize | None
    rows_indexed: int
    seconds: float
    problem: str | None = None

    @property
    def changed(self) -> bool:
        """Whether anything is different now."""
        return self.before != self.after or self.rows_indexed > 0


@dataclass(frozen=True)
class UpkeepReport:
    """What a run of `maintain` did.

    Attributes:
        orphans: whether files of killed writes could be looked for; young ones only go where none can be in use.
    """

    run_id: str
    keep_days: float
    orphans: bool
    tables: tuple[TableUpkeep, ...]
    seconds: float

    @property
    def failed(self) -> tuple[str, ...]:
        """Tables that were not done, or not to the end."""
        return tuple(table.table for table in self.tables if table.problem is not None)

    @property
    def changed(self) -> bool:
        """Whether any table but `runs` is different, into which every run writes."""
        return any(table.changed for table in self.tables if table.table != "runs")

    @property
    def saved_bytes(self) -> int | None:
        """Bytes freed, negative where the old files are still kept; None for an object store."""
        saved = 0
        for table in self.tables:
            if table.before is not None and table.after is not None:
                if table.before.bytes is None or table.after.bytes is None:
                    return None
                saved += table.before.bytes - table.after.bytes
        return saved

    @property
    def exit_code(self) -> int:
        """0 where every table was done, else 1."""
        return 1 if self.failed else 0


def maintain(
    store_uri: str,
    keep_days: float = KEEP_DAYS,
    reporter: Reporter | None = None,
    on_commit: Callable[[str], None] | None = None,
) -> UpkeepReport:
    """Tidy every table of a store up; rows and their order stay as they are.

    It holds the store as an indexing run does. A table that fails is reported and the others go on. What
    ends it loses nothing: each step is one commit that is there or not, versions go before their files, and
    files of a commit that never came are removed by the next run.

    Args:
        store_uri: local directory or object-store URI.
        keep_days: age in days from which old versions go; 0 leaves only the latest, and a program that
            reads an older one at this moment has to open the store again.
        reporter: told about progress.
        on_commit: called with a commit's name after each commit.

    Raises:
        UsageError: `keep_days` is negative.
        StoreError: there is no store, or a run is at work on it.
    """
    if not 0 <= keep_days < timedelta.max.days:
        raise UsageError(f"Versions cannot be kept for {keep_days} days.", "Give 0 or more.")
    store = open_store(store_uri, on_commit=on_commit)
    started = perf_counter()
    with RunLock(store, "maintain", {"keep_days": keep_days}, "cpu", None) as run:
        orphans = _all_others_are_dead(store)
        names = store.tables()
        if reporter is not None:
            reporter.start("maintain", len(names), "tables")
        done = []
        for name in names:
            run.check()
            done.append(_maintain_table(store, name, timedelta(days=keep_days), orphans))
            if reporter is not None:
                reporter.advance(1, name)
        if reporter is not None:
            reporter.finish()
        report = UpkeepReport(run.run_id, keep_days, orphans, tuple(done), perf_counter() - started)
        run.finish("finished", _counts(report), {"seconds": report.seconds})
    return report


def _maintain_table(store: Store, name: str, keep: timedelta, orphans: bool) -> TableUpkeep:
    started = perf_counter()
    before = after = None
    tail, problem = 0, None
    try:
        if not store.lance.has(name):  # a creation that was killed leaves a folder
            return TableUpkeep(name, None, None, 0, perf_counter() - started)
        before = after = _size(store, name)
        tail = _unindexed(store, name)
        delete_unverified = orphans and name not in _ALWAYS_WRITTEN
        store.lance.prune(name, keep, delete_unverified)  # first, since it may make the space for the rest
        _check_space(store, name)
        _optimize(store, name)
        # Again: the version from before may be old itself.
        store.lance.prune(name, keep, delete_unverified)
    except StoreError as error:
        problem = str(error)
    done = TableUpkeep(name, before, after, 0, 0.0, problem)
    if before is not None:
        try:
            done = replace(done, after=_size(store, name), rows_indexed=max(0, tail - _unindexed(store, name)))
        except StoreError as error:
            done = replace(done, problem=problem or str(error))
    return replace(done, seconds=perf_counter() - started)


def _optimize(store: Store, name: str) -> None:
    """Optimise a table, once more where a commit of another program came in between."""
    for tries_left in reversed(range(_TRIES)):
        try:
            store.lance.optimize(name)
            return
        except StoreError as error:
            if not tries_left or "conflict" not in str(error).lower():
                raise


def _check_space(store: Store, name: str) -> None:
    if not is_local(store.uri):
        return
    needed = store.lance.optimize_bytes(name)
    free = shutil.disk_usage(store.uri).free
    if needed and needed + _SPARE_BYTES > free:
        raise StoreError(
            f"Joining the files of {name} may take {(needed + _SPARE_BYTES) / 1e9:.2f} GB "
            f"beside it, and {free / 1e9:.2f} GB are free.",
            fix="Free some space, or keep old versions for fewer days with --keep-days.",
        )


def _all_others_are_dead(store: Store) -> bool:
    """Whether no other run can be in the middle of a write.

    This machine's process table is certain. A run of another machine only fell silent: it may have been
    suspended with a file half written, and is given a day.
    """
    here, now = this_process().machine, datetime.now(UTC)
    rows: list[dict[str, Any]] = store.read("runs", ["machine", "heartbeat_at"], "status = 'died'").to_pylist()
    return all(row["machine"] == here or now - row["heartbeat_at"] > _SURELY_DEAD_AFTER for row in rows)


def _size(store: Store, name: str) -> TableSize:
    lance = store.lance
    return TableSize(lance.fragments_count(name), lance.versions_count(name), lance.bytes_on_disk(name))


def _unindexed(store: Store, name: str) -> int:
    tails = [index.num_unindexed_rows for index in store.lance.indices(name) if index.columns == ["vector"]]
    return int(tails[0] or 0) if tails else 0


def _counts(report: UpkeepReport) -> dict[str, Any]:
    return {
        "tables": len(report.tables),
        "failed": list(report.failed),
        "rows_indexed": sum(table.rows_indexed for table in report.tables),
        "saved_bytes": report.saved_bytes,
    }
