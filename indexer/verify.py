"""Whether a store holds together: rows, vectors, identities, and the slides that it came from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoder.errors import StoreError
from indexer import schema
from indexer.slide_files import fingerprint
from indexer.store import Store, open_store

_UNIT_TOLERANCE = 1e-4
_NAMED = 3  # examples per problem


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong; `table` and `slide_id` say where, if it is at one place."""

    kind: str
    message: str
    table: str | None = None
    slide_id: str | None = None


@dataclass(frozen=True)
class VerifyReport:
    """What was checked, and what is wrong.

    Attributes:
        rows: checked, by table.
        slides: whose files were checked.
    """

    rows: dict[str, int]
    slides: int
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


@dataclass(frozen=True)
class _Places:
    """Identity columns of a table's rows, sorted by tile id."""

    ids: NDArray[np.int64]
    slide_nos: NDArray[np.int32]
    x0: NDArray[np.int32]
    y0: NDArray[np.int32]


def verify(store_uri: str, slides: bool = True) -> VerifyReport:
    """Check a store: row counts against `done`, identities, unit vectors, tiles against vectors, slide files.

    Args:
        store_uri: local directory or object-store URI.
        slides: whether the slides' files are looked for and their fingerprints compared.

    Raises:
        StoreError: there is no store, or it is of another format.
    """
    store = open_store(store_uri, read_only=True)
    problems: list[Problem] = []
    rows: dict[str, int] = {}
    try:
        problems += _check_identities(store)
        names = {
            row["slide_no"]: row["slide_id"] for row in store.slides().select(["slide_no", "slide_id"]).to_pylist()
        }
        done = store.done().to_pylist()
    except StoreError as error:
        return VerifyReport({}, 0, (*problems, Problem("unreadable", error.message)))
    tables = sorted({*store.tables(), *(row["table_name"] for row in done)})  # also those that should be there
    grids = {name.removeprefix("tiles_") for name in tables if name.startswith("tiles_")}
    grids |= {pair[1] for name in tables if (pair := schema.split_vectors_name(name)) is not None}
    for grid_id in sorted(grids):
        on_grid = [name for name in tables if (schema.split_vectors_name(name) or ("", ""))[1] == grid_id]
        problems += _check_grid(store, grid_id, on_grid, names, done, rows)
    checked = 0
    if slides:
        for row in store.slides().to_pylist():
            files = {d["fingerprint"] for d in done if d["slide_no"] == row["slide_no"]}
            if files:
                checked += 1
                problems += _check_file(row, files)
    return VerifyReport(rows, checked, tuple(problems))


def _check_identities(store: Store) -> Iterator[Problem]:
    for table, columns in (("slides", ["slide_id"]), ("slides", ["slide_no"]), ("done", ["table_name", "slide_no"])):
        keys = [tuple(row.values()) for row in store.read(table, columns).to_pylist()]
        twice = [key for key, count in Counter(keys).items() if count > 1]
        if twice:
            text = ", ".join("/".join(map(str, key)) for key in twice[:_NAMED])
            yield Problem("duplicate", f"{' and '.join(columns)} repeat in {table}: {text}.", table)
    encoders = set(store.encoders()["encoder_id"].to_pylist())
    copied = set(store.read("encoder_files", ["encoder_id"])["encoder_id"].to_pylist())
    grids = set(store.grids()["grid_id"].to_pylist())
    for name in store.tables():
        encoder_id, grid_id = schema.split_vectors_name(name) or ("", "")
        if not encoder_id:
            continue
        if encoder_id not in encoders or encoder_id not in copied:
            yield Problem("encoder", f"The store does not hold the encoder {encoder_id}.", name)
        if grid_id not in grids:
            yield Problem("grid", f"The store does not describe the grid {grid_id}.", name)


def _check_grid(
    store: Store,
    grid_id: str,
    tables: Sequence[str],
    names: dict[int, str],
    done: list[dict[str, Any]],
    rows: dict[str, int],
) -> Iterator[Problem]:
    tiles_name = schema.tiles_table_name(grid_id)
    try:
        tiles = _places(store, tiles_name)
    except StoreError as error:
        yield Problem("unreadable", error.message, tiles_name)
        return
    rows[tiles_name] = len(tiles.ids)
    yield from _check_places(tiles_name, tiles, names)
    on_grid = [row for row in done if row["table_name"] in tables]
    yield from _unfinished(tiles_name, tiles, {row["slide_no"] for row in on_grid}, names)
    for name in tables:
        own = {row["slide_no"]: row for row in on_grid if row["table_name"] == name}
        try:
            places = _places(store, name)
            bad_vectors = _bad_vectors(store, name)
        except StoreError as error:
            yield Problem("unreadable", error.message, name)
            continue
        rows[name] = len(places.ids)
        if bad_vectors:
            yield Problem("vector", f"{bad_vectors} vectors of {name} are not finite or not of unit length.", name)
        yield from _check_places(name, places, names)
        yield from _unfinished(name, places, set(own), names)
        yield from _check_counts(name, places, tiles, own)
        yield from _check_agreement(name, places, tiles)


