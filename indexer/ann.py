"""The vector index that a table carries on disk: making it, its state, what it costs, and searching with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from lancedb.index import Bitmap, BTree, IvfRq, IvfSq
from numpy.typing import NDArray

from encoder.errors import StoreError
from indexer.store import Store

Kind = Literal["ivf-rq", "ivf-sq"]

_COLUMN = "vector"
_METRIC = "cosine"
_ALL = 1 << 20  # partitions; more than any index has
_CONFIGS: dict[Kind, Any] = {"ivf-rq": IvfRq, "ivf-sq": IvfSq}
_KINDS: dict[str, Kind] = {"IvfRq": "ivf-rq", "IvfSq": "ivf-sq"}  # as LanceDB lists them


@dataclass(frozen=True)
class IndexState:
    """A table's vector index as it is now.

    Attributes:
        kind: how its vectors are compressed.
        rows_indexed: rows that it knows.
        rows_unindexed: rows that came later; a search reads all of them beside the index.
        partitions: groups of vectors; a search reads the nearest ones. Of several parts, those of the largest.
        bytes: on disk; None where the store does not tell.
    """

    kind: Kind
    rows_indexed: int
    rows_unindexed: int
    partitions: int
    bytes: int | None


@dataclass(frozen=True)
class Estimate:
    """What making an index takes, rather over than under.

    Attributes:
        memory_bytes: at the most at one time, beside what the process held before.
        disk_bytes: while it is made: the index and what is spilled.
        seconds: on two cores.
    """

    memory_bytes: int
    disk_bytes: int
    seconds: float


@dataclass(frozen=True)
class Neighbours:
    """Rows near to a vector, in the order of their estimated distance.

    Attributes:
        tile_id: int64 [m].
        vectors: float32 [m, dim], unit length, as stored.
    """

    tile_id: NDArray[np.int64]
    vectors: NDArray[np.float32]


def index_state(store: Store, table_name: str) -> IndexState | None:
    """State of a table's vector index; None where it has none that `nearest` can use.

    An index for another metric, or of another kind, counts as none: LanceDB would read the whole table
    instead of it without a word.
    """
    found = _vector_index(store, table_name)
    if found is None:
        return None
    return IndexState(
        _KINDS[found.index_type],
        int(found.num_indexed_rows or 0),
        int(found.num_unindexed_rows or 0),
        store.lance.partitions(table_name, found.name),
        None if found.size_bytes is None else int(found.size_bytes),
    )


def create_index(store: Store, table_name: str, kind: Kind, partitions: int | None = None) -> IndexState:
    """Make a table's vector index and those that filters use, in the place of any that it has.

    Each of the three is one commit. A crash leaves the former index or the new one, and a search that finds
    neither compares every row.

    Args:
        store: opened for writing.
        table_name: a vectors table with rows.
        kind: how the vectors are compressed.
        partitions: groups of vectors; LanceDB's choice, a few thousand rows each, by default.

    Raises:
        StoreError: the table has no rows, its vectors do not suit the kind, or it could not be written.
    """
    rows = store.count(table_name)
    if not rows:
        raise StoreError(f"The table {table_name} has no rows to index.", fix="Index slides first.")
    dim = store.table_schema(table_name).field(_COLUMN).type.list_size
    if kind == "ivf-rq" and dim % 8:
        raise StoreError(
            f"The index ivf-rq packs eight numbers into a byte, and the vectors of {table_name} have {dim}.",
            fix="Use ivf-sq.",
        )
    wanted = None if partitions is None else min(partitions, rows)
    config = _CONFIGS[kind](distance_type=_METRIC, num_partitions=wanted)
    store.lance.create_index("indexed", table_name, _COLUMN, config)
    # With 20,000 slides of 50 tiles a bitmap is smaller than a tree (2.7 against 4.2 MB), and finds the rows of
    # 50 slides in 3.0 ms (a tree: 4.0, no index: 13) and of 1,000 in 9.3 ms (13.1, 17.6).
    store.lance.create_index("indexed", table_name, "slide_no", Bitmap())
    store.lance.create_index("indexed", table_name, "tile_id", BTree())
    state = index_state(store, table_name)
    if state is None:
        raise StoreError(f"The index of {table_name} was made and is not there.", fix="Make it again.")
    return state


def estimate(rows: int, dim: int, kind: Kind) -> Estimate:
    """What `create_index` takes for a table.

    Args:
        rows: of the table.
        dim: length of a vector.
        kind: of the index.
    """
    # Measured on clustered vectors of 384 numbers, two cores that had other work too:
    #   ivf-rq  200,000 rows: 0.21 GB,  5.8 s, index  13.0 MB, spilled  12.9 MB
    #         1,000,000 rows: 0.53 GB, 61.6 s, index  65.8 MB, spilled  64.8 MB
    #   ivf-sq  200,000 rows: 0.36 GB, 10.7 s, index  77.8 MB, spilled  77.8 MB
    #         1,000,000 rows: 0.71 GB, 34.4 s, index 389.3 MB, spilled 389.2 MB
    # Training grows with the square of the rows: both its sample and the partitions grow with them.
    bits, pass_seconds, training_seconds = {"ivf-rq": (1, 25.0, 45.0), "ivf-sq": (8, 55.0, 10.0)}[kind]
    millions = rows / 1e6
    spilled = rows * (dim * bits / 8 + 20)
    return Estimate(
        memory_bytes=int(300e6 + 1.25 * rows * dim),
        disk_bytes=int(2 * spilled + 16 * rows) + (1 << 20),
        seconds=1 + (pass_seconds * millions + training_seconds * millions**2) * dim / 384,
    )


def nearest(
    store: Store,
    table_name: str,
    vector: NDArray[np.float32],
    count: int,
    nprobes: int | None,
    refine: int,
    where: str | None,
    version: int | None = None,
) -> Neighbours:
    """Rows near to a vector by the table's index, and by comparison with every row that it does not know.

    Without an index, or with one for another metric, every row is compared: right and slow.

    Args:
        store: that holds the table.
        table_name: a vectors table.
        vector: [dim], of any length but zero.
        count: rows wanted, at least one; fewer come only where fewer match.
        nprobes: partitions to read at least, more where they hold fewer than `count` matches; None for all.
        refine: times `count` rows are ranked by their true vectors, and the best are kept; at least one.
        where: filter in SQL over the table's columns, applied before the search.
        version: of the table; the latest by default.

    Raises:
        StoreError: there is no such table, or its version is gone.
    """
    # `nprobes` would be a limit too: a filter whose rows lie in other partitions would find fewer than exist.
    probes = _ALL if nprobes is None else nprobes
    query = {"column": _COLUMN, "q": vector, "k": count, "metric": _METRIC}
    query |= {"minimum_nprobes": probes, "refine_factor": refine}
    # The estimated distance is asked for since leaving it out makes Lance write a warning each time.
    rows = store.lance.nearest(table_name, query, ["tile_id", _COLUMN, "_distance"], where, version)
    vectors = rows[_COLUMN].combine_chunks().flatten().to_numpy().reshape(-1, len(vector))
    return Neighbours(rows["tile_id"].to_numpy(), vectors)


def _vector_index(store: Store, table_name: str) -> Any | None:
    for found in store.lance.indices(table_name):
        metric = str((found.index_details or {}).get("metric_type", "")).lower()
        if found.columns == [_COLUMN] and found.index_type in _KINDS and metric == _METRIC:
            return found
    return None
