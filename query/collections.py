"""Saved collections of tiles: kept in the store as annotations, of which none is ever changed or taken away."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from encoder.errors import QueryError
from indexer.grid import parse_tile_key, tile_key
from indexer.store import Store
from query.collection_log import Deed, Step, read_steps, same_name, state_after, write_step
from query.guard import nearest_name
from query.slide_columns import slide_columns, told_columns
from query.tile_list import TileList

if TYPE_CHECKING:
    from query.cohort import Cohort

MOST_NAME_LETTERS, MOST_NOTE_LETTERS, MOST_TILES = 80, 2000, 100_000


@dataclass(frozen=True)
class CollectionInfo:
    """A collection without its tiles.

    Attributes:
        name: as it was written last.
        grid_id: the grid of its tiles; all are of one.
        tiles, slides: how many it has, and of how many slides.
        author: who changed it last, where they said so.
        at: when.
        note: what it is for.
        missing: of its tiles, how many the store no longer has.
        versions: ids of all its states, oldest first; also of those before it was deleted once.
    """

    name: str
    grid_id: str
    tiles: int
    slides: int
    author: str
    at: datetime
    note: str
    missing: int
    versions: tuple[str, ...]


@dataclass(frozen=True)
class Collection:
    """A collection with its tiles.

    Attributes:
        info: what is known of it.
        tile_keys: in their order, also those that the store no longer has.
        tile_ids: of the same tiles, int64 [tiles].
    """

    info: CollectionInfo
    tile_keys: tuple[str, ...]
    tile_ids: NDArray[np.int64]

    @property
    def name(self) -> str:
        """Its name."""
        return self.info.name

    @property
    def grid_id(self) -> str:
        """The grid of its tiles."""
        return self.info.grid_id


def save_collection(
    cohort: Cohort, name: str, tile_keys: Sequence[str], author: str = "", note: str = "", grid: str | None = None
) -> Collection:
    """Save tiles under a name. A collection that has it, whatever its case, is replaced; its versions can be loaded.

    The store may be in use meanwhile, also by an indexing run.

    Args:
        cohort: an open store, also for reading only: it is opened for writing here.
        name: 1 to 80 characters.
        tile_keys: `slide_id@x0,y0`, in the order in which they shall be kept; one that comes again is left out.
        author: who saves.
        note: what the collection is for.
        grid: id of the tiles' grid; needed where tiles of several grids have these keys.

    Raises:
        QueryError: the name will not do, there is no tile, or a tile is unknown.
        StoreError: the store cannot be written.
    """
    shown = _checked_name(name)
    if not tile_keys:
        raise QueryError(f"The collection {shown!r} would have no tile.", "Choose at least one.")
    grid_id, tiles = _known_tiles(cohort, tile_keys, None if grid is None else [grid])
    version = _write(cohort, "save", shown, tiles, grid_id, author, _checked_note(note))
    return load_collection(cohort, shown, version)


def add_tiles(cohort: Cohort, name: str, tile_keys: Sequence[str], author: str = "") -> Collection:
    """Add tiles at the end of a collection; those that it has stay where they are. Two who add at once both succeed.

    Raises:
        QueryError: there is no such collection, or a tile is unknown on its grid.
        StoreError: the store cannot be written.
    """
    found = load_collection(cohort, name)
    _, tiles = _known_tiles(cohort, tile_keys, [found.grid_id])
    _write(cohort, "add", found.name, tiles, found.grid_id, author)
    after = load_collection(cohort, name)
    if not tiles.keys() <= set(after.tile_keys):
        raise QueryError(f"Somebody else changed the collection {found.name!r} meanwhile.", "Look, and try again.")
    return after


def remove_tiles(cohort: Cohort, name: str, tile_keys: Sequence[str], author: str = "") -> Collection:
    """Take tiles out of a collection, also those that the store no longer has.

    Raises:
        QueryError: there is no such collection, or it does not have a tile.
        StoreError: the store cannot be written.
    """
    found = load_collection(cohort, name)
    ids = dict(zip(found.tile_keys, found.tile_ids.tolist(), strict=True))
    unknown = [key for key in tile_keys if key not in ids]
    if unknown:
        raise QueryError(f"The collection {found.name!r} does not have the tile {unknown[0]}.")
    _write(cohort, "remove", found.name, {key: ids[key] for key in tile_keys}, found.grid_id, author)
    return load_collection(cohort, name)


def rename_collection(cohort: Cohort, name: str, new_name: str, author: str = "") -> Collection:
    """Give a collection another name.

    Raises:
        QueryError: there is no such collection, or another one has the new name.
        StoreError: the store cannot be written.
    """
    found, shown = load_collection(cohort, name), _checked_name(new_name)
    same = same_name(shown) == same_name(found.name)
    if not same and state_after(read_steps(cohort.store, shown)) is not None:
        raise QueryError(f"There is a collection {shown!r} already.", "Choose another name, or delete that one first.")
    tiles = dict(zip(found.tile_keys, found.tile_ids.tolist(), strict=True))
    version = _write(cohort, "save", shown, tiles, found.grid_id, author or found.info.author, found.info.note)
    if not same:
        # Second: what is interrupted here leaves it under both names rather than none.
        _write(cohort, "delete", found.name, {}, found.grid_id, author)
    return load_collection(cohort, shown, version)


def delete_collection(cohort: Cohort, name: str, author: str = "") -> None:
    """Delete a collection; its versions can still be loaded by their ids.

    Raises:
        QueryError: there is no such collection.
        StoreError: the store cannot be written.
    """
    found = load_collection(cohort, name)
    _write(cohort, "delete", found.name, {}, found.grid_id, author)


def collections(cohort: Cohort) -> tuple[CollectionInfo, ...]:
    """The store's collections, sorted by name."""
    steps: dict[str, list[Step]] = {}
    for step in read_steps(cohort.store):
        steps.setdefault(same_name(step.name), []).append(step)
    states = {name: state for name, own in steps.items() if (state := state_after(own)) is not None}
    present: dict[str, set[int]] = {}
    for grid_id in {state.grid_id for state in states.values()}:
        ids = {tile for state in states.values() if state.grid_id == grid_id for tile in state.tiles.values()}
        present[grid_id] = _present(cohort.store, grid_id, ids)
    return tuple(_info(state, steps[name], present[state.grid_id]) for name, state in sorted(states.items()))


