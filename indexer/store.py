"""A store: opening it, and reading its slides, tiles, vectors and history."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from numbers import Real

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from encoder.errors import StoreError
from indexer import schema
from indexer.tables import Tables, is_local, local_folder_state, plain_path, sql_in, sql_text
from indexer.tile_places import TilePlaces

SlideStatus = str  # registered, indexed, empty, quarantined

_IN_LIST = 20_000  # ids per filter; Lance answers such a list in a fraction of a second
_FEW = 1000  # pictures that are worth finding one by one


class Store:
    """Slides, grids, encoders, tiles, vectors and history, read lazily and always at their latest version.

    Args:
        tables: the tables behind the store.
    """

    def __init__(self, tables: Tables) -> None:
        self.lance = tables
        self._places: dict[str, TilePlaces] = {}

    @property
    def uri(self) -> str:
        """Where the store is."""
        return self.lance.uri

    def tables(self) -> list[str]:
        """Names of the tables, sorted."""
        return self.lance.names()

    def table_version(self, name: str) -> int:
        """Latest version of a table; 0 where it does not exist."""
        return self.lance.version(name)

    def table_schema(self, name: str) -> pa.Schema:
        """Arrow schema of a table."""
        return self.lance.schema(name)

    def count(self, name: str, where: str | None = None) -> int:
        """Rows of a table that match a filter; 0 where the table does not exist."""
        return self.lance.count(name, where)

    def scan(
        self,
        name: str,
        columns: Sequence[str] | None = None,
        where: str | None = None,
        batch_rows: int = 8192,
        version: int | None = None,
        between: tuple[int, int] | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """Stream rows of a table, at most `batch_rows` at a time, in the order of their commits.

        With a `version` they are those of that version, and always in the same order; then `between` names the
        position of the first of them and the one after the last.
        """
        return self.lance.scan(name, columns, where, batch_rows, version, between)

    def read(self, name: str, columns: Sequence[str] | None = None, where: str | None = None) -> pa.Table:
        """Read rows of a table in the order of their commits."""
        return self.lance.read(name, columns, where)

    def slides(self, thumbnails: bool = False) -> pa.Table:
        """Slides with the manifest's own columns, sorted by `slide_no`; without thumbnails unless asked."""
        names = [n for n in self.lance.schema("slides").names if thumbnails or n != "thumbnail"]
        return self.lance.read("slides", names).sort_by("slide_no")

    def user_columns(self) -> list[str]:
        """Names of the columns of `slides` that came from manifests."""
        return [n for n in self.lance.schema("slides").names if n not in schema.RESERVED_SLIDE_COLUMNS]

    def thumbnail(self, slide_id: str) -> bytes | None:
        """Overview of a slide as JPEG, its longer side at most 1024 px; None where it was never opened.

        Raises:
            StoreError: the store knows no such slide.
        """
        rows = self.lance.read("slides", ["thumbnail"], f"slide_id = {sql_text(slide_id)}")
        if not len(rows):
            raise StoreError(f"The store {self.uri} has no slide {slide_id}.")
        return rows["thumbnail"][0].as_py()

    def grids(self) -> pa.Table:
        """Grids, oldest first."""
        return _first_of_each(self.lance.read("grids"), "grid_id")

    def encoders(self) -> pa.Table:
        """Encoders, oldest first."""
        return _first_of_each(self.lance.read("encoders"), "encoder_id")

    def load_encoder_files(self, encoder_id: str) -> dict[str, bytes]:
        """Contents of an encoder's checkpoint files by name.

        Raises:
            StoreError: the store holds no such encoder.
        """
        rows = self.lance.read("encoder_files", ["file", "content"], f"encoder_id = {sql_text(encoder_id)}")
        if not len(rows):
            raise StoreError(f"The store {self.uri} holds no encoder {encoder_id}.")
        return dict(zip(rows["file"].to_pylist(), rows["content"].to_pylist(), strict=True))

    def vector_tables(self) -> list[tuple[str, str, int]]:
        """Encoder id, grid id and row count of every vectors table."""
        pairs = [(name, schema.split_vectors_name(name)) for name in self.tables()]
        return [(*pair, self.count(name)) for name, pair in pairs if pair is not None]

    def vectors_table_name(self, encoder_id: str, grid_id: str) -> str:
        """Name of the table that holds one encoder's vectors on one grid."""
        return schema.vectors_table_name(encoder_id, grid_id)

    def resize_ratio(self, encoder_id: str, grid_id: str) -> float:
        """Extent of the grid's tiles over the extent that the encoder was made for."""
        table = self.lance.schema(schema.vectors_table_name(encoder_id, grid_id))
        return float((table.metadata or {})[b"resize_ratio"])

    def done(self) -> pa.Table:
        """One row per slide and vectors table that was finished."""
        return self.lance.read("done")

    def quarantine(self, open_only: bool = False) -> pa.Table:
        """Failures, oldest first; with `open_only` those that no later run resolved."""
        return self.lance.read("quarantine", where="resolved_by IS NULL" if open_only else None)

    def runs(self) -> pa.Table:
        """Runs, oldest first."""
        return self.lance.read("runs").sort_by("started_at")

    def indexes(self) -> pa.Table:
        """Indexes that were built, with their recall cards, oldest first."""
        return self.lance.read("indexes").sort_by("at")

    def annotations(self, name: str | None = None) -> pa.Table:
        """Values given to tiles or slides, oldest first."""
        return self.lance.read("annotations", where=None if name is None else f"name = {sql_text(name)}")

    def slide_status(self) -> dict[str, SlideStatus]:
        """Status of every slide: `registered`, `indexed`, `empty` or `quarantined`."""
        status: dict[str, SlideStatus] = dict.fromkeys(
            self.lance.read("slides", ["slide_id"])["slide_id"].to_pylist(), "registered"
        )
        done = self.lance.read("done", ["slide_id", "rows"])
        for slide_id, rows in zip(done["slide_id"].to_pylist(), done["rows"].to_pylist(), strict=True):
            if rows:
                status[slide_id] = "indexed"
            elif status.get(slide_id) != "indexed":
                status[slide_id] = "empty"
        failed = self.lance.read("quarantine", ["slide_id"], "resolved_by IS NULL AND tile_key IS NULL")
        status.update(dict.fromkeys(failed["slide_id"].to_pylist(), "quarantined"))
        return status

    def slide_reasons(self) -> dict[str, dict[str, int]]:
        """Rejected tiles of every finished slide, counted by reason, from its latest finished pass."""
        rows = self.lance.read("done", ["slide_id", "reasons", "at"]).sort_by("at").to_pylist()
        return {row["slide_id"]: json.loads(row["reasons"]) for row in rows}

    def thumbs(self, grid_id: str, tile_ids: Iterable[int]) -> dict[int, bytes]:
        """Thumbnails of tiles as JPEG, by tile id; ids that the grid does not have are left out."""
        return self._tile_pictures(grid_id, "thumb", tile_ids)

    def tile_images(self, grid_id: str, tile_ids: Iterable[int]) -> dict[int, bytes]:
        """Kept tile images as JPEG, by tile id; tiles whose image was not kept are left out."""
        return self._tile_pictures(grid_id, "image", tile_ids)

    def tile_rows(self, grid_id: str, tile_ids: Sequence[int], columns: Sequence[str]) -> pa.Table:
        """Rows of tiles by their ids, in any order; ids that the grid does not have are left out."""
        name = schema.tiles_table_name(grid_id)
        if not tile_ids or not self.lance.has(name):
            return schema.TILES.empty_table().select(list(columns))
        places = self._places.setdefault(name, TilePlaces(self.lance, name))
        for _ in range(2):  # the first question to `places` may only tell it that there will be more
            rows = places.read(tile_ids, columns)
            if rows is not None:
                return rows
        parts = [tile_ids[start : start + _IN_LIST] for start in range(0, len(tile_ids), _IN_LIST)]
        return pa.concat_tables([self.lance.read(name, columns, sql_in("tile_id", part)) for part in parts])

    def slide_tile_ids(self, grid_id: str, slide_no: int) -> NDArray[np.int64]:
        """Ids of a slide's tiles on a grid, ascending; none where the grid has no tiles yet."""
        name = schema.tiles_table_name(grid_id)
        if not self.lance.has(name):
            return np.empty(0, np.int64)
        rows = self.lance.read(name, ["tile_id"], f"slide_no = {int(slide_no)}")
        return np.sort(rows["tile_id"].to_numpy())

    def rows_per_slide(self, name: str) -> dict[int, int]:
        """Rows of each slide number in a tiles or vectors table, counted in a stream."""
        totals: dict[int, int] = {}
        if self.lance.has(name):
            for batch in self.lance.scan(name, ["slide_no"], batch_rows=1 << 18):
                numbers, counts = np.unique(batch["slide_no"].to_numpy(), return_counts=True)
                for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
                    totals[number] = totals.get(number, 0) + count
        return totals

    def annotate(
        self,
        name: str,
        values: Sequence[str | float | None],
        slide_nos: Sequence[int],
        tile_ids: Sequence[int] | None = None,
        grid_id: str | None = None,
        version: str = "1",
        author: str = "",
    ) -> None:
        """Append one value per slide, or per tile where `tile_ids` and `grid_id` are given.

        Raises:
            StoreError: the lengths differ, or tiles are named without their grid.
        """
        count = len(values)
        if len(slide_nos) != count or (tile_ids is not None and len(tile_ids) != count):
            raise StoreError(f"Annotation {name}: values, slides and tiles differ in number.")
        if (tile_ids is None) != (grid_id is None):
            raise StoreError(f"Annotation {name}: tiles and their grid must be given together.")
        numbers = [float(v) if isinstance(v, Real) else None for v in values]
        columns = {
            "slide_no": slide_nos,
            "tile_id": tile_ids if tile_ids is not None else [None] * count,
            "grid_id": [grid_id] * count,
            "name": [name] * count,
            "version": [version] * count,
            "value": [None if v is None else str(v) for v in values],
            "number": numbers,
            "author": [author] * count,
            "at": [datetime.now(UTC)] * count,
        }
        self.lance.create("annotations", schema.ANNOTATIONS)
        rows = pa.Table.from_pydict(columns, schema=schema.ANNOTATIONS)
        self.lance.append("annotations", "annotations", rows)

    def _tile_pictures(self, grid_id: str, column: str, tile_ids: Iterable[int]) -> dict[int, bytes]:
        name = schema.tiles_table_name(grid_id)
        wanted = [int(i) for i in tile_ids]
        if not wanted:
            return {}
        found: dict[int, bytes] = {}
        places = self._places.setdefault(name, TilePlaces(self.lance, name))
        rows = places.read(wanted, ["tile_id", column]) if len(wanted) <= _FEW else None
        if rows is not None:
            pairs = zip(rows["tile_id"].to_pylist(), rows[column].to_pylist(), strict=True)
            return {tile_id: content for tile_id, content in pairs if content is not None}
        for start in range(0, len(wanted), _IN_LIST):
            where = sql_in("tile_id", wanted[start : start + _IN_LIST])
            for batch in self.lance.scan(name, ["tile_id", column], where):
                found.update(zip(batch["tile_id"].to_pylist(), batch[column].to_pylist(), strict=True))
        return {tile_id: content for tile_id, content in found.items() if content is not None}


