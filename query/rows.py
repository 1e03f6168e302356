"""The searchable rows of one vectors table: what is known of each tile, and its vectors on disk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from indexer.grid import tile_key
from indexer.schema import split_vectors_name, tiles_table_name
from indexer.store import Store
from query.engines.contract import Places
from query.engines.side_by_side import parts_at_a_time, side_by_side

# Measured: in blocks twice or four times as large a table of few large files is read a seventh or a quarter slower.
_BLOCK_BYTES = 3 << 20
_PART_BLOCKS = 8  # a shorter part is read before its thread is well under way
_KEY_BATCH_ROWS = 1 << 18
_BLOBS = frozenset({"thumb", "image"})


@dataclass(frozen=True)
class TileRows:
    """Every searchable tile of one encoder on one grid; all arrays are read-only and row-aligned.

    Attributes:
        encoder_id, grid_id: whose vectors these are.
        version: of the vectors table.
        dim: length of a vector.
        tile_id: int64 [N].
        slide_no: int32 [N].
        slide_code: int32 [N], the slide's row in the cohort's slides, which are sorted by id.
        x0, y0, extent_px0: int32 [N], level-0 pixels.
        tissue: share of the tile that is tissue, float32 [N].
        table_rows: of the table, also those that are not searchable.
        positions: of the rows in the table, int64 [N]; None where they are all of its rows.
        disagreeing: numbers of the slides that are left out because they are being replaced.
    """

    encoder_id: str
    grid_id: str
    version: int
    dim: int
    tile_id: NDArray[np.int64]
    slide_no: NDArray[np.int32]
    slide_code: NDArray[np.int32]
    x0: NDArray[np.int32]
    y0: NDArray[np.int32]
    extent_px0: NDArray[np.int32]
    tissue: NDArray[np.float32]
    table_rows: int
    positions: NDArray[np.int64] | None = None
    disagreeing: tuple[int, ...] = ()

    def __len__(self) -> int:
        return int(self.tile_id.size)

    @cached_property
    def tiles(self) -> pa.Table:
        """The tile columns that a filter may name."""
        names = ("tile_id", "slide_no", "x0", "y0", "extent_px0", "tissue")
        return pa.table({name: getattr(self, name) for name in names})

    @cached_property
    def places(self) -> Places:
        """What orders rows at equal distances."""
        return Places(self.slide_code, self.y0, self.x0)

    @cached_property
    def _by_tile(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        order = np.argsort(self.tile_id)
        return self.tile_id[order], order

    def row_of(self, tile_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Row numbers of tile ids, -1 for those that are not searchable."""
        if not len(self):
            return np.full(tile_ids.size, -1, np.int64)
        ordered, order = self._by_tile
        at = np.minimum(np.searchsorted(ordered, tile_ids), ordered.size - 1)
        return np.where(ordered[at] == tile_ids, order[at], -1)

    def recoded(self, slides: pa.Table) -> TileRows:
        """The same rows for a changed table of slides, sorted by id."""
        codes = slide_codes(slides)[self.slide_no].astype(np.int32)
        return replace(self, slide_code=codes)

    @cached_property
    def _by_slide(self) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        order = np.argsort(self.slide_code, kind="stable")
        return order, self.slide_code[order]

    @cached_property
    def slides_present(self) -> NDArray[np.int32]:
        """Codes of the slides that have a row, ascending."""
        return np.unique(self.slide_code)

    def of_slide(self, code: int) -> NDArray[np.int64]:
        """Row numbers of one slide, ascending."""
        order, codes = self._by_slide
        first, last = np.searchsorted(codes, [code, code + 1])
        return order[first:last]


