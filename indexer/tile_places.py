"""Where each tile lies in a grid's table, so that a few of millions are read without looking through all."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from encoder.errors import StoreError
from indexer.tables import Tables

# Sixteen bytes each are held; beyond, the table is looked through.
_MOST_ROWS = 20_000_000
_BATCH_ROWS = 1 << 18


class TilePlaces:
    """Positions of tiles in their table, read anew when it has changed. Safe to use from several threads.

    Looking through the table once costs less than learning where all its tiles lie, so the first question is
    left to that.

    Args:
        tables: of the store.
        name: of the tiles table.
    """

    def __init__(self, tables: Tables, name: str) -> None:
        self._tables, self._name = tables, name
        self._lock = threading.Lock()
        self._asked = 0
        self._known: tuple[object, int, NDArray[np.int64], NDArray[np.int64]] | None = None

    def read(self, tile_ids: Sequence[int], columns: Sequence[str]) -> pa.Table | None:
        """Rows of those tiles that are there, in any order; None where the table has to be looked through.

        Raises:
            StoreError: the table cannot be read.
        """
        for attempt in (1, 2):
            known = self._current()
            if known is None:
                return None
            _, version, ids, offsets = known
            wanted = np.unique(np.asarray(tile_ids, np.int64))
            at = np.minimum(np.searchsorted(ids, wanted), ids.size - 1) if ids.size else np.empty(0, np.int64)
            found = offsets[at[ids[at] == wanted]] if ids.size else at
            try:
                return self._tables.take(self._name, found, columns, version)
            except StoreError:
                if attempt == 2:
                    raise
                self._known = None  # the version was pruned: the next one is read
        return None

    def _current(self) -> tuple[object, int, NDArray[np.int64], NDArray[np.int64]] | None:
        with self._lock:
            (stamp,) = self._tables.stamp([self._name])
            if self._known is not None and self._known[0] == stamp:
                return self._known
            self._asked += 1
            if self._asked == 1 or self._tables.count(self._name) > _MOST_ROWS:
                return None
            version = self._tables.version(self._name)
            batches = self._tables.scan(self._name, ["tile_id"], batch_rows=_BATCH_ROWS, version=version)
            parts = [batch["tile_id"].to_numpy() for batch in batches]
            ids = np.concatenate(parts) if parts else np.empty(0, np.int64)
            order = np.argsort(ids, kind="stable")
            self._known = (stamp, version, ids[order], order)
            return self._known
