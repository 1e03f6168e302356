"""Maps in the store: read, brought up to date for slides that came or changed, or made and kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from encoder.errors import QueryError, StoreError
from encoder.progress import Reporter, SilentReporter
from indexer.projections import PlacedTiles, StoredMap, add_slides, read_map, read_marks, read_model, write_map
from indexer.store import Store, open_store
from indexer.tables import sql_text
from query.choice import VectorTable
from query.projection.models import METHODS, SAMPLE_ROWS, SEED, Method, Model, NeighbourModel, PlaneModel, model_of
from query.projection.sample import spread_sample
from query.projection.tile_map import TileMap
from query.projection.window import extent_of
from query.room import Room
from query.rows import TileRows

if TYPE_CHECKING:
    from query.cohort import Cohort

# Of what `settings` and `model` mean: a map of another number is made anew.
_FORMAT = 1
_BLOCK_ROWS = 4096
# Rows that are fetched by their numbers cost more than rows in order; below this share it is still less work.
_FETCH_BELOW = 0.02
# Share of tiles that came after the fit from which a map may not show them well.
_CHANGED = 0.3
_TRIES = 3


def map_cohort(
    cohort: Cohort,
    table: VectorTable,
    method: str,
    store: bool,
    refit: bool,
    reporter: Reporter | None,
    device: str | None,
) -> TileMap:
    """See `Cohort.map`."""
    known_method = _check(method)
    reporter = reporter or SilentReporter()
    room, marks = _room_and_marks(cohort, table)
    if not len(room.rows):
        raise QueryError("There is no tile to map: no slide of these vectors is finished.", "Index slides first.")
    stored = None if refit else _current(read_map(cohort.store, room.table, known_method))
    if stored is None:
        return _made(cohort, room, marks, known_method, store, reporter, device)
    return _brought_up_to_date(cohort, room, marks, known_method, stored, store, reporter, device)


def unplaced_rows(cohort: Cohort, table: VectorTable, method: str) -> int | None:
    """Searchable tiles that the stored map does not show yet; None where the store holds no map.

    Nothing is computed, and neither tiles nor vectors are read.

    Raises:
        QueryError: there is no such method.
    """
    name = cohort.store.vectors_table_name(table.encoder_id, table.grid_id)
    found = read_marks(cohort.store, name, _check(method))
    if found is None or found[0].get("format") != _FORMAT:
        return None
    done = _done(cohort.store, name)
    return sum(rows for slide, (mark, rows) in done.items() if found[1].get(slide) != mark)


def _check(method: str) -> Method:
    if method not in METHODS:
        raise QueryError(f"There is no map by the method {method!r}.", f"Choose from: {', '.join(METHODS)}.")
    return method


def _current(stored: StoredMap | None) -> StoredMap | None:
    return stored if stored is not None and stored.settings.get("format") == _FORMAT else None


def _room_and_marks(cohort: Cohort, table: VectorTable) -> tuple[Room, dict[int, str]]:
    """Searchable rows, and what tells those of each slide from its rows before and after."""
    name = cohort.store.vectors_table_name(table.encoder_id, table.grid_id)
    for _ in range(_TRIES):
        before = _done(cohort.store, name)
        room = cohort.room(table)
        if _done(cohort.store, name) == before:
            return room, {slide: mark for slide, (mark, _) in before.items()}
    raise StoreError(f"Slides of {name} are finished faster than they can be read.", fix="Ask again in a while.")


def _done(store: Store, name: str) -> dict[int, tuple[str, int]]:
    """Mark and rows of each finished slide by number; slides without rows are left out."""
    columns = ["slide_no", "fingerprint", "settings_hash", "run_id", "at", "rows"]
    rows = store.read("done", columns, f"table_name = {sql_text(name)}").to_pylist()
    parts = ("run_id", "at", "rows", "fingerprint", "settings_hash")
    return {row["slide_no"]: (" ".join(str(row[part]) for part in parts), row["rows"]) for row in rows if row["rows"]}


def _made(
    cohort: Cohort,
    room: Room,
    marks: dict[int, str],
    method: Method,
    store: bool,
    reporter: Reporter,
    device: str | None,
) -> TileMap:
    """Fit a model to the vectors, place all of them, and keep the map."""
    rows = room.rows
    model: Model
    if method == "pca":
        reporter.start("fit", len(rows), "tiles")
        model = PlaneModel.fit(_counted(_blocks(room), reporter), rows.dim)
    else:
        sample = spread_sample(rows.slide_no, SAMPLE_ROWS, SEED)
        reporter.start(f"UMAP of {sample.size:,} tiles", None, "tiles")
        model = NeighbourModel.fit(room.take(sample), device)
    reporter.finish()
    xy = _placed(room, None, model, reporter)
    settings = {"format": _FORMAT, "method": method} | model.settings()
    failed = None
    if store:
        tiles = _of_slides(rows, np.unique(rows.slide_no), xy, marks, fitted=True)
        failed = _kept(cohort, lambda open_: write_map(open_, room.table, method, settings, model.arrays(), tiles))
    return _tile_map(room, method, xy, settings, store and failed is None, 0, failed)


def _brought_up_to_date(
    cohort: Cohort,
    room: Room,
    marks: dict[int, str],
    method: Method,
    stored: StoredMap,
    store: bool,
    reporter: Reporter,
    device: str | None,
) -> TileMap:
    """Take the places of slides that are as they were, and compute those of the others."""
    rows, tiles = room.rows, stored.tiles
    slides = zip(tiles.slide_no.tolist(), tiles.marks, strict=True)
    as_before = np.array([marks.get(slide) == mark for slide, mark in slides], np.bool_)
    if not as_before.all():
        tiles = tiles.of(as_before)
    if np.array_equal(tiles.tile_id, rows.tile_id):
        xy = tiles.xy
    else:
        xy = np.full((len(rows), 2), np.nan, np.float32)
        at = rows.row_of(tiles.tile_id)
        xy[at[at >= 0]] = tiles.xy[at >= 0]
    missing = np.flatnonzero(~np.isfinite(xy[:, 0]))
    late = int(tiles.counts[~tiles.fitted].sum()) + missing.size
    failed = None
    if missing.size:
        xy[missing] = _placed(
            room, missing, model_of(method, read_model(cohort.store, stored.map_id), device), reporter
        )
        if store:
            added = _of_slides(rows, np.unique(rows.slide_no[missing]), xy, marks, fitted=False)
            failed = _kept(cohort, lambda open_: add_slides(open_, stored.map_id, room.table, method, added))
    is_stored = not missing.size or (store and failed is None)
    return _tile_map(room, method, xy, stored.settings, is_stored, late, failed)


def _tile_map(
    room: Room,
    method: Method,
    xy: NDArray[np.float32],
    settings: dict[str, Any],
    stored: bool,
    late: int,
    failed: str | None,
) -> TileMap:
    rows, notes = room.rows, []
    if method == "umap" and settings["rows"] < len(rows):
        notes.append(f"UMAP laid out {settings['rows']:,} tiles; the others lie among those that they are most like.")
    if late > _CHANGED * len(rows):
        notes.append(
            f"{late:,} of {len(rows):,} tiles came after the map was fitted, and it may not show well how they "
            "differ. `histoseek map --refit` fits it anew."
        )
    if failed is not None:
        notes.append(f"The map was computed and not stored: {failed}")
    xy.flags.writeable = False
    return TileMap(method, rows, room.slides, xy, extent_of(xy), settings["rows"], stored, settings, tuple(notes))


def _placed(room: Room, wanted: NDArray[np.int64] | None, model: Model, reporter: Reporter) -> NDArray[np.float32]:
    """Places of some rows, or of all, float32 [m, 2]."""
    count = len(room.rows) if wanted is None else wanted.size
    xy = np.empty((count, 2), np.float32)
    reporter.start("place", count, "tiles")
    filled = 0
    for block in _counted(_blocks(room, wanted), reporter):
        xy[filled : filled + len(block)] = model.place(block)
        filled += len(block)
    reporter.finish()
    return xy


def _blocks(room: Room, wanted: NDArray[np.int64] | None = None) -> Iterator[NDArray[np.float32]]:
    """Vectors of all rows, or of some in ascending order, a few thousand at a time; from memory where they are."""
    count = len(room.rows)
    if wanted is not None and (wanted.size < _FETCH_BELOW * count or room.shelf.has("vectors")):
        for start in range(0, wanted.size, _BLOCK_ROWS):
            yield room.take(wanted[start : start + _BLOCK_ROWS])
        return
    resident = room.shelf.get("vectors")
    if resident is not None:
        for start in range(0, count, _BLOCK_ROWS):
            yield resident.matrix[start : start + _BLOCK_ROWS]
        return
    start = 0
    for block in room.vectors.blocks():
        if wanted is None:
            yield block
        else:
            low, high = np.searchsorted(wanted, (start, start + len(block)))
            if low < high:
                yield block[wanted[low:high] - start]
        start += len(block)


def _counted(blocks: Iterator[NDArray[np.float32]], reporter: Reporter) -> Iterator[NDArray[np.float32]]:
    """The blocks, each told to the reporter when it is done."""
    for block in blocks:
        yield block
        reporter.advance(len(block))


def _of_slides(
    rows: TileRows, slides: NDArray[np.int32], xy: NDArray[np.float32], marks: dict[int, str], fitted: bool
) -> PlacedTiles:
    """Places of the tiles of some slides, ascending, in the order of the rows within each."""
    chosen = np.flatnonzero(np.isin(rows.slide_no, slides))
    chosen = chosen[np.argsort(rows.slide_no[chosen], kind="stable")]
    counts = np.bincount(np.searchsorted(slides, rows.slide_no[chosen]), minlength=slides.size)
    own = tuple(marks[slide] for slide in slides.tolist())
    return PlacedTiles(
        slides.astype(np.int32), own, np.full(slides.size, fitted), counts, rows.tile_id[chosen], xy[chosen]
    )


def _kept(cohort: Cohort, write: Callable[[Store], object]) -> str | None:
    """Write to the cohort's store; returns why that was not possible, None where it was."""
    try:
        own = cohort.store
        write(open_store(own.uri) if own.lance.read_only else own)
    except StoreError as error:
        return str(error)
    return None