class TableVectors:
    """The vectors of some rows, read from the table's version that the rows were read from.

    Args:
        store: that holds the table.
        rows: whose vectors these are.
    """

    def __init__(self, store: Store, rows: TileRows) -> None:
        self._store, self._version = store, rows.version
        self._name = store.vectors_table_name(rows.encoder_id, rows.grid_id)
        self._positions, self._count, self._table_rows = rows.positions, len(rows), rows.table_rows
        self.dim = rows.dim
        self._block_rows = max(1, _BLOCK_BYTES // (4 * rows.dim))

    def __len__(self) -> int:
        return self._count

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """All vectors in the order of the rows, some [m, dim] at a time; read-only.

        Raises:
            StoreError: the version is gone.
        """
        for part in self.parts(1):
            for _, block in part:
                yield block

    def parts(self, most: int) -> list[Iterator[tuple[int, NDArray[np.float32]]]]:
        """All vectors in at most `most` parts of the table, which threads may read side by side.

        Returns:
            Parts that give, some rows at a time, the number of the first and their vectors [m, dim], read-only.

        Raises:
            StoreError: the version is gone.
        """
        count = max(1, min(most, self._table_rows // (_PART_BLOCKS * self._block_rows)))
        cuts = [self._table_rows * part // count for part in range(count + 1)]
        return [self._part(*ends, whole=count == 1) for ends in pairwise(cuts)]

    def _part(self, start: int, end: int, whole: bool) -> Iterator[tuple[int, NDArray[np.float32]]]:
        between = None if whole else (start, end)
        for batch in self._store.scan(self._name, ["vector"], None, self._block_rows, self._version, between):
            block = _matrix_of(batch["vector"], self.dim)
            first, start = start, start + len(block)
            if self._positions is not None:
                low, high = np.searchsorted(self._positions, (first, start))
                if high - low < len(block):
                    block = block[self._positions[low:high] - first]
                first = int(low)
            yield first, block

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Vectors of some rows, in their order [m, dim].

        Raises:
            StoreError: the version is gone.
        """
        offsets = rows if self._positions is None else self._positions[rows]
        table = self._store.lance.take(self._name, offsets, ["vector"], self._version)
        out = np.empty((len(rows), self.dim), np.float32)
        filled = 0
        for chunk in table["vector"].chunks:
            out[filled : filled + len(chunk)] = _matrix_of(chunk, self.dim)
            filled += len(chunk)
        return out

    def load(self) -> NDArray[np.float32]:
        """All vectors in one matrix, float32 [N, dim], read-only.

        Raises:
            StoreError: the version is gone.
        """
        matrix = np.empty((self._count, self.dim), np.float32)

        def copy(part: Iterator[tuple[int, NDArray[np.float32]]]) -> None:
            for first, block in part:
                matrix[first : first + len(block)] = block

        side_by_side(copy, self.parts(parts_at_a_time()))
        matrix.flags.writeable = False
        return matrix


def load_rows(store: Store, encoder_id: str, grid_id: str, slides: pa.Table, promised: dict[int, int]) -> TileRows:
    """Read what is known of each tile of a vectors table; rows of unfinished slides are left out.

    Args:
        slides: the cohort's slides, sorted by id; rows of other slides are left out.
        promised: what `promised_rows` gave, before.

    Raises:
        StoreError: there is no such table.
    """
    name = store.vectors_table_name(encoder_id, grid_id)
    version = store.table_version(name)
    kinds = {"tile_id": np.int64, "slide_no": np.int32, "x0": np.int32, "y0": np.int32, "tissue": np.float32}
    read: dict[str, list[NDArray]] = {key: [np.empty(0, kind)] for key, kind in kinds.items()}
    for batch in store.scan(name, list(kinds), batch_rows=_KEY_BATCH_ROWS, version=version):
        for key, parts in read.items():
            parts.append(batch[key].to_numpy())
    columns: dict[str, Any] = {key: np.concatenate(parts) for key, parts in read.items()}
    code_of = slide_codes(slides)
    slide_no = columns["slide_no"]
    table_rows = slide_no.size
    held = np.bincount(slide_no, minlength=code_of.size)
    known = {number: rows for number, rows in promised.items() if number < code_of.size and code_of[number] >= 0}
    # What was promised was read before the rows: a slide that is being replaced has another number of rows now.
    finished = np.zeros(held.size, np.bool_)
    finished[[number for number, rows in known.items() if held[number] == rows]] = True
    disagreeing = tuple(sorted(number for number in known if not finished[number]))
    kept = finished[slide_no]
    positions = None if kept.all() else np.flatnonzero(kept)
    if positions is not None:
        columns = {key: column[positions] for key, column in columns.items()}
    columns["slide_code"] = code_of[columns["slide_no"]].astype(np.int32)
    columns["extent_px0"] = _extents(store, grid_id, code_of.size)[columns["slide_no"]]
    for array in columns.values():
        array.flags.writeable = False
    dim = store.table_schema(name).field("vector").type.list_size
    return TileRows(
        encoder_id=encoder_id,
        grid_id=grid_id,
        version=version,
        dim=dim,
        table_rows=table_rows,
        positions=positions,
        disagreeing=disagreeing,
        **columns,
    )


def promised_rows(store: Store, name: str) -> dict[int, int]:
    """Rows that each finished slide has in a vectors table, by slide number; slides without any are left out."""
    done = store.read("done", ["table_name", "slide_no", "rows"])
    columns = (done[column].to_pylist() for column in ("table_name", "slide_no", "rows"))
    return {slide: rows for table, slide, rows in zip(*columns, strict=True) if table == name and rows}


def finished_rows(store: Store, name: str) -> tuple[dict[int, int], tuple[int, ...]]:
    """Rows of each finished slide in a vectors table, by slide number, and the slides that disagree.

    A slide disagrees while it is being replaced: its rows are not as many as it finished with. It counts
    as unfinished.
    """
    promised = promised_rows(store, name)
    held = store.rows_per_slide(name)
    finished = {slide: rows for slide, rows in promised.items() if held.get(slide) == rows}
    return finished, tuple(sorted(promised.keys() - finished.keys()))


def finished_tiles(store: Store, grid_id: str) -> pa.Table:
    """Tiles of the slides that some encoder has finished on a grid, without pictures."""
    name = tiles_table_name(grid_id)
    done = store.read("done", ["table_name", "slide_no"]).to_pylist()
    finished = {row["slide_no"] for row in done if (split_vectors_name(row["table_name"]) or ("", ""))[1] == grid_id}
    tiles = store.read(name, [column for column in store.table_schema(name).names if column not in _BLOBS])
    return tiles.filter(pc.is_in(tiles["slide_no"], value_set=pa.array(sorted(finished), pa.int32())))


def _matrix_of(vectors: pa.FixedSizeListArray, dim: int) -> NDArray[np.float32]:
    """A view of Arrow's vectors, float32 [m, dim], read-only."""
    # Arrow's `flatten` gives the same, four times slower.
    first = vectors.offset
    return vectors.values.to_numpy(zero_copy_only=True).reshape(-1, dim)[first : first + len(vectors)]


def _extents(store: Store, grid_id: str, slides: int) -> NDArray[np.int32]:
    """Side of a tile of each slide number, level-0 pixels: one value per slide and grid."""
    extents = np.zeros(slides, np.int32)
    for batch in store.scan(tiles_table_name(grid_id), ["slide_no", "extent_px0"], batch_rows=1 << 18):
        slide_no = batch["slide_no"].to_numpy()
        known = slide_no < slides
        extents[slide_no[known]] = batch["extent_px0"].to_numpy()[known]
    return extents


def tile_keys(rows: TileRows, slides: pa.Table, chosen: NDArray[np.int64]) -> tuple[str, ...]:
    """Text keys of some rows, int64 [m], in their order; `slides` are those that the rows' codes count."""
    names = slides["slide_id"].to_pylist()
    places = zip(rows.slide_code[chosen].tolist(), rows.x0[chosen].tolist(), rows.y0[chosen].tolist(), strict=True)
    return tuple(tile_key(names[code], x0, y0) for code, x0, y0 in places)


def slide_codes(slides: pa.Table) -> NDArray[np.int64]:
    """Row in `slides` of each slide number, -1 for a number that no slide has."""
    numbers = slides["slide_no"].to_numpy()
    codes = np.full(int(numbers.max()) + 1 if numbers.size else 1, -1, np.int64)
    codes[numbers] = np.arange(numbers.size)
    return codes
