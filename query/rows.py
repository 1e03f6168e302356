"""The rows of one vectors table in memory: one contiguous matrix and what is known of each tile."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from encoder.errors import QueryError, StoreError
from indexer.schema import split_vectors_name, tiles_table_name
from indexer.store import Store

_BATCH_ROWS = 16_384
_TRIES = 3
_BLOBS = frozenset({"thumb", "image"})
_KEY_BYTES = 40  # tile_id, slide_no, slide_code, x0, y0, extent_px0, tissue, and the scores of a search


@dataclass(frozen=True)
class TileRows:
    """Every searchable tile of one encoder on one grid; all arrays are read-only and row-aligned.

    Attributes:
        encoder_id, grid_id: whose vectors these are.
        matrix: unit vectors, float32 [N, dim].
        tile_id: int64 [N].
        slide_no: int32 [N].
        slide_code: int32 [N], the slide's row in the cohort's slides, which are sorted by id.
        x0, y0, extent_px0: int32 [N], level-0 pixels.
        tissue: share of the tile that is tissue, float32 [N].
        disagreeing: numbers of the slides that are left out because they are being replaced.
    """

    encoder_id: str
    grid_id: str
    matrix: NDArray[np.float32]
    tile_id: NDArray[np.int64]
    slide_no: NDArray[np.int32]
    slide_code: NDArray[np.int32]
    x0: NDArray[np.int32]
    y0: NDArray[np.int32]
    extent_px0: NDArray[np.int32]
    tissue: NDArray[np.float32]
    disagreeing: tuple[int, ...] = ()

    def __len__(self) -> int:
        return int(self.matrix.shape[0])

    @cached_property
    def tiles(self) -> pa.Table:
        """The tile columns that a filter may name."""
        names = ("tile_id", "slide_no", "x0", "y0", "extent_px0", "tissue")
        return pa.table({name: getattr(self, name) for name in names})

    def recoded(self, slides: pa.Table) -> TileRows:
        """The same rows for a changed table of slides, sorted by id."""
        codes = slide_codes(slides)[self.slide_no].astype(np.int32)
        return replace(self, slide_code=codes)

    def of_slide(self, code: int) -> NDArray[np.int64]:
        """Row numbers of one slide."""
        return np.flatnonzero(self.slide_code == code)


def load_rows(
    store: Store, encoder_id: str, grid_id: str, slides: pa.Table, memory_budget: int | None = None
) -> TileRows:
    """Read a vectors table, streamed into one matrix; rows of unfinished slides are left out.

    Args:
        slides: the cohort's slides, sorted by id.
        memory_budget: most bytes to hold; None for half of what is free.

    Raises:
        QueryError: the vectors do not fit the budget.
        StoreError: the table keeps changing while it is read.
    """
    name = store.vectors_table_name(encoder_id, grid_id)
    # A run may commit between the counting and the reading.
    for _ in range(_TRIES):
        finished, disagreeing = finished_rows(store, name)
        rows = _stream(store, name, encoder_id, grid_id, slides, finished, memory_budget)
        if rows is not None:
            return replace(rows, disagreeing=disagreeing)
    raise StoreError(
        f"{store.uri}: {name} changed each of the {_TRIES} times that it was read.",
        fix="Wait for the run that writes it; `histoseek status` shows it.",
    )


def finished_rows(store: Store, name: str) -> tuple[dict[int, int], tuple[int, ...]]:
    """Rows of each finished slide in a vectors table, by slide number, and the slides that disagree.

    A slide disagrees while it is being replaced: its rows are not as many as it finished with. It counts
    as unfinished.
    """
    done = store.read("done", ["table_name", "slide_no", "rows"])
    columns = (done[column].to_pylist() for column in ("table_name", "slide_no", "rows"))
    promised = {slide: rows for table, slide, rows in zip(*columns, strict=True) if table == name and rows}
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


def available_memory() -> int:
    """Bytes that this process may still take: free memory of the machine, or of its control group."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) << 10
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and (text := limit.read_text().strip()).isdigit():
        free = min(free, max(0, int(text) - int(used.read_text())))
    return free