def load_collection(cohort: Cohort, name: str, version: str | None = None) -> Collection:
    """Read a collection.

    Args:
        name: in any case.
        version: id of an earlier state; None for the latest.

    Raises:
        QueryError: there is no such collection or version.
    """
    steps = read_steps(cohort.store, name)
    if version is not None:
        known = [step.version for step in steps]
        steps = steps[: known.index(version) + 1] if version in known else []
    state = state_after(steps)
    if state is None and version is not None:
        raise QueryError(f"The collection {name!r} has no version {version!r}.", "Load the latest one.")
    if state is None:
        names = [info.name for info in collections(cohort)]
        raise QueryError(f"There is no collection {name!r}.", nearest_name(name, names))
    present = _present(cohort.store, state.grid_id, state.tiles.values())
    ids = np.fromiter(state.tiles.values(), np.int64, len(state.tiles))
    return Collection(_info(state, steps, present), tuple(state.tiles), ids)


def collection_tiles(cohort: Cohort, collection: Collection) -> TileList:
    """The collection's tiles as they are written and drawn; those that the store no longer has are left out."""
    grid_id, info = collection.grid_id, collection.info
    columns = ["tile_id", "slide_no", "x0", "y0", "extent_px0", "tissue"]
    rows = cohort.store.tile_rows(grid_id, collection.tile_ids.tolist(), columns)
    at = {tile: row for row, tile in enumerate(rows["tile_id"].to_pylist())}
    pairs = zip(collection.tile_ids.tolist(), collection.tile_keys, strict=True)
    kept = [(at[tile], key) for tile, key in pairs if tile in at]
    rows = rows.take(pa.array([row for row, _ in kept], pa.int64()))
    codes = {number: code for code, number in enumerate(cohort.slides["slide_no"].to_pylist())}
    about = told_columns(cohort.slides).take(pa.array([codes[no] for no in rows["slide_no"].to_pylist()], pa.int64()))
    told: dict[str, Any] = {
        "rank": np.arange(1, len(kept) + 1, dtype=np.int32),
        "tile_key": pa.array([key for _, key in kept], pa.string()),
        "slide_id": about["slide_id"],
        **{name: rows[name] for name in ("x0", "y0", "extent_px0", "tissue")},
    }
    told |= slide_columns(about, told)
    words = f"Tiles: {len(kept):,}. Slides: {len(set(about['slide_id'].to_pylist())):,}. {info.note}"
    return TileList(
        table=pa.table(told),
        tile_ids=rows["tile_id"].to_numpy(),
        grid_id=grid_id,
        labels=tuple(map(str, range(1, len(kept) + 1))),
        noun=info.name,
        heading=info.name,
        words=words.strip(),
        _store=cohort.store,
    )


