"""The commits of an indexing run, in the order that a crash between any two of them leaves work to redo only."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from encoder.checkpoint import checkpoint_files
from indexer import schema
from indexer.index_request import Target
from indexer.run_lock import RunLock
from indexer.slide_job import FailedSlide
from indexer.slide_rows import FinishedSlide, RowPile
from indexer.store import Store
from indexer.tables import sql_in, sql_text
from indexer.work import Scope, WorkBook, scope_of

# The points between the commits of one flush, in their order; each may be absent where it has nothing to do.
FLUSH_POINTS = (
    "retracted",
    "slides",
    "encoder-files",
    "encoder",
    "grid",
    "cleared",
    "tiles",
    "vectors",
    "quarantine",
    "done",
    "resolved",
)


class Committer:
    """Writes finished and failed slides.

    Rows of a slide that was indexed before are replaced in the open: its `done` rows go first, then its
    rows, then the new rows come, then its new `done` rows. A slide without a `done` row is unfinished to
    every reader and to the next run, so a crash in between leaves work, and memory does not grow with the
    table as it would in a merge.

    Args:
        store: opened for writing.
        run: this run; what it no longer holds is not written.
        book: open failures, for their tries and resolution.
    """

    def __init__(self, store: Store, run: RunLock, book: WorkBook) -> None:
        self._store = store
        self._run = run
        self._run_id = run.run_id
        self._book = book
        self._prepared: set[str] = set()

    def commit(
        self,
        finished: Sequence[FinishedSlide],
        failed: Sequence[FailedSlide],
        overcome: Sequence[dict[str, Any]] = (),
    ) -> None:
        """Commit whole slides and failures, and close the open failures that were `overcome`.

        Raises:
            StoreError: another driver has taken the store over, or a commit failed.
        """
        self._run.check()
        stored = [slide for slide in finished if slide.done]
        self._retract(stored)
        self._commit_info([slide.job.info for slide in finished if slide.job.info is not None])
        for slide in stored:
            for target in slide.job.targets:
                if target.table_name in slide.vectors:
                    self._prepare(target)
        self._clear(stored)
        self._commit_tiles(stored)
        self._commit_vectors(stored)
        now = datetime.now(UTC)
        self._commit_failures(finished, failed, now)
        rows = [row | {"at": now} for slide in stored for row in slide.done]
        if rows:
            self._run.check()
            keys = ["table_name", "slide_no"]
            self._store.lance.upsert("done", "done", keys, pa.Table.from_pylist(rows, schema=schema.DONE))
        resolve(self._store, [*self._resolved(stored), *overcome], self._run_id)

    def _commit_info(self, rows: list[dict[str, Any]]) -> None:
        latest = {row["slide_id"]: row for row in rows}  # one slide may have been opened for two grids
        if latest:
            first = next(iter(latest.values()))
            fields = [schema.SLIDES.field(name) for name in first]
            table = pa.Table.from_pylist(list(latest.values()), schema=pa.schema(fields))
            self._store.lance.update_columns("slides", "slides", "slide_id", table)

    def _prepare(self, target: Target) -> None:
        """Copy the encoder, describe the grid and make the tables, each once in a store's life."""
        if target.table_name in self._prepared:
            return
        store, encoder_id, grid = self._store, target.encoder_id, target.grid
        now = datetime.now(UTC)
        if not store.count("encoders", f"encoder_id = {sql_text(encoder_id)}"):
            files = checkpoint_files(target.encoder)
            rows = [{"encoder_id": encoder_id, "file": name, "content": content} for name, content in files.items()]
            table = pa.Table.from_pylist(rows, schema=schema.ENCODER_FILES)
            store.lance.upsert("encoder-files", "encoder_files", ["encoder_id", "file"], table)
            spec = target.encoder.spec
            row = {
                "encoder_id": encoder_id,
                "name": spec.name,
                "method": spec.method,
                "dim": spec.dim,
                "spec": json.dumps(asdict(spec), sort_keys=True),
                "created_at": now,
            }
            encoder_row = pa.Table.from_pylist([row], schema=schema.ENCODERS)
            store.lance.upsert("encoder", "encoders", ["encoder_id"], encoder_row)
        if not store.count("grids", f"grid_id = {sql_text(grid.grid_id)}"):
            row = {
                "grid_id": grid.grid_id,
                "mpp": grid.mpp,
                "tile_px": grid.tile_px,
                "stride_px": grid.stride_px,
                "settings": grid.to_json(),
                "resampler": grid.resampler,
                "settings_hash": grid.settings_hash,
                "created_at": now,
            }
            store.lance.upsert("grid", "grids", ["grid_id"], pa.Table.from_pylist([row], schema=schema.GRIDS))
        store.lance.create(schema.tiles_table_name(grid.grid_id), schema.TILES)
        store.lance.create(target.table_name, schema.vectors_schema(target.encoder.spec.dim, target.ratio))
        self._prepared.add(target.table_name)

    def _retract(self, stored: Sequence[FinishedSlide]) -> None:
        """Take back that the slides whose rows are to be replaced are done."""
        terms = [
            f"(table_name = {sql_text(name)} AND {sql_in('slide_no', sorted(numbers))})"
            for name, numbers in _slides_by_table(stored).items()
        ]
        if terms:
            self._store.lance.delete("retracted", "done", " OR ".join(terms))

    def _clear(self, stored: Sequence[FinishedSlide]) -> None:
        """Delete the rows that are to be replaced, and those that describe tiles that are no more."""
        by_table = _slides_by_table(stored)
        for slide in stored:
            if slide.tiles is not None and slide.job.former:
                name = schema.tiles_table_name(slide.job.grid.grid_id)
                by_table.setdefault(name, set()).add(slide.job.slide.slide_no)
        for name, numbers in by_table.items():
            self._store.lance.delete("cleared", name, sql_in("slide_no", sorted(numbers)))

    def _commit_tiles(self, stored: Sequence[FinishedSlide]) -> None:
        by_table: dict[str, list[FinishedSlide]] = {}
        for slide in stored:
            if slide.tiles is not None:
                by_table.setdefault(schema.tiles_table_name(slide.job.grid.grid_id), []).append(slide)
        for name, slides in by_table.items():
            self._append("tiles", name, [slide.tiles for slide in slides if slide.tiles is not None])

    def _commit_vectors(self, stored: Sequence[FinishedSlide]) -> None:
        by_table: dict[str, list[FinishedSlide]] = {}
        for slide in stored:
            for name in slide.vectors:
                by_table.setdefault(name, []).append(slide)
        for name, slides in by_table.items():
            self._append("vectors", name, [slide.vectors[name] for slide in slides])

    def _append(self, point: str, name: str, piles: Sequence[RowPile]) -> None:
        if any(pile.rows for pile in piles):
            self._run.check()
            batches = (batch for pile in piles for batch in pile.batches())
            self._store.lance.append(point, name, pa.RecordBatchReader.from_batches(piles[0].schema, batches))

    def _commit_failures(self, finished: Sequence[FinishedSlide], failed: Sequence[FailedSlide], now: datetime) -> None:
        slides = [*failed, *(failure for slide in finished for failure in slide.failed)]
        rows = [self._slide_failure(failure, now) for failure in slides]
        rows += [row for slide in finished for row in self._tile_failures(slide, now)]
        if rows:
            table = pa.Table.from_pylist(rows, schema=schema.QUARANTINE)
            self._store.lance.upsert("quarantine", "quarantine", ["failure_id"], table)

    def _slide_failure(self, failure: FailedSlide, now: datetime) -> dict[str, Any]:
        row = self._failure_row(failure.slide.slide_id, failure.scope, None, now)
        return row | {
            "path": failure.slide.entry.path.as_posix(),
            "phase": failure.phase,
            "exception": failure.exception,
            "message": failure.message,
            "fingerprint": failure.fingerprint,
            "settings_hash": failure.settings_hash,
        }

    def _tile_failures(self, slide: FinishedSlide, now: datetime) -> Iterator[dict[str, Any]]:
        job = slide.job
        for encoder_id, failure in slide.bad_tiles:
            scope = Scope(job.slide.slide_id, job.grid.grid_id, encoder_id)
            row = self._failure_row(job.slide.slide_id, scope, job.key(failure.position), now)
            yield row | {
                "path": job.slide.entry.path.as_posix(),
                "phase": failure.phase,
                "exception": failure.exception,
                "message": failure.message,
                "fingerprint": job.provenance.fingerprint,
                "settings_hash": job.attempt_hash,
            }

    def _failure_row(self, slide_id: str, scope: Scope, tile_key: str | None, now: datetime) -> dict[str, Any]:
        """A row for a failure: the open one of the same scope, tried once more, or a new one."""
        known = (row for row in self._book.open_failures(slide_id) if row["tile_key"] == tile_key)
        before = next((row for row in known if scope_of(row) == scope), None)
        return {
            "failure_id": before["failure_id"] if before else uuid.uuid4().hex,
            "slide_id": slide_id,
            "grid_id": scope.grid_id,
            "encoder_id": scope.encoder_id,
            "tile_key": tile_key,
            "tries": before["tries"] + 1 if before else 1,
            "run_id": self._run_id,
            "at": now,
            "resolved_by": None,
        }

    def _resolved(self, stored: Sequence[FinishedSlide]) -> list[dict[str, Any]]:
        """Open failures that finished slides have left behind them."""
        rows = []
        for slide in stored:
            grid_id = slide.job.grid.grid_id
            encoder_ids = {t.encoder_id for t in slide.job.targets if t.table_name in slide.vectors}
            still = {(encoder_id, slide.job.key(bad.position)) for encoder_id, bad in slide.bad_tiles}
            for row in self._book.open_failures(slide.job.slide.slide_id):
                is_over = row["grid_id"] in (None, grid_id) and (
                    row["encoder_id"] is None or row["encoder_id"] in encoder_ids
                )
                # A slide that was not read again says nothing new about tiles that could not be read.
                about_reading = row["tile_key"] is not None and row["encoder_id"] is None
                if about_reading and not slide.job.writes_tiles:
                    continue
                if is_over and (row["encoder_id"], row["tile_key"]) not in still:
                    rows.append(row)
        return rows


def _slides_by_table(stored: Sequence[FinishedSlide]) -> dict[str, set[int]]:
    """Numbers of the slides whose rows each vectors table loses."""
    by_table: dict[str, set[int]] = {}
    for slide in stored:
        for name in slide.replaced:
            by_table.setdefault(name, set()).add(slide.job.slide.slide_no)
    return by_table


def resolve(store: Store, rows: Iterable[dict[str, Any]], run_id: str) -> None:
    """Mark open failures as resolved by a run, in one commit; none where there is no row."""
    ids = sorted({row["failure_id"] for row in rows})
    if ids:
        fields = [schema.QUARANTINE.field(name) for name in ("failure_id", "resolved_by")]
        table = pa.Table.from_pydict({"failure_id": ids, "resolved_by": [run_id] * len(ids)}, schema=pa.schema(fields))
        store.lance.update_columns("resolved", "quarantine", "failure_id", table)