def _stream(
    store: Store,
    name: str,
    encoder_id: str,
    grid_id: str,
    slides: pa.Table,
    promised: dict[int, int],
    memory_budget: int | None,
) -> TileRows | None:
    """The rows of the promised slides; None where their number is not the promised one."""
    dim = store.table_schema(name).field("vector").type.list_size
    total = sum(promised.values())
    _check_budget(total, dim, memory_budget)
    code_of = slide_codes(slides)
    wanted = np.fromiter(promised, np.int64, len(promised))
    if wanted.size and (wanted.max() >= code_of.size or (code_of[wanted] < 0).any()):
        return None
    finished = np.zeros(code_of.size, np.bool_)
    finished[wanted] = True
    matrix = np.empty((total, dim), np.float32)
    kinds = {"tile_id": np.int64, "slide_no": np.int32, "x0": np.int32, "y0": np.int32, "tissue": np.float32}
    columns: dict[str, NDArray] = {key: np.empty(total, kind) for key, kind in kinds.items()}
    filled = 0
    for batch in store.scan(name, [*kinds, "vector"], batch_rows=_BATCH_ROWS):
        slide_no = batch["slide_no"].to_numpy()
        kept = (slide_no < finished.size) & finished[np.minimum(slide_no, finished.size - 1)]
        count = int(np.count_nonzero(kept))
        if filled + count > total:
            return None
        part = slice(filled, filled + count)
        vectors = batch["vector"].flatten().to_numpy(zero_copy_only=True).reshape(-1, dim)
        whole = count == len(kept)
        matrix[part] = vectors if whole else vectors[kept]
        for key, column in columns.items():
            values = batch[key].to_numpy()
            column[part] = values if whole else values[kept]
        filled += count
    if filled != total:
        return None
    columns["slide_code"] = code_of[columns["slide_no"]].astype(np.int32)
    columns["extent_px0"] = _extents(store, grid_id, code_of.size)[columns["slide_no"]]
    for array in (matrix, *columns.values()):
        array.flags.writeable = False
    return TileRows(
        encoder_id=encoder_id,
        grid_id=grid_id,
        matrix=matrix,
        tile_id=columns["tile_id"],
        slide_no=columns["slide_no"],
        slide_code=columns["slide_code"],
        x0=columns["x0"],
        y0=columns["y0"],
        extent_px0=columns["extent_px0"],
        tissue=columns["tissue"],
    )


def _extents(store: Store, grid_id: str, slides: int) -> NDArray[np.int32]:
    """Side of a tile of each slide number, level-0 pixels: one value per slide and grid."""
    extents = np.zeros(slides, np.int32)
    for batch in store.scan(tiles_table_name(grid_id), ["slide_no", "extent_px0"], batch_rows=1 << 18):
        slide_no = batch["slide_no"].to_numpy()
        known = slide_no < slides
        extents[slide_no[known]] = batch["extent_px0"].to_numpy()[known]
    return extents


def slide_codes(slides: pa.Table) -> NDArray[np.int64]:
    """Row in `slides` of each slide number, -1 for a number that no slide has."""
    numbers = slides["slide_no"].to_numpy()
    codes = np.full(int(numbers.max()) + 1 if numbers.size else 1, -1, np.int64)
    codes[numbers] = np.arange(numbers.size)
    return codes


def _check_budget(rows: int, dim: int, memory_budget: int | None) -> None:
    budget = available_memory() // 2 if memory_budget is None else memory_budget
    needed = rows * (4 * dim + _KEY_BYTES)
    if needed > budget:
        raise QueryError(
            f"{rows:,} vectors of {dim} numbers need {needed / 2**30:.2f} GiB of memory, "
            f"the budget is {budget / 2**30:.2f} GiB.",
            fix="Use a machine with more memory, raise memory_budget, or split the cohort into several stores.",
        )