def _checked_name(name: str) -> str:
    shown = unicodedata.normalize("NFC", name).strip()
    if not 1 <= len(shown) <= MOST_NAME_LETTERS:
        raise QueryError(
            f"The name of a collection has 1 to {MOST_NAME_LETTERS} characters, this one has {len(shown)}.",
            "Give another name.",
        )
    # Control characters, halves of pairs, ends of lines and paragraphs.
    if any(unicodedata.category(letter) in {"Cc", "Cs", "Zl", "Zp"} for letter in shown):
        raise QueryError(f"The name {shown!r} holds a control character.", "Give a name on one line.")
    return shown


def _checked_note(note: str) -> str:
    if len(note) > MOST_NOTE_LETTERS:
        raise QueryError(f"A note has at most {MOST_NOTE_LETTERS:,} characters, this one {len(note):,}.", "Shorten it.")
    return note.strip()


def _known_tiles(cohort: Cohort, tile_keys: Sequence[str], grids: Sequence[str] | None) -> tuple[str, dict[str, int]]:
    """The grid that has all of these tiles, and their ids by key, in their order.

    Args:
        grids: that come into question; None for all of the store.
    """
    if isinstance(tile_keys, str):
        raise QueryError("tile_keys is one text, not a list of keys.", "Give a list, such as [key].")
    places = {tile_key(*place): place for place in map(parse_tile_key, tile_keys)}
    if len(places) > MOST_TILES:
        raise QueryError(f"A collection has at most {MOST_TILES:,} tiles, these are {len(places):,}.", "Take fewer.")
    number = dict(zip(cohort.slides["slide_id"].to_pylist(), cohort.slides["slide_no"].to_pylist(), strict=True))
    for key, (slide_id, _, _) in places.items():
        if slide_id not in number:
            raise QueryError(f"There is no slide {slide_id!r} in the store, for tile {key}.")
    by_grid = {
        grid_id: _ids(cohort, grid_id, places)
        for grid_id in dict.fromkeys(table.grid_id for table in cohort.vector_tables)
        if grids is None or grid_id in grids
    }
    fitting = [grid_id for grid_id, tiles in by_grid.items() if len(tiles) == len(places)]
    if len(fitting) == 1:
        return fitting[0], by_grid[fitting[0]]
    if fitting:
        raise QueryError(f"Tiles of {len(fitting)} grids have these keys.", f"Give grid, one of: {', '.join(fitting)}.")
    if not by_grid:
        wanted = "" if grids is None else f" on grid {grids[0]!r}"
        raise QueryError(f"The store holds no vectors{wanted}.", "`histoseek index` makes them.")
    best, tiles = max(by_grid.items(), key=lambda item: len(item[1]))
    absent = [key for key in places if key not in tiles]
    raise QueryError(
        f"The grid {best} has no tile {absent[0]} ({len(absent):,} of {len(places):,} are not there).",
        "All tiles of a collection are of one grid.",
    )


def _ids(cohort: Cohort, grid_id: str, places: dict[str, tuple[str, int, int]]) -> dict[str, int]:
    """Ids of those tiles that some encoder has vectors of on a grid, by key, in their order."""
    by_slide: dict[str, dict[tuple[int, int], str]] = {}
    for key, (slide_id, x0, y0) in places.items():
        by_slide.setdefault(slide_id, {})[x0, y0] = key
    found: dict[str, int] = {}
    for table in cohort.vector_tables:
        if table.grid_id != grid_id or len(found) == len(places):
            continue
        room = cohort.room(table)
        rows, ids = room.rows, room.slides["slide_id"].to_pylist()
        for code, slide_id in enumerate(ids):
            wanted = by_slide.get(slide_id)
            if wanted:
                own = rows.of_slide(code)
                corners = zip(rows.x0[own].tolist(), rows.y0[own].tolist(), strict=True)
                tiles = zip(corners, rows.tile_id[own].tolist(), strict=True)
                found |= {wanted[corner]: tile for corner, tile in tiles if corner in wanted}
    return {key: found[key] for key in places if key in found}


def _present(store: Store, grid_id: str, tile_ids: Iterable[int]) -> set[int]:
    """Which of these tiles the store has."""
    return set(store.tile_rows(grid_id, list(tile_ids), ["tile_id"])["tile_id"].to_pylist())


def _write(
    cohort: Cohort, deed: Deed, name: str, tiles: dict[str, int], grid_id: str, author: str, note: str = ""
) -> str:
    return write_step(cohort.store.uri, deed, name, tiles, grid_id, author.strip(), note)


def _info(state: Step, steps: Sequence[Step], present: set[int]) -> CollectionInfo:
    return CollectionInfo(
        name=state.name,
        grid_id=state.grid_id,
        tiles=len(state.tiles),
        slides=len({tile >> 32 for tile in state.tiles.values()}),
        author=state.author,
        at=state.at,
        note=state.note,
        missing=sum(tile not in present for tile in state.tiles.values()),
        versions=tuple(step.version for step in steps if step.deed != "delete"),
    )
