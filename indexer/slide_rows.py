"""Rows of one slide on their way to the store: in memory, or on disk where they are many."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from encoder.errors import StoreError
from indexer import schema
from indexer.embedding import EmbeddedBatch, Vectors
from indexer.slide_job import FailedSlide, SlideJob, TileFailure, failed_job

FLUSH_ROWS = 64 * 1024
FLUSH_BYTES = 256 << 20
MAX_BAD_SHARE = 0.01


class RowPile:
    """Record batches of one table, kept in memory until `spool` moves them to an unnamed file.

    Args:
        rows_schema: schema of the table.
    """

    def __init__(self, rows_schema: pa.Schema) -> None:
        self.schema = rows_schema
        self.rows = 0
        self.memory_bytes = 0
        self._batches: list[pa.RecordBatch] = []
        self._file: IO[bytes] | None = None
        self._writer: Any = None

    def add(self, batch: pa.RecordBatch) -> None:
        """Put a batch on the pile."""
        self.rows += len(batch)
        if self._writer is not None:
            with _spooling():
                self._writer.write_batch(batch)
            return
        self._batches.append(batch)
        self.memory_bytes += batch.nbytes

    def spool(self) -> None:
        """Move what is there, and all that follows, to disk; the file vanishes with the process."""
        if self._writer is None:
            with _spooling():
                self._file = tempfile.TemporaryFile(prefix="histoseek-")  # noqa: SIM115 - closed in `close`
                self._writer = pa.ipc.new_stream(self._file, self.schema)
                for batch in self._batches:
                    self._writer.write_batch(batch)
            self._batches, self.memory_bytes = [], 0

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The batches in the order in which they came; nothing can be added any more."""
        if self._file is None:
            yield from self._batches
            return
        with _spooling():
            self._writer.close()
            self._file.seek(0)
        yield from pa.ipc.open_stream(self._file)

    def close(self) -> None:
        """Let go of the memory and the file."""
        self._batches = []
        if self._file is not None:
            self._file.close()


@contextmanager
def _spooling() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"Rows of a large slide could not be put aside in {tempfile.gettempdir()}: {error.strerror or error}.",
            fix="Make room there, or set TMPDIR to a folder with more space.",
        ) from error


@dataclass(frozen=True)
class FinishedSlide:
    """A slide on a grid with all its rows, ready to be committed.

    Attributes:
        tiles: rows of the tiles table; None where it has them.
        vectors: rows by name of vectors table.
        done: rows of `done`.
        bad_tiles: failed tiles with the encoder id that they failed under (None: reading).
        failed: encoders for which the slide failed.
    """

    job: SlideJob
    tiles: RowPile | None
    vectors: dict[str, RowPile]
    done: list[dict[str, Any]]
    bad_tiles: list[tuple[str | None, TileFailure]]
    failed: list[FailedSlide]

    @property
    def piles(self) -> list[RowPile]:
        """All row piles."""
        return [*self.vectors.values(), *([self.tiles] if self.tiles is not None else [])]

    @property
    def replaced(self) -> list[str]:
        """Vectors tables that lose their rows of this slide: those written again, and those out of date."""
        return [name for name in self.job.former if name in self.vectors or name in self.job.stale]

    @property
    def rows(self) -> int:
        """Most rows that any table gains."""
        return max((pile.rows for pile in self.piles), default=0)

    @property
    def memory_bytes(self) -> int:
        """Bytes of the rows that are in memory, the slide's overview among them."""
        overview = len(self.job.info["thumbnail"]) if self.job.info is not None else 0
        return overview + sum(pile.memory_bytes for pile in self.piles)

    def close(self) -> None:
        """Let go of all rows."""
        for pile in self.piles:
            pile.close()


