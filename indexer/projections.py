"""Maps of embeddings in two dimensions: the rows of `projections`, written by anybody at any time, read as one map.

Nobody holds the store while a map is written. Of one table and method the model that was committed last is the
map; of a slide the row of that map that was committed last counts. Whatever else there is, is ignored and goes
at the next write. Two that write at once so leave the map of one of them, and a write that is killed the one
before.
"""

from __future__ import annotations

import contextlib
import io
import json
import uuid
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from encoder.errors import StoreError
from indexer import schema
from indexer.store import Store
from indexer.tables import sql_in, sql_text

_TABLE = "projections"
_POINT = "projections"
_IN_LIST = 10_000  # row ids per filter
_TRIES = 5


@dataclass(frozen=True)
class PlacedTiles:
    """Tiles of some slides on a map; the tiles of a slide lie together.

    Attributes:
        slide_no: int32 [S], each slide once.
        marks: of each slide, what tells its rows from those of another time that it was indexed.
        fitted: whether the map was fitted when the slide was there, bool [S].
        counts: tiles of each slide, int64 [S].
        tile_id: int64 [N].
        xy: float32 [N, 2], finite.
    """

    slide_no: NDArray[np.int32]
    marks: tuple[str, ...]
    fitted: NDArray[np.bool_]
    counts: NDArray[np.int64]
    tile_id: NDArray[np.int64]
    xy: NDArray[np.float32]

    def of(self, slides: NDArray[np.bool_]) -> PlacedTiles:
        """The same of some slides only, bool [S]."""
        rows = np.repeat(slides, self.counts)
        marks = tuple(mark for mark, kept in zip(self.marks, slides.tolist(), strict=True) if kept)
        return PlacedTiles(
            self.slide_no[slides], marks, self.fitted[slides], self.counts[slides], self.tile_id[rows], self.xy[rows]
        )


@dataclass(frozen=True)
class StoredMap:
    """A map as the store has it.

    Attributes:
        map_id: of its fit.
        settings: how it was made, as JSON holds it.
        tiles: of all its slides.
        at: when it was fitted.
    """

    map_id: str
    settings: dict[str, Any]
    tiles: PlacedTiles
    at: datetime


def read_map(store: Store, table_name: str, method: str) -> StoredMap | None:
    """The map of a vectors table by a method; None where there is none.

    Raises:
        StoreError: the table of maps cannot be read.
    """
    columns = ["map_id", "slide_no", "mark", "fitted", "tile_id", "x", "y", "settings", "at"]
    rows = store.read(_TABLE, columns, _of(table_name, method))
    found = _chosen(rows["map_id"].to_pylist(), rows["slide_no"].to_pylist())
    if found is None:
        return None
    model, slides = found
    about = rows.slice(model, 1).to_pylist()[0]
    # Mostly all of them lie together, where nothing needs to be copied.
    together = bool(slides) and slides[-1] - slides[0] == len(slides) - 1
    own = rows.slice(slides[0], len(slides)) if together else rows.take(pa.array(slides, pa.int64()))
    places = [_flat(own[name], kind) for name, kind in (("tile_id", np.int64), ("x", np.float32), ("y", np.float32))]
    counts = np.asarray(own["tile_id"].combine_chunks().value_lengths().to_numpy(zero_copy_only=False), np.int64)
    tiles = PlacedTiles(
        own["slide_no"].to_numpy(),
        tuple(own["mark"].to_pylist()),
        own["fitted"].to_numpy(),
        counts,
        places[0],
        np.stack(places[1:], axis=1),
    )
    return StoredMap(about["map_id"], json.loads(about["settings"]), tiles, about["at"])


def read_marks(store: Store, table_name: str, method: str) -> tuple[dict[str, Any], dict[int, str]] | None:
    """Settings of a map and the mark of each of its slides by number, without any place; None where there is none."""
    rows = store.read(_TABLE, ["map_id", "slide_no", "mark", "settings"], _of(table_name, method))
    found = _chosen(rows["map_id"].to_pylist(), rows["slide_no"].to_pylist())
    if found is None:
        return None
    numbers, marks = rows["slide_no"].to_pylist(), rows["mark"].to_pylist()
    return json.loads(rows["settings"][found[0]].as_py()), {numbers[row]: marks[row] for row in found[1]}


