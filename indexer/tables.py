"""The LanceDB tables behind a store: the one place that opens, reads and commits them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import lancedb
import pyarrow as pa

from encoder.errors import StoreError
from indexer.schema import FIXED_TABLES

# LanceDB's own limits are gigabytes; a store is read in streams and needs little of either.
_INDEX_CACHE_BYTES = 256 << 20
_METADATA_CACHE_BYTES = 128 << 20


class Tables:
    """Named LanceDB tables at one place; every read sees the latest version.

    Args:
        uri: local directory or object-store URI.
        read_only: whether a commit is an error.
        on_commit: called with a commit's name after each commit.
    """

    def __init__(self, uri: str, read_only: bool, on_commit: Callable[[str], None] | None = None) -> None:
        self.uri = uri
        self.read_only = read_only
        self._on_commit = on_commit
        session = lancedb.Session(
            index_cache_size_bytes=_INDEX_CACHE_BYTES, metadata_cache_size_bytes=_METADATA_CACHE_BYTES
        )
        # Without the interval a handle opened earlier does not see another writer's rows.
        self._db = lancedb.connect(uri, read_consistency_interval=timedelta(0), session=session)
        self._handles: dict[str, Any] = {}
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        """Names of the tables, sorted."""
        names: list[str] = []
        page: str | None = None
        while True:
            answer = self._db.list_tables(page_token=page, limit=1000)
            names += answer.tables
            page = answer.page_token
            if not page:
                return sorted(names)

    def has(self, name: str) -> bool:
        """Whether a table can be opened (a killed creation may leave a folder that cannot)."""
        try:
            self._handle(name)
        except StoreError:
            return False
        return True

    def version(self, name: str) -> int:
        """Latest version of a table; 0 where it does not exist."""
        return int(self._handle(name).version) if self.has(name) else 0

    def schema(self, name: str) -> pa.Schema:
        """Schema of a table; the declared one for a fixed table that does not exist yet."""
        if name in FIXED_TABLES and not self.has(name):
            return FIXED_TABLES[name]
        return self._handle(name).schema

    def count(self, name: str, where: str | None = None) -> int:
        """Rows of a table that match a filter; 0 where the table does not exist."""
        return int(self._handle(name).count_rows(where)) if self.has(name) else 0

    def scan(
        self,
        name: str,
        columns: Sequence[str] | None = None,
        where: str | None = None,
        batch_rows: int = 8192,
    ) -> Iterator[pa.RecordBatch]:
        """Stream a table's rows in the order of their commits, at most `batch_rows` at a time.

        Raises:
            StoreError: there is no such table.
        """
        if name in FIXED_TABLES and not self.has(name):
            return
        with self._reading(name):
            yield from self._query(name, columns, where).to_batches(batch_rows)

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
        rows: pa.Table | pa.RecordBatchReader,
        replaces: str | None = None,
    ) -> None:
        """Update the rows with the same keys and insert the others, in one commit.

        Args:
            point: name of the commit for `on_commit`.
            name: of the table.
            keys: columns that identify a row.
            rows: full rows; keys must not repeat among them.
            replaces: filter of the rows to be deleted where they are not among `rows`.
        """
        self._refuse_if_read_only()
        merge = self._handle(name).merge_insert(list(keys))
        merge = merge.when_matched_update_all().when_not_matched_insert_all()
        if replaces is not None:
            merge = merge.when_not_matched_by_source_delete(replaces)
        with self._writing(name):
            merge.execute(rows)
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

    def _query(self, name: str, columns: Sequence[str] | None, where: str | None) -> Any:
        query = self._handle(name).search()
        if columns is not None:
            query = query.select(list(columns))
        return query if where is None else query.where(where)

    def _handle(self, name: str) -> Any:
        with self._lock:
            if name not in self._handles:
                try:
                    self._handles[name] = self._db.open_table(name)
                except ValueError as error:
                    raise StoreError(f"The store {self.uri} has no table {name}.") from error
            return self._handles[name]

    @contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError, ValueError) as error:
            raise StoreError(
                f"The table {name} of the store {self.uri} could not be read: {error}",
                fix="`histoseek verify` says what is damaged.",
            ) from error

    @contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError, ValueError) as error:
            raise StoreError(
                f"The table {name} of the store {self.uri} could not be written: {error}",
                fix="Check that there is space and that you may write there.",
            ) from error

    def _committed(self, point: str) -> None:
        if self._on_commit is not None:
            self._on_commit(point)

    def _refuse_if_read_only(self) -> None:
        if self.read_only:
            raise StoreError(f"The store {self.uri} was opened for reading only.")


def is_local(uri: str) -> bool:
    """Whether a URI is a directory of this machine."""
    return "://" not in uri


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
