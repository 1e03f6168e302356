"""A store that can be asked: open it, search it, read its vectors, classify, run SQL."""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from encoder.errors import QueryError
from indexer.grid import Grid
from indexer.store import Store, open_store
from query.choice import VectorTable, choose
from query.engines import Engine, ResidentExact
from query.filters import RowFilter, check_exclude, excluded_slides
from query.guard import Limits, nearest_name
from query.plan import Plan, Stopwatch, shortage_note, unknown_notes
from query.queries import ImageQuery, Query, as_query
from query.resolve import Probe, mean_direction, picture_tiles, resolve
from query.results import Results, TilePlace, hit_table
from query.rows import TileRows, finished_rows, load_rows
from query.sql import run_sql
from query.status import cohort_status, searchable_status

if TYPE_CHECKING:
    from encoder.embed import TileEncoder
    from query.classify import ClassificationResult


_SMALL_TABLES = ("slides", "done", "quarantine", "encoders", "grids")


@dataclass(frozen=True)
class Vectors:
    """Vectors with what is known of their tiles.

    Attributes:
        matrix: unit vectors, float32 [N, dim], read-only.
        table: the asked columns, row-aligned.
    """

    matrix: NDArray[np.float32]
    table: pa.Table


@dataclass(frozen=True)
class _Resident:
    """One vectors table in memory, with the versions that it was read from."""

    version: int
    seen: tuple[int, ...]
    finished: dict[int, int]
    rows: TileRows
    filter: RowFilter
    engine: Engine


