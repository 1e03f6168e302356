"""The LanceDB tables behind a store: the one place that opens, reads and commits them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
from numpy.typing import NDArray

from encoder.errors import StoreError
from indexer.compaction import bytes_to_write, compactions
from indexer.connection import Connection, is_local, plain_path
from indexer.schema import FIXED_TABLES
from indexer.table_files import count_versions, folder_bytes, table_folder

__all__ = ["Tables", "is_local", "local_folder_state", "plain_path", "sql_in", "sql_text"]

# What a scan of a local table reads ahead for each core that it is to keep busy. Measured: with Lance's own settings,
# made for stores far away, a pass on two cores takes up to a sixth longer, as its memory is always new.
_AHEAD = {"fragment_readahead": 2, "batch_readahead": 1, "io_buffer_size": 16 << 20}
_PART_CORES = 2


@cache
def _cores() -> int:
    return os.cpu_count() or 1


class Tables(Connection):
    """Named LanceDB tables at one place; every read sees the latest version unless it names another.

    Args:
        uri: local directory or object-store URI.
        read_only: whether a commit is an error.
        on_commit: called with a commit's name after each commit.
    """

    def names(self) -> list[str]:
        """Names of the tables, sorted."""
        names: list[str] = []
        page: str | None = None
        while True:
            try:
                answer = self._db.list_tables(page_token=page, limit=1000)
            except (OSError, RuntimeError, ValueError) as error:
                raise StoreError(f"The tables of the store {self.uri} could not be listed: {error}") from error
            names += answer.tables
            page = answer.page_token
            if not page:
                return sorted(names)

    def has(self, name: str) -> bool:
        """Whether there is a table (a killed creation may leave a folder that is none).

        Raises:
            StoreError: there is one, and it is damaged.
        """
        return self._opened(name) is not None

    def version(self, name: str) -> int:
        """Latest version of a table; 0 where it does not exist."""
        if not self.has(name):
            return 0
        with self._reading(name):
            return int(self._handle(name).version)

    def schema(self, name: str) -> pa.Schema:
        """Schema of a table; the declared one for a fixed table that does not exist yet."""
        if name in FIXED_TABLES and not self.has(name):
            return FIXED_TABLES[name]
        with self._reading(name):
            return self._handle(name).schema

    def count(self, name: str, where: str | None = None) -> int:
        """Rows of a table that match a filter; 0 where the table does not exist."""
        if not self.has(name):
            return 0
        with self._reading(name):
            return int(self._handle(name).count_rows(where))

    def scan(
        self,
        name: str,
        columns: Sequence[str] | None = None,
        where: str | None = None,
        batch_rows: int = 8192,
        version: int | None = None,
        between: tuple[int, int] | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """Stream a table's rows in the order of their commits, at most `batch_rows` at a time.

        Args:
            name: of the table.
            columns: to read; all by default.
            where: filter in SQL.
            batch_rows: rows per batch at most.
            version: of the table; the latest by default. Rows of one version always come in the same order.
            between: positions in that order of the first row and after the last; all rows by default. Threads may read
                parts of a table side by side. It takes a version and no filter.

        Raises:
            StoreError: there is no such table, or its version is gone.
        """
        if between is not None and (version is None or where is not None):
            raise ValueError("Rows have positions in one version of the table, without a filter.")
        if name in FIXED_TABLES and not self.has(name):
            return
        with self._reading(name):
            if version is None:
                yield from self._query(name, columns, where).to_batches(batch_rows)
                return
        with self._reading(name, version):
            asked: dict[str, Any] = {"filter": where, "batch_size": batch_rows}
            if is_local(self.uri):
                cores = _PART_CORES if between is not None else max(_PART_CORES, _cores())
                asked |= {option: cores * each for option, each in _AHEAD.items()}
            if between is not None:
                asked |= {"offset": between[0], "limit": between[1] - between[0]}
            yield from self._pinned.scanner(name, version, columns, **asked).to_batches()

    def take(
        self,
        name: str,
        offsets: Sequence[int] | NDArray[np.int64],
        columns: Sequence[str] | None,
        version: int,
    ) -> pa.Table:
        """Read rows by their positions in the order of `scan(version=version)`.

        Args:
            name: of the table.
            offsets: positions [n] in that order, in any order, also repeated.
            columns: to read; None for all.
            version: of the table.

        Returns:
            The n rows in the asked order.

        Raises:
            StoreError: there is no such table, row or version.
        """
        with self._reading(name, version):
            dataset = self._pinned.dataset(name, version)
            wanted = dataset.schema.names if columns is None else list(columns)
            places = np.asarray(offsets, np.int64)
            if not places.size:
                return pa.schema([dataset.schema.field(column) for column in wanted]).empty_table()
            # Ascending and without repetitions, neighbours are read in one go.
            ascending, back = np.unique(places, return_inverse=True)
            for row in (int(ascending[0]), int(ascending[-1])):
                if not 0 <= row < dataset.count_rows():
                    raise StoreError(f"The table {name} has no row {row}: it has {dataset.count_rows()}.")
            rows = dataset.take(pa.array(ascending), columns=wanted)
            return rows if np.array_equal(ascending, places) else rows.take(pa.array(back))

    def dataset(self, name: str) -> pads.Dataset:
        """The latest version of a table as a dataset that takes columns and filters along.

        Raises:
            StoreError: there is no such table.
        """
        if name in FIXED_TABLES and not self.has(name):
            return pads.dataset(FIXED_TABLES[name].empty_table())
        with self._reading(name):
            return self._pinned.dataset(name, self._pinned.version(name))

    def mark(self, name: str) -> tuple[int, int]:
        """What changes when a table is made anew at its place, and at other times: cheaper to read than its rows."""
        with self._reading(name):
            return self._pinned.mark(name)

    def stamp(self, names: Sequence[str]) -> tuple[tuple[int, int], ...]:
        """What changes whenever one of the tables gets a new version; microseconds where none lately did.

        Args:
            names: of the tables; one that does not exist counts too.
        """
        with self._reading(", ".join(names)):
            return self._pinned.stamp(names)

    def bytes_on_disk(self, name: str) -> int | None:
        """Bytes of a table's files with all its versions and indexes; None for an object store."""
        return folder_bytes(table_folder(Path(self.uri), name)) if is_local(self.uri) else None

    def versions_count(self, name: str) -> int:
        """Versions that a table keeps; 0 where it does not exist."""
        if is_local(self.uri):  # counting files is a thousand times faster than reading them
            return count_versions(Path(self.uri), name)
        with self._reading(name):
            return len(self._handle(name).list_versions()) if self.has(name) else 0

    def fragments_count(self, name: str) -> int:
        """Files that a table's rows lie in, of its latest version; 0 where it does not exist."""
        if not self.has(name):
            return 0
        with self._reading(name):
            return len(self._latest(name).get_fragments())

    def indices(self, name: str) -> list[Any]:
        """LanceDB's descriptions of a table's indexes; none where it does not exist."""
        if not self.has(name):
            return []
        with self._reading(name):
            return list(self._handle(name).list_indices())

    def partitions(self, name: str, index: str) -> int:
        """Partitions of a vector index; of one with several parts, those of the largest."""
        with self._reading(name):
            parts = self._latest(name).stats.index_stats(index)["indices"]
            return max(int(part["num_partitions"]) for part in parts)

    def create_index(self, point: str, name: str, column: str, config: Any) -> None:
        """Make an index over a column, or make it anew, in one commit; `config` is one of LanceDB's."""
        self._refuse_if_read_only()
        with self._writing(name):
            self._handle(name).create_index(column, config=config, replace=True)
        self._committed(point)

    def nearest(
        self, name: str, query: dict[str, Any], columns: Sequence[str], where: str | None, version: int | None = None
    ) -> pa.Table:
        """Rows nearest to a vector by the table's index, in the order of their estimated distance.

        Args:
            name: of the table.
            query: Lance's description of the search: column, q, k, metric and so on.
            columns: to read.
            where: filter in SQL, applied before the search.
            version: of the table; the latest by default.

        Raises:
            StoreError: there is no such table, or its version is gone.
        """
        with self._reading(name, version):
            dataset = self._latest(name) if version is None else self._pinned.dataset(name, version)
            return dataset.scanner(columns=list(columns), nearest=query, filter=where, prefilter=True).to_table()

    def optimize_bytes(self, name: str) -> int:
        """Bytes that `optimize` may need beside the table, rather over than under; 0 where it has nothing to do."""
        with self._reading(name):
            dataset = self._latest(name)
            idle = not self._stale(name) and not compactions(dataset)
            return 0 if idle else bytes_to_write(dataset, self.indices(name))

    def optimize(self, name: str) -> bool:
        """Add the rows that its indexes do not know yet to them, and join small files.

        The order of the rows stays, and readers of the version before are not disturbed. Each step is one
        commit: what ends it leaves the steps before.

        Returns:
            Whether there was anything to do; if not, the table keeps its version.

        Raises:
            StoreError: the table could not be written, or the store was opened for reading only.
        """
        self._refuse_if_read_only()
        # Indexes first: Lance joins only files that the same part of an index covers.
        stale = self._stale(name)
        for index in stale:
            with self._writing(name):
                merged = {"index_names": [index.name], "num_indices_to_merge": index.num_segments or 1}
                self._latest(name).optimize.optimize_indices(**merged)
            self._committed("indexed")
        with self._writing(name):
            joined = self._latest(name).optimize.compact_files().fragments_removed
        if joined:
            self._committed("compacted")
        return bool(stale or joined)

    def prune(self, name: str, older_than: timedelta, delete_unverified: bool = False) -> tuple[int, int]:
        """Remove versions, and the files that no other version needs; the latest and tagged ones stay.

        Args:
            name: of the table.
            older_than: age from which a version goes.
            delete_unverified: also remove young files that belong to no version, as a killed write leaves
                them. A write that is under way looks the same: only where there can be none.

        Returns:
            Bytes and versions removed.

        Raises:
            StoreError: the table could not be written, or the store was opened for reading only.
        """
        self._refuse_if_read_only()
        # Lance takes an age of nothing for no age given, and that for two weeks.
        age = max(older_than, timedelta(microseconds=1))
        with self._writing(name):
            removed = self._latest(name).cleanup_old_versions(
                age, delete_unverified=delete_unverified, error_if_tagged_old_versions=False
            )
        return int(removed.bytes_removed), int(removed.old_versions)

    def read(self, name: str, columns: Sequence[str] | None = None, where: str | None = None) -> pa.Table:
        """Read a table's rows in the order of their commits.

        Raises:
            StoreError: there is no such table.
        """
        if name in FIXED_TABLES and not self.has(name):
            schema = FIXED_TABLES[name]
            return schema.empty_table().select(list(columns or schema.names))
        with self._reading(name):
            return self._query(name, columns, where).to_arrow()

    def create(self, name: str, schema: pa.Schema) -> None:
        """Create an empty table where there is none."""
        self._refuse_if_read_only()
        if not self.has(name):
            with self._writing(name):
                self._db.create_table(name, schema=schema, exist_ok=True)

    def append(self, point: str, name: str, rows: pa.Table | pa.RecordBatchReader) -> None:
        """Append rows in one commit; `point` names the commit for `on_commit`."""
        self._refuse_if_read_only()
        with self._writing(name):
            self._handle(name).add(rows)
        self._committed(point)

    def upsert(
        self,
        point: str,
        name: str,
        keys: Sequence[str],
        rows: pa.Table,
    ) -> None:
        """Update the rows with the same keys and insert the others, in one commit.

        A merge reads the whole table: for small tables only.

        Args:
            point: name of the commit for `on_commit`.
            name: of the table.
            keys: columns that identify a row.
            rows: full rows; keys must not repeat among them.
        """
        self._refuse_if_read_only()
        with self._writing(name):
            merge = self._handle(name).merge_insert(list(keys))
            merge.when_matched_update_all().when_not_matched_insert_all().execute(rows)
        self._committed(point)

    def update_columns(self, point: str, name: str, key: str, rows: pa.Table) -> None:
        """Set the columns of `rows` in the rows with the same key, in one commit; no row is added."""
        self._refuse_if_read_only()
        with self._writing(name):
            self._handle(name).merge_insert(key).when_matched_update_all().execute(rows)
        self._committed(point)

    def add_columns(self, point: str, name: str, fields: Iterable[pa.Field]) -> None:
        """Add nullable columns, filled with null, in one commit."""
        self._refuse_if_read_only()
        with self._writing(name):
            self._handle(name).add_columns(pa.schema(list(fields)))
        self._committed(point)

    def delete(self, point: str, name: str, where: str) -> None:
        """Delete the rows that match, in one commit; no commit where none does."""
        self._refuse_if_read_only()
        if self.count(name, where):  # an empty delete would still make a version
            with self._writing(name):
                self._handle(name).delete(where)
            self._committed(point)

    def _stale(self, name: str) -> list[Any]:
        """Indexes with rows to add or parts to merge; any other would be written anew for nothing."""
        return [i for i in self.indices(name) if i.num_unindexed_rows or (i.num_segments or 1) > 1]

    def _query(self, name: str, columns: Sequence[str] | None, where: str | None) -> Any:
        query = self._handle(name).search()
        if columns is not None:
            query = query.select(list(columns))
        return query if where is None else query.where(where)


def local_folder_state(uri: str) -> str:
    """State of a local store directory: `absent`, `empty` or `used`.

    Raises:
        StoreError: the path is a file.
    """
    folder = Path(uri)
    if not folder.exists():
        return "absent"
    if not folder.is_dir():
        raise StoreError(f"{uri} is a file, not a store.", fix="Name the folder that holds the store.")
    return "used" if any(folder.iterdir()) else "empty"


def sql_text(value: str) -> str:
    """Quote a text for a filter."""
    return "'" + value.replace("'", "''") + "'"


def sql_in(column: str, values: Iterable[int] | Iterable[str]) -> str:
    """Filter for the rows whose column is one of the values; at least one is needed."""
    items = ", ".join(sql_text(v) if isinstance(v, str) else str(int(v)) for v in values)
    return f"{column} IN ({items})"
