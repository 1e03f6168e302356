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
from query.cards import IndexCard, read_card
from query.choice import VectorTable, choose
from query.database import Limits
from query.memory import MemoryBudget
from query.plan import Stopwatch
from query.queries import ImageQuery, as_query
from query.resolve import Probe, Sources, mean_direction, picture_tiles, resolve
from query.results import Results, TilePlace
from query.room import Room
from query.rows import load_rows, promised_rows
from query.search import Answer, Request, answer
from query.sql import run_sql
from query.status import cohort_status, searchable_status
from query.vectors import Vectors, tile_vectors

if TYPE_CHECKING:
    from encoder.embed import TileEncoder
    from encoder.progress import Reporter
    from query.classify import ClassificationResult
    from query.projection.tile_map import TileMap


_SMALL_TABLES = ("slides", "done", "quarantine", "encoders", "grids")


@dataclass(frozen=True)
class _Kept:
    """The room of one vectors table, with the versions that it was read from."""

    stamp: tuple[int, int]
    seen: tuple[Any, ...]
    promised: dict[int, int]
    room: Room


class Cohort:
    """The slides of a store and the vectors of their tiles. Rows of unfinished slides are not seen.

    Vectors are read at the first search and kept until their table changes; what does not fit the memory
    budget stays on disk. Later changes of the store are seen by the next call. Safe to use from several
    threads.

    Args:
        store: an open store.
        memory_budget: most bytes of vectors and indexes to hold; None for half of what is free.
        device: where pictures are embedded and vectors compared; None for the GPU where there is one.
    """

    def __init__(self, store: Store, memory_budget: int | None = None, device: str | None = None) -> None:
        self.store = store
        self._budget, self._device = MemoryBudget(memory_budget), device
        self._lock = threading.RLock()
        self._store_identity: tuple[str, ...] = ()
        self._seen: tuple[Any, ...] = ()
        self._slides = pa.table({})
        self._tables: tuple[VectorTable, ...] = ()
        self._grids: dict[str, Grid] = {}
        self._kept: dict[VectorTable, _Kept] = {}
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

    def grid(self, grid_id: str) -> Grid:
        """Settings of a grid of the store; it must have it."""
        self._refresh()
        return self._grids[grid_id]

    def searchable_slides(self, encoder: str | None = None, grid: str | None = None) -> list[str]:
        """Ids of the slides that a search would look at, sorted; see `search` for the arguments and errors."""
        _, room = self._table_and_room(encoder, grid)
        return room.slides["slide_id"].take(pa.array(room.rows.slides_present)).to_pylist()

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
        *,
        per_patient: int | None = None,
        apart: float = 1.0,
        target_recall: float = 0.95,
        among: NDArray[np.int64] | None = None,
    ) -> Results:
        """Find the k tiles most like the query; never fewer where k match.

        Distances are exact whatever the engine; `Results.explain` says which one answered, and why.

        Args:
            query: a query or what `as_query` takes.
            k: tiles wanted.
            where: expression over slide and tile columns; NULL does not match.
            exclude: of `slide`, `patient`, `site`: those of the query are left out.
            per_slide: most hits of one slide.
            encoder: id or name; needed where the store has several.
            grid: id; needed where the store has several.
            per_patient: most hits of one patient; a slide whose patient is unknown has one of its own.
            apart: least distance of two hits of one slide, in sides of a tile: 1 keeps overlapping tiles from
                being two answers, 3 also neighbours, 0 keeps all.
            target_recall: share of the true answer that will do where an exact one would take long; 1 for
                exact answers always.
            among: ids of the only tiles that may be hits, in any order [m]; None for all. Those that cannot be
                searched are ignored, and counted in a note.

        Raises:
            QueryError: the query cannot be answered as asked.
            StoreError: the store cannot be read, or changed while it was.
        """
        request = Request(k, where, tuple(_names(exclude)), per_slide, per_patient, apart, target_recall, among)
        return self._search([query], request, encoder, grid)[0]

    def search_many(
        self,
        queries: Sequence[Any],
        k: int = 20,
        where: str | None = None,
        exclude: Collection[str] = (),
        per_slide: int | None = None,
        encoder: str | None = None,
        grid: str | None = None,
        *,
        per_patient: int | None = None,
        apart: float = 1.0,
        target_recall: float = 0.95,
        among: NDArray[np.int64] | None = None,
    ) -> list[Results]:
        """Answer several queries at once, in as few passes over the vectors as memory allows.

        Args:
            queries: each as in `search`.
            k: and all others as in `search`; they hold for every query.

        Raises:
            QueryError: one of them cannot be answered as asked.
        """
        request = Request(k, where, tuple(_names(exclude)), per_slide, per_patient, apart, target_recall, among)
        return self._search(list(queries), request, encoder, grid)

    def probe(self, query: Any, encoder: str | None = None, grid: str | None = None) -> tuple[Room, Probe]:
        """The vectors that a search would look at, and the query as it would compare it; see `search`."""
        table, room = self._table_and_room(encoder, grid)
        return room, resolve(as_query(query), self._sources(table, room))

    def card(self, encoder: str | None = None, grid: str | None = None) -> IndexCard | None:
        """The recall card of the store's index; None where `histoseek build` has made none. See `search`."""
        table = self.choose(encoder, grid)
        name = self.store.vectors_table_name(table.encoder_id, table.grid_id)
        return read_card(self.store, name, self.store.table_schema(name).field("vector").type.list_size)

    def warm(self, encoder: str | None = None, grid: str | None = None, index: bool = False) -> None:
        """Read the vectors into memory now rather than at the first search.

        Args:
            encoder, grid: as in `search`.
            index: also make the in-memory index, which slow searches would have made beside them.

        Raises:
            QueryError: they do not fit the memory budget, or no index can be made.
        """
        _, room = self._table_and_room(encoder, grid)
        room.matrix()
        if index and not room.shelf.warm("faiss", wait=True):
            reason = room.shelf.failures.get("faiss", "it was dropped")
            raise QueryError(f"The index in memory could not be made: {reason}")

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
        return tile_vectors(self._table_and_room(encoder, grid)[1], where, columns)

    def sql(self, text: str, limits: Limits | None = None) -> pa.Table:
        """Run one SELECT over `slides`, `tiles`, `tiles_<grid>`, `annotations`, `runs`, `quarantine`, `indexes`.

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

    def map(
        self,
        method: str = "pca",
        encoder: str | None = None,
        grid: str | None = None,
        store: bool = True,
        reporter: Reporter | None = None,
        *,
        refit: bool = False,
    ) -> TileMap:
        """Lay the tiles out in two dimensions; a map is fitted once, and tiles that come later are placed on it.

        Args:
            method: `pca` is the plane in which the vectors spread most; `umap` keeps neighbours together.
            encoder, grid: as in `search`.
            store: keep what was computed in the store, though the cohort itself never writes; where the store
                cannot be written, a note says so.
            reporter: told about progress.
            refit: fit the map anew, in the place of the stored one.

        Raises:
            QueryError: there is no such method, or too few tiles for it.
        """
        from query.projection.making import map_cohort  # what fits it is not needed to open or search

        return map_cohort(self, self.choose(encoder, grid), method, store, refit, reporter, self._device)

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

    def _search(self, queries: Sequence[Any], request: Request, encoder: str | None, grid: str | None) -> list[Results]:
        clock = Stopwatch()
        asked = [as_query(query) for query in queries]
        if not asked:
            self.choose(encoder, grid)
            return []
        table, room = self._table_and_room(encoder, grid)
        clock.lap("load")
        sources = self._sources(table, room)
        probes = [resolve(query, sources) for query in asked]
        clock.lap("query")
        found = self._grids[table.grid_id]
        answers = answer(room, probes, request, found.stride_px / found.tile_px, clock)
        results = [_results(room, probe, one) for probe, one in zip(probes, answers, strict=True)]
        clock.lap("rows")
        return results

    def _sources(self, table: VectorTable, room: Room) -> Sources:
        grid = self._grids[table.grid_id]

        def embed(tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
            return self._encoder(table.encoder_id).embed(tiles)

        def read_tile(code: int, x0: int, y0: int) -> NDArray[np.uint8]:
            from query.slide_tile import read_centred_tile  # OpenSlide: only where a slide is read

            return read_centred_tile(room.slides.slice(code, 1).to_pylist()[0], x0, y0, grid)

        return Sources(room.rows, room.slides, room.take, grid.mpp, grid.tile_px, embed, read_tile)

    def _encoder(self, encoder_id: str) -> TileEncoder:
        with self._lock:
            if encoder_id not in self._encoders:
                from encoder.checkpoint import encoder_from_files  # PyTorch: only where pixels are embedded

                files = self.store.load_encoder_files(encoder_id)
                self._encoders[encoder_id] = encoder_from_files(files, self._device)
            return self._encoders[encoder_id]

    def room(self, table: VectorTable) -> Room:
        """The vectors of a table at its latest version, with the slides that belong to them."""
        with self._lock:
            self._refresh()
            return self._room(table)

    def _table_and_room(self, encoder: str | None, grid: str | None) -> tuple[VectorTable, Room]:
        """The vectors that are meant, and their room: the store is looked at once, which a quick search notices."""
        with self._lock:
            self._refresh()
            table = choose(self._tables, encoder, grid)
            return table, self._room(table)

    def _room(self, table: VectorTable) -> Room:
        """See `room`; for callers that hold the lock and have just looked at the store."""
        name = self.store.vectors_table_name(table.encoder_id, table.grid_id)
        (stamp,) = self.store.lance.stamp([name])
        kept = self._kept.get(table)
        if kept is not None and (kept.stamp, kept.seen) == (stamp, self._seen):
            return kept.room
        promised = promised_rows(self.store, name)
        if kept is not None and (kept.stamp, kept.promised) == (stamp, promised):
            room = kept.room.recoded(self._slides)  # other slides or columns, the same vectors
        else:
            if kept is not None:
                kept.room.close()  # before reading: two versions may not fit
                del self._kept[table]
            rows = load_rows(self.store, table.encoder_id, table.grid_id, self._slides, promised)
            room = Room(self.store, rows, self._slides, self._budget, self._device)
        self._kept[table] = _Kept(stamp, self._seen, promised, room)
        return room

    def _refresh(self) -> None:
        """Read the small tables again where one of them changed; forget all where the store is another one."""
        with self._lock:
            seen = (self.store.lance.mark("meta"), *self.store.lance.stamp(_SMALL_TABLES))
            if seen == self._seen:
                return
            identity = _identity(self.store)
            if identity != self._store_identity:
                # Deleted and made anew at its place, where versions may be the same by chance.
                if self._store_identity:
                    self.store = open_store(self.store.uri, read_only=self.store.lance.read_only)
                for kept in self._kept.values():
                    kept.room.close()
                self._kept.clear()
                self._encoders.clear()
                self._store_identity = identity
                seen = (self.store.lance.mark("meta"), *self.store.lance.stamp(_SMALL_TABLES))
            slides = self.store.slides().sort_by("slide_id")
            states = searchable_status(self.store, slides["slide_id"].to_pylist())
            # In one chunk, from which rows are taken faster.
            self._slides = slides.append_column("status", pa.array(states, pa.string())).combine_chunks()
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


def _names(exclude: Collection[str]) -> Collection[str]:
    return (exclude,) if isinstance(exclude, str) else exclude


def _results(room: Room, probe: Probe, found: Answer) -> Results:
    rows, hits = room.rows, found.hits
    place, query_tile = None, None
    if probe.row is not None:
        row = probe.row
        query_tile = int(rows.tile_id[row])
        slide_id = room.slides["slide_id"][int(rows.slide_code[row])].as_py()
        place = TilePlace(slide_id, int(rows.x0[row]), int(rows.y0[row]), int(rows.extent_px0[row]))
    table = room.hit_tables.table(hits, found.percentiles, rows)
    return Results(
        table, rows.tile_id[hits.rows], found.plan, found.nothing_close, room.store, place, query_tile, probe.picture
    )