def read_model(store: Store, map_id: str) -> dict[str, NDArray[Any]]:
    """What places further tiles on a map, by name.

    Raises:
        StoreError: the store has no such map, or it is damaged.
    """
    content = store.read(_TABLE, ["model"], f"map_id = {sql_text(map_id)} AND slide_no IS NULL")["model"].to_pylist()
    if not content:
        raise StoreError(f"The map {map_id} of the store {store.uri} was replaced meanwhile.", fix="Ask for it again.")
    try:
        with np.load(io.BytesIO(content[0]), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise StoreError(
            f"The map {map_id} of the store {store.uri} is damaged: {error}.", fix="Make it anew with refit."
        ) from error


def write_map(
    store: Store,
    table_name: str,
    method: str,
    settings: Mapping[str, Any],
    model: Mapping[str, NDArray[Any]],
    tiles: PlacedTiles,
) -> str:
    """Write a map in one commit, in the place of any that the table has by this method; returns its id.

    Args:
        store: opened for writing.
        table_name: of the vectors.
        method: of the map.
        settings: how it was made, as JSON can hold it.
        model: what places further tiles.
        tiles: all that are on it.

    Raises:
        StoreError: the store cannot be written.
    """
    map_id = uuid.uuid4().hex[:16]
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **dict(model))
    about = {
        "settings": json.dumps(dict(settings), sort_keys=True),
        "model": content.getvalue(),
    }
    own = _row(map_id, table_name, method) | about | {"row_id": uuid.uuid4().hex}
    first = pa.Table.from_pylist([dict.fromkeys(schema.PROJECTIONS.names) | own], schema=schema.PROJECTIONS)
    _append(store, pa.concat_tables([first, _slide_rows(map_id, table_name, method, tiles)]))
    _tidy(store, table_name, method)
    return map_id


def add_slides(store: Store, map_id: str, table_name: str, method: str, tiles: PlacedTiles) -> None:
    """Add slides to a map in one commit; rows that it has of them already count no more.

    Raises:
        StoreError: the store cannot be written.
    """
    if len(tiles.slide_no):
        _append(store, _slide_rows(map_id, table_name, method, tiles))
        _tidy(store, table_name, method)


def _of(table_name: str, method: str) -> str:
    return f"table_name = {sql_text(table_name)} AND method = {sql_text(method)}"


def _chosen(map_ids: list[str], slides: list[int | None]) -> tuple[int, list[int]] | None:
    """Row of the model that counts and those of its slides, of rows in the order of their commits."""
    models = [row for row, slide in enumerate(slides) if slide is None]
    if not models:
        return None
    wanted = map_ids[models[-1]]
    last = {slide: row for row, slide in enumerate(slides) if slide is not None and map_ids[row] == wanted}
    return models[-1], sorted(last.values())


def _row(map_id: str, table_name: str, method: str) -> dict[str, Any]:
    return {"map_id": map_id, "table_name": table_name, "method": method, "at": datetime.now(UTC)}


def _slide_rows(map_id: str, table_name: str, method: str, tiles: PlacedTiles) -> pa.Table:
    slides = len(tiles.slide_no)
    offsets = pa.array(np.concatenate([[0], np.cumsum(tiles.counts)]).astype(np.int32))
    lists = {"tile_id": tiles.tile_id, "x": tiles.xy[:, 0], "y": tiles.xy[:, 1]}
    columns: dict[str, Any] = {name: [value] * slides for name, value in _row(map_id, table_name, method).items()}
    columns |= {name: pa.ListArray.from_arrays(offsets, pa.array(values)) for name, values in lists.items()}
    columns |= {
        "row_id": [uuid.uuid4().hex for _ in range(slides)],
        "slide_no": pa.array(tiles.slide_no, pa.int32()),
        "mark": list(tiles.marks),
        "fitted": pa.array(tiles.fitted),
        "settings": pa.nulls(slides, pa.string()),
        "model": pa.nulls(slides, pa.large_binary()),
    }
    return pa.table({field.name: pa.array(columns[field.name], field.type) for field in schema.PROJECTIONS})


def _append(store: Store, rows: pa.Table) -> None:
    for tries_left in reversed(range(_TRIES)):
        try:
            store.lance.create(_TABLE, schema.PROJECTIONS)  # a store of before has none
            store.lance.append(_POINT, _TABLE, rows)
            return
        except StoreError as error:
            # Two may make the table at once.
            if not tries_left or not any(word in str(error).lower() for word in ("conflict", "already exists")):
                raise


def _tidy(store: Store, table_name: str, method: str) -> None:
    """Delete the rows that count no more.

    Every reader sees the commits in the same order, so nobody deletes what another takes for the map: only
    rows go after which a better one has come. What cannot be deleted now goes another time.
    """
    with contextlib.suppress(StoreError):
        rows = store.read(_TABLE, ["row_id", "map_id", "slide_no"], _of(table_name, method))
        found = _chosen(rows["map_id"].to_pylist(), rows["slide_no"].to_pylist())
        if found is None:
            return
        kept = {found[0], *found[1]}
        gone = [row_id for row, row_id in enumerate(rows["row_id"].to_pylist()) if row not in kept]
        for start in range(0, len(gone), _IN_LIST):
            store.lance.delete(_POINT, _TABLE, sql_in("row_id", gone[start : start + _IN_LIST]))


def _flat(column: pa.ChunkedArray, kind: type) -> NDArray[Any]:
    return np.asarray(column.combine_chunks().flatten().to_numpy(zero_copy_only=False), kind)
