"""How collections are kept: steps that are appended as annotations, and what they lead to."""

from __future__ import annotations

import json
import unicodedata
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

import pyarrow.compute as pc

from indexer.store import Store, open_store
from indexer.tables import sql_text

# Annotations whose name begins like this are collections, and no labels.
PREFIX = "collection:"

# The first row of each step says what it does; it stands for no tile.
_HEAD = -1

Deed = Literal["save", "add", "remove", "delete"]


@dataclass(frozen=True)
class Step:
    """One commit: what it does to which collection, and the tiles that it names, ids by key in their order."""

    version: str
    deed: Deed
    name: str
    note: str
    grid_id: str
    author: str
    at: datetime
    tiles: dict[str, int]


def same_name(name: str) -> str:
    """What names share that are equal but for case and the way in which accents are written."""
    return unicodedata.normalize("NFC", name.strip().casefold())


def write_step(uri: str, deed: Deed, name: str, tiles: dict[str, int], grid_id: str, author: str, note: str) -> str:
    """Append a step to a store in one commit; returns the id of its version.

    Args:
        uri: of the store, which is opened for writing.
        deed: `save` replaces the collection, the others change it.
        tiles: ids by key, in their order.

    Raises:
        StoreError: the store cannot be written.
    """
    version = uuid.uuid4().hex
    head = json.dumps({"deed": deed, "name": name, "note": note}, ensure_ascii=False)
    ids = [_HEAD, *tiles.values()]
    slide_nos = [_HEAD, *(tile >> 32 for tile in tiles.values())]
    open_store(uri).annotate(PREFIX + same_name(name), [head, *tiles], slide_nos, ids, grid_id, version, author)
    return version


def read_steps(store: Store, name: str | None = None) -> list[Step]:
    """All steps, or those of one collection, in the order of their commits.

    Raises:
        StoreError: the store cannot be read.
    """
    where = f"name LIKE {sql_text(PREFIX + '%')}" if name is None else f"name = {sql_text(PREFIX + same_name(name))}"
    columns = ["tile_id", "grid_id", "version", "value", "author", "at"]
    rows = store.read("annotations", columns, where)
    # The rows of a commit stay together, its head first.
    is_head = pc.equal(rows["tile_id"], _HEAD)
    steps: dict[str, Step] = {}
    for row in rows.filter(is_head).to_pylist():
        head = json.loads(row["value"])
        steps[row["version"]] = Step(
            row["version"], head["deed"], head["name"], head["note"], row["grid_id"], row["author"], row["at"], {}
        )
    tiles = rows.filter(pc.invert(is_head))
    for version, key, tile in zip(*(tiles[name].to_pylist() for name in ("version", "value", "tile_id")), strict=True):
        if version in steps:  # an annotation that only bears such a name is none
            steps[version].tiles[key] = tile
    return list(steps.values())


def state_after(steps: Iterable[Step]) -> Step | None:
    """What the steps of one collection lead to: the last one with all tiles; None where it is deleted, or never was.

    Adding and removing are steps of their own, so that of two people who do so at once neither undoes the other.
    """
    state: Step | None = None
    for step in steps:
        if step.deed == "delete":
            state = None
        elif step.deed == "save":
            state = step
        elif state is not None and step.grid_id == state.grid_id:
            if step.deed == "add":
                tiles = state.tiles | {key: tile for key, tile in step.tiles.items() if key not in state.tiles}
            else:
                tiles = {key: tile for key, tile in state.tiles.items() if key not in step.tiles}
            author = step.author or state.author
            state = replace(step, name=state.name, note=state.note, author=author, tiles=tiles)
    return state