def _check_places(name: str, places: _Places, names: dict[int, str]) -> Iterator[Problem]:
    twice = np.unique(places.ids[1:][places.ids[1:] == places.ids[:-1]])
    if len(twice):
        yield Problem("duplicate", f"{len(twice)} tile ids repeat in {name}: {_some(twice)}.", name)
    strange = np.flatnonzero(places.ids >> 32 != places.slide_nos)
    if len(strange):
        yield Problem("identity", f"{len(strange)} tile ids of {name} are of another slide than their rows.", name)
    unknown = np.setdiff1d(places.slide_nos, np.fromiter(names, np.int32, len(names)))
    if len(unknown):
        yield Problem("orphan", f"{name} has rows of slides that the store does not know: {_some(unknown)}.", name)


def _unfinished(name: str, places: _Places, done: set[int], names: dict[int, str]) -> Iterator[Problem]:
    for number in np.unique(places.slide_nos).tolist():
        if number not in done and number in names:
            message = f"{name} has rows of {names[number]}, which was not finished; the next `index` removes them."
            yield Problem("orphan", message, name, names[number])


def _check_counts(name: str, places: _Places, tiles: _Places, done: dict[int, dict[str, Any]]) -> Iterator[Problem]:
    in_table, in_tiles = Counter(places.slide_nos.tolist()), Counter(tiles.slide_nos.tolist())
    for number, row in done.items():
        found, tile_rows = in_table[number], in_tiles[number]
        if found != row["rows"]:
            message = f"{name} has {found} rows of {row['slide_id']}, which was finished with {row['rows']}."
            yield Problem("count", message, name, row["slide_id"])
        elif tile_rows - found > row["bad_tiles"] or tile_rows < found:
            message = f"{row['slide_id']} has {tile_rows} tiles and {found} vectors in {name}, {row['bad_tiles']} bad."
            yield Problem("count", message, name, row["slide_id"])


def _check_agreement(name: str, places: _Places, tiles: _Places) -> Iterator[Problem]:
    at = np.minimum(np.searchsorted(tiles.ids, places.ids), max(0, len(tiles.ids) - 1))
    known = tiles.ids[at] == places.ids if len(tiles.ids) else np.zeros(len(places.ids), bool)
    if not known.all():
        yield Problem("orphan", f"{np.count_nonzero(~known)} vectors of {name} have no tile.", name)
    at, x0, y0 = at[known], places.x0[known], places.y0[known]
    moved = np.count_nonzero((tiles.x0[at] != x0) | (tiles.y0[at] != y0))
    if moved:
        yield Problem("position", f"{moved} vectors of {name} lie elsewhere than their tiles.", name)


def _check_file(row: dict[str, Any], fingerprints: set[str]) -> Iterator[Problem]:
    path = Path(row["path"])
    try:
        found = fingerprint(path)
    except OSError:
        message = f"{path} of slide {row['slide_id']} is not there; index it from where it is now."
        yield Problem("missing file", message, slide_id=row["slide_id"])
        return
    if fingerprints != {found}:
        message = f"{path} of slide {row['slide_id']} has changed since it was indexed; index it again."
        yield Problem("changed file", message, slide_id=row["slide_id"])


def _places(store: Store, name: str) -> _Places:
    table = store.read(name, ["tile_id", "slide_no", "x0", "y0"])
    ids = table["tile_id"].to_numpy()
    order = np.argsort(ids, kind="stable")
    slide_nos, x0, y0 = (table[column].to_numpy()[order] for column in ("slide_no", "x0", "y0"))
    return _Places(ids[order], slide_nos, x0, y0)


def _bad_vectors(store: Store, name: str) -> int:
    bad = 0
    for batch in store.scan(name, ["vector"]):
        column = batch["vector"]
        vectors = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, column.type.list_size)
        lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))
        bad += len(batch) - int(np.count_nonzero(np.abs(lengths - 1) < _UNIT_TOLERANCE))
    return bad


def _some(values: NDArray[Any]) -> str:
    return ", ".join(map(str, values[:_NAMED].tolist())) + (", ..." if len(values) > _NAMED else "")