class Cohort:
    """The slides of a store and the vectors of their tiles. Rows of unfinished slides are not seen.

    Vectors are read at the first search and kept until their table changes; later changes of the store
    are seen by the next call. Safe to use from several threads.

    Args:
        store: an open store.
        memory_budget: most bytes of vectors to hold; None for half of what is free.
        device: where pictures are embedded; None chooses.
    """

    def __init__(self, store: Store, memory_budget: int | None = None, device: str | None = None) -> None:
        self.store = store
        self._memory_budget, self._device = memory_budget, device
        self._lock = threading.RLock()
        self._store_identity: tuple[str, ...] = ()
        self._seen: tuple[int, ...] = ()
        self._slides = pa.table({})
        self._tables: tuple[VectorTable, ...] = ()
        self._grids: dict[str, Grid] = {}
        self._resident: dict[VectorTable, _Resident] = {}
        self._encoders: dict[str, TileEncoder] = {}
        self._refresh()

    @property
    def slides(self) -> pa.Table:
        """Slides sorted by id: the store's columns, the manifest's, and the derived `status`."""
        self._refresh()
        return self._slides

    @property
    def encoders(self) -> pa.Table:
        """Encoders of the store."""
        return self.store.encoders()

    @property
    def grids(self) -> pa.Table:
        """Grids of the store."""
        return self.store.grids()

    @property
    def vector_tables(self) -> tuple[VectorTable, ...]:
        """Which encoder has vectors on which grid."""
        self._refresh()
        return self._tables

    def searchable_slides(self, encoder: str | None = None, grid: str | None = None) -> list[str]:
        """Ids of the slides that a search would look at, sorted; see `search` for the arguments and errors."""
        table = self.choose(encoder, grid)
        finished, _ = finished_rows(self.store, self.store.vectors_table_name(table.encoder_id, table.grid_id))
        numbers, ids = (self.slides[name].to_pylist() for name in ("slide_no", "slide_id"))
        return [slide_id for number, slide_id in zip(numbers, ids, strict=True) if number in finished]

    def choose(self, encoder: str | None = None, grid: str | None = None) -> VectorTable:
        """The vectors that a search would use; see `search` for the arguments and errors."""
        return choose(self.vector_tables, encoder, grid)

    def search(
        self,
        query: Any,
        k: int = 20,
        where: str | None = None,
        exclude: Collection[str] = (),
        per_slide: int | None = None,
        encoder: str | None = None,
        grid: str | None = None,
    ) -> Results:
        """Find the k tiles most like the query, exactly; never fewer where k match.

        Args:
            query: a query or what `as_query` takes.
            k: tiles wanted.
            where: expression over slide and tile columns; NULL does not match.
            exclude: of `slide`, `patient`, `site`: those of the query are left out.
            per_slide: most hits of one slide.
            encoder: id or name; needed where the store has several.
            grid: id; needed where the store has several.

        Raises:
            QueryError: the query cannot be answered as asked.
        """
        if not _is_count(k) or (per_slide is not None and not _is_count(per_slide)):
            raise QueryError(
                "k and per_slide are whole numbers of at least 1.", f"Got k={k!r}, per_slide={per_slide!r}."
            )
        clock = Stopwatch()
        asked, exclude = as_query(query), check_exclude(exclude)
        table = self.choose(encoder, grid)
        resident, slides = self._load(table)
        clock.lap("load")
        probe = self._probe(asked, table, resident.rows, slides)
        clock.lap("query")
        banned = excluded_slides(exclude, probe.slide_code, slides)
        allowed = None if where is None else resident.filter.mask(where)
        if banned.any():
            kept = ~banned[resident.rows.slide_code]
            allowed = kept if allowed is None else allowed & kept
        clock.lap("filter")
        hits = resident.engine.top(probe.vector, int(k), allowed, per_slide, probe.row)
        clock.lap("scan")
        found = hit_table(hits, resident.rows, slides)
        clock.lap("rows")
        matching = len(resident.rows) if allowed is None else int(np.count_nonzero(allowed))
        notes = [*probe.notes, *unknown_notes(exclude, probe.slide_code, slides)]
        if resident.rows.disagreeing:
            notes.append(f"{len(resident.rows.disagreeing)} slides are being indexed again and were left out.")
        if len(found) < k:
            notes.append(shortage_note(len(found), int(k), matching, len(resident.rows), per_slide))
        plan = Plan(
            resident.engine.name, table.encoder_id, table.grid_id, probe.words, len(resident.rows), matching,
            hits.scanned, int(np.count_nonzero(banned)), where, tuple(notes), clock.seconds,
        )  # fmt: skip
        place, query_tile = None, None
        if probe.row is not None:
            row, rows = probe.row, resident.rows
            query_tile = int(rows.tile_id[row])
            slide_id = slides["slide_id"][int(rows.slide_code[row])].as_py()
            place = TilePlace(slide_id, int(rows.x0[row]), int(rows.y0[row]), int(rows.extent_px0[row]))
        return Results(found, resident.rows.tile_id[hits.rows], plan, self.store, place, query_tile, probe.picture)

    def vectors(
        self,
        where: str | None = None,
        columns: Sequence[str] = ("slide_id", "x0", "y0", "extent_px0", "tissue"),
        encoder: str | None = None,
        grid: str | None = None,
    ) -> Vectors:
        """Vectors of the tiles that match, with columns of tiles and slides.

        Without `where` the matrix is a view of the one that searches use: nothing is copied.

        Raises:
            QueryError: the filter, a column, or the choice of vectors is wrong.
        """
        resident, slides = self._load(self.choose(encoder, grid))
        rows = resident.rows
        picked = None if where is None else np.flatnonzero(resident.filter.mask(where))
        tiles, codes = (
            (rows.tiles, rows.slide_code) if picked is None else (rows.tiles.take(picked), rows.slide_code[picked])
        )
        data = {}
        for name in columns:
            if name in tiles.column_names:
                data[name] = tiles[name]
            elif name in slides.column_names:
                data[name] = slides[name].take(pa.array(codes))
            else:
                known = [*tiles.column_names, *slides.column_names]
                raise QueryError(f"There is no column {name!r}.", nearest_name(name, known))
        matrix = rows.matrix if picked is None else rows.matrix[picked]
        matrix = matrix.view()
        matrix.flags.writeable = False
        return Vectors(matrix, pa.table(data))

    def sql(self, text: str, limits: Limits | None = None) -> pa.Table:
        """Run one SELECT over `slides`, `tiles`, `tiles_<grid>`, `annotations`, `runs`, `quarantine`.

        `tiles` are those of the only grid, or of the newest where there are several.

        Raises:
            QueryError: it is no single SELECT, fails, or passes its limits.
        """
        return run_sql(self.store, self.slides, text, limits or Limits())

    def classify(
        self,
        label: str,
        k: int = 20,
        leave_out: str = "slide",
        where: str | None = None,
        max_queries: int | None = 20_000,
        encoder: str | None = None,
        grid: str | None = None,
    ) -> ClassificationResult:
        """Let every tile's nearest neighbours of other slides, patients or sites vote for its class.

        Args:
            label: a column of the slides, or the name of an annotation of tiles.
            k: neighbours that vote.
            leave_out: `slide`, `patient` or `site`: neighbours of the tile's own do not vote.
            where: tiles that take part.
            max_queries: tiles classified, evenly spread over slides; None for all.

        Raises:
            QueryError: the label is unknown or has fewer than two classes.
        """
        from query.classify import classify_cohort  # PyTorch: not needed to open or search

        return classify_cohort(self, label, k, leave_out, where, max_queries, self.choose(encoder, grid))

    def status(self) -> dict[str, Any]:
        """Counts of slides per status, rows per table, vectors, open failures and the last run."""
        return cohort_status(self.store, self.slides, self.vector_tables)

    def embed_image(
        self, image: Any, mpp: float | None = None, encoder: str | None = None, grid: str | None = None
    ) -> NDArray[np.float32]:
        """Vector of a picture as a search would use it, unit length [dim].

        Raises:
            QueryError: it is no picture.
        """
        query = as_query(image, mpp)
        if not isinstance(query, ImageQuery):
            raise QueryError("embed_image takes a picture.", "Give a file, a PIL picture or uint8 [H, W, 3].")
        table = self.choose(encoder, grid)
        found = self._grids[table.grid_id]
        tiles, _ = picture_tiles(query.pixels, query.mpp, found.mpp, found.tile_px)
        mean = mean_direction(self._encoder(table.encoder_id).embed(tiles))
        return (mean / np.linalg.norm(mean)).astype(np.float32)

    def _probe(self, query: Query, table: VectorTable, rows: TileRows, slides: pa.Table) -> Probe:
        grid = self._grids[table.grid_id]

        def embed(tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
            return self._encoder(table.encoder_id).embed(tiles)

        def read_tile(code: int, x0: int, y0: int) -> NDArray[np.uint8]:
            from query.slide_tile import read_centred_tile  # OpenSlide: only where a slide is read

            return read_centred_tile(slides.slice(code, 1).to_pylist()[0], x0, y0, grid)

        return resolve(query, rows, slides, grid.mpp, grid.tile_px, embed, read_tile)

    def _encoder(self, encoder_id: str) -> TileEncoder:
        with self._lock:
            if encoder_id not in self._encoders:
                from encoder.checkpoint import encoder_from_files  # PyTorch: only where pixels are embedded

                files = self.store.load_encoder_files(encoder_id)
                self._encoders[encoder_id] = encoder_from_files(files, self._device)
            return self._encoders[encoder_id]

    def _load(self, table: VectorTable) -> tuple[_Resident, pa.Table]:
        """The vectors of a table at its latest version, and the slides that belong to them."""
        with self._lock:
            self._refresh()
            name = self.store.vectors_table_name(table.encoder_id, table.grid_id)
            version = self.store.table_version(name)
            held = self._resident.get(table)
            if held is not None and (held.version, held.seen) == (version, self._seen):
                return held, self._slides
            finished, _ = finished_rows(self.store, name)
            if held is not None and (held.version, held.finished) == (version, finished):
                rows = held.rows.recoded(self._slides)  # other slides or columns, the same vectors
            else:
                held = None
                self._resident.pop(table, None)  # before reading: two versions may not fit
                rows = load_rows(self.store, table.encoder_id, table.grid_id, self._slides, self._memory_budget)
            engine = ResidentExact(rows.matrix, rows.slide_code, rows.y0, rows.x0)
            held = _Resident(
                version, self._seen, finished, rows, RowFilter(self._slides, rows.tiles, rows.slide_code), engine
            )
            self._resident[table] = held
            return held, self._slides

    def _refresh(self) -> None:
        """Read the small tables again where one of them changed; forget all where the store is another one."""
        with self._lock:
            identity = _identity(self.store)
            if identity != self._store_identity:
                # Deleted and made anew at its place, where versions may be the same by chance.
                if self._store_identity:
                    self.store = open_store(self.store.uri, read_only=self.store.lance.read_only)
                self._seen = ()
                self._resident.clear()
                self._encoders.clear()
                self._store_identity = identity
            seen = tuple(self.store.table_version(name) for name in _SMALL_TABLES)
            if seen == self._seen:
                return
            slides = self.store.slides().sort_by("slide_id")
            states = searchable_status(self.store, slides["slide_id"].to_pylist())
            self._slides = slides.append_column("status", pa.array(states, pa.string()))
            names = {row["encoder_id"]: row["name"] for row in self.encoders.to_pylist()}
            self._tables = tuple(
                VectorTable(encoder_id, names.get(encoder_id, encoder_id), grid_id)
                for encoder_id, grid_id, _ in self.store.vector_tables()
            )
            self._grids = {row["grid_id"]: Grid.from_json(row["settings"]) for row in self.grids.to_pylist()}
            self._seen = seen


def open_cohort(uri: str, memory_budget: int | None = None, device: str | None = None) -> Cohort:
    """Open a store for questions; vectors are read at the first search.

    Args:
        uri: local directory or object-store URI.
        memory_budget: most bytes of vectors to hold; None for half of what is free.
        device: where pictures are embedded; None chooses.

    Raises:
        StoreError: there is no store.
    """
    return Cohort(open_store(uri, read_only=True), memory_budget, device)


def _identity(store: Store) -> tuple[str, ...]:
    """What tells a store from another that was made at its place."""
    return tuple(str(at) for at in store.read("meta", ["created_at"])["created_at"].to_pylist())


def _is_count(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= 1)