def open_store(uri: str, read_only: bool = False, on_commit: Callable[[str], None] | None = None) -> Store:
    """Open a store that exists.

    Args:
        uri: local directory or object-store URI.
        read_only: whether writing through this handle is an error.
        on_commit: called with a commit's name after each commit.

    Raises:
        StoreError: nothing is there, it is no store, or its format is another version's.
    """
    uri = plain_path(str(uri))
    if is_local(uri) and local_folder_state(uri) == "absent":
        raise StoreError(f"There is no store at {uri}.", fix="`histoseek index` makes one.")
    store = Store(_connect(uri, read_only, on_commit))
    if not store.lance.has("meta") or not store.count("meta"):
        raise StoreError(f"{uri} is not a HistoSeek store.", fix="`histoseek index` makes one in a new folder.")
    _check_format(store)
    return store


def create_store(uri: str, on_commit: Callable[[str], None] | None = None) -> Store:
    """Open a store for writing, making it where nothing is yet.

    Args:
        uri: local directory or object-store URI; a directory must be absent, empty or a store.
        on_commit: called with a commit's name after each commit.

    Raises:
        StoreError: the place holds something else, or a store of another format version.
    """
    uri = plain_path(str(uri))
    in_use = is_local(uri) and local_folder_state(uri) == "used"
    store = Store(_connect(uri, False, on_commit))
    if in_use and "meta" not in store.tables():  # a creation that was killed leaves at least its folder
        raise StoreError(f"{uri} is a folder with other things in it, not a store.", fix="Name a new folder.")
    if not store.lance.has("meta") or not store.count("meta"):
        store.lance.create("meta", schema.META)
        version = importlib.metadata.version("histoseek")
        row = {
            "format_version": schema.FORMAT_VERSION,
            "created_by": f"histoseek {version}",
            "created_at": datetime.now(UTC),
        }
        store.lance.append("meta", "meta", pa.Table.from_pylist([row], schema=schema.META))
    _check_format(store)
    for name, table_schema in schema.FIXED_TABLES.items():
        store.lance.create(name, table_schema)
    return store


def _first_of_each(rows: pa.Table, key: str) -> pa.Table:
    """Rows without their repetitions: two drivers that start at once may both have written what they share."""
    _, first = np.unique(rows[key].to_numpy(zero_copy_only=False).astype(str), return_index=True)
    return rows.take(np.sort(first))


def _connect(uri: str, read_only: bool, on_commit: Callable[[str], None] | None) -> Tables:
    try:
        return Tables(uri, read_only, on_commit)
    except (ValueError, RuntimeError, OSError) as error:
        raise StoreError(f"The store {uri} cannot be opened: {error}.") from error


def _check_format(store: Store) -> None:
    found = pc.max(store.read("meta", ["format_version"])["format_version"]).as_py()
    if found != schema.FORMAT_VERSION:
        raise StoreError(
            f"The store {store.uri} has format version {found}, this HistoSeek reads {schema.FORMAT_VERSION}.",
            fix="Use the HistoSeek that made it, or index again into a new store.",
        )