class SlideRows:
    """Collects the embedded batches of one job.

    Args:
        job: the slide on its grid.
    """

    def __init__(self, job: SlideJob) -> None:
        self._job = job
        self._tiles = RowPile(schema.TILES) if job.writes_tiles else None
        self._vectors = [RowPile(target_schema(job, n)) for n in range(len(job.targets))]
        self._read_failures: list[TileFailure] = []
        self._embed_failures: list[list[TileFailure]] = [[] for _ in job.targets]
        self._taken = 0

    def add(self, batch: EmbeddedBatch) -> None:
        """Take the rows of a batch; sets the job's `abandoned` once too many tiles were bad."""
        self._read_failures += batch.failures
        if self._is_too_bad(len(self._read_failures)):
            self._job.abandoned.set()
        if self._job.abandoned.is_set():
            return
        self._taken += batch.planned
        if self._tiles is not None:
            self._tiles.add(self._tile_rows(batch))
        for n, vectors in enumerate(batch.vectors):
            self._embed_failures[n] += vectors.failures
            if len(vectors.kept):
                self._vectors[n].add(self._vector_rows(n, batch.positions, vectors))
        piles = [*self._vectors, *([self._tiles] if self._tiles is not None else [])]
        if self._taken > FLUSH_ROWS or sum(pile.memory_bytes for pile in piles) > FLUSH_BYTES:
            for pile in piles:
                pile.spool()

    def finish(self, run_id: str) -> FinishedSlide | FailedSlide:
        """What the job has come to: rows to be committed, or a slide for the quarantine."""
        job = self._job
        if self._is_too_bad(len(self._read_failures)):
            self.close()
            return failed_job(job, None, "read", self._read_failures[0].exception, self._too_bad(self._read_failures))
        failed, done, piles = [], [], {}
        bad: list[tuple[str | None, TileFailure]] = [(None, failure) for failure in self._read_failures]
        for target, pile, failures in zip(job.targets, self._vectors, self._embed_failures, strict=True):
            count = len(self._read_failures) + len(failures)
            if self._is_too_bad(count):
                message = self._too_bad([*self._read_failures, *failures])
                failed.append(failed_job(job, target.encoder_id, "embed", failures[0].exception, message))
                pile.close()
                continue
            piles[target.table_name] = pile
            bad += [(target.encoder_id, failure) for failure in failures]
            done.append(self._done_row(target.table_name, pile.rows, count, run_id))
        tiles = self._tiles
        if tiles is not None and not done:  # nothing of it is stored
            tiles.close()
            tiles = None
        return FinishedSlide(job, tiles, piles, done, bad if done else [], failed)

    def close(self) -> None:
        """Let go of all rows."""
        for pile in [*self._vectors, *([self._tiles] if self._tiles is not None else [])]:
            pile.close()

    def _is_too_bad(self, bad: int) -> bool:
        return bad > 0 and bad >= MAX_BAD_SHARE * len(self._job.tiles)

    def _too_bad(self, failures: list[TileFailure]) -> str:
        count = "at least " if self._job.abandoned.is_set() else ""
        return (
            f"{self._job.slide.entry.path}: {count}{len(failures)} of {len(self._job.tiles)} tiles are bad, "
            f"the first because: {failures[0].message}"
        )

    def _tile_rows(self, batch: EmbeddedBatch) -> pa.RecordBatch:
        """Rows of all tiles of a batch: one that could not be read is a tile too, without pictures."""
        tiles = self._job.tiles
        unread = [failure.position for failure in batch.failures]
        at = np.concatenate([batch.positions, np.asarray(unread, np.int64)])
        blank = [None] * len(unread)
        columns = [
            *self._place(at),
            pa.array(np.full(len(at), tiles.extent_px0, np.int32)),
            pa.array(tiles.tissue[at]),
            pa.array([*(batch.thumbs or []), *blank], pa.binary()),
            pa.nulls(len(at), pa.binary()) if batch.images is None else pa.array([*batch.images, *blank], pa.binary()),
        ]
        return pa.record_batch(columns, schema=schema.TILES)

    def _vector_rows(self, n: int, positions: NDArray[np.int64], vectors: Vectors) -> pa.RecordBatch:
        at = positions[vectors.kept]
        table = self._vectors[n].schema
        flat = pa.array(vectors.unit.ravel())
        columns = [
            *self._place(at),
            pa.array(self._job.tiles.tissue[at]),
            pa.array(vectors.norms),
            pa.FixedSizeListArray.from_arrays(flat, type=table.field("vector").type),
        ]
        return pa.record_batch(columns, schema=table)

    def _place(self, at: NDArray[np.int64]) -> list[pa.Array]:
        tiles = self._job.tiles
        numbers = np.full(len(at), self._job.slide.slide_no, np.int32)
        return [pa.array(values) for values in (tiles.ids[at], numbers, tiles.x0[at], tiles.y0[at])]

    def _done_row(self, table_name: str, rows: int, bad: int, run_id: str) -> dict[str, Any]:
        job, made = self._job, self._job.provenance
        return {
            "table_name": table_name,
            "slide_no": job.slide.slide_no,
            "slide_id": job.slide.slide_id,
            "fingerprint": made.fingerprint,
            "settings_hash": made.settings_hash,
            "rows": rows,
            "tiles": len(job.tiles),
            "bad_tiles": bad,
            "images": job.keep_images,
            "mpp": made.mpp,
            "mpp_source": made.mpp_source,
            "true_mpp": made.true_mpp,
            "upsampling": made.upsampling,
            "reasons": made.reasons,
            "reader": job.reader_path,
            "run_id": run_id,
        }


def target_schema(job: SlideJob, n: int) -> pa.Schema:
    """Schema of the vectors table of a job's n-th target."""
    target = job.targets[n]
    return schema.vectors_schema(target.encoder.spec.dim, target.ratio)
