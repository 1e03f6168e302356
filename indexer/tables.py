"""The LanceDB tables behind a store: the one place that opens, reads and commits them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote

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

    def _query(self, name: str, columns: Sequence[str] | None, where: str | None) -> Any:
        query = self._handle(name).search()
        if columns is not None:
            query = query.select(list(columns))
        return query if where is None else query.where(where)

    def _handle(self, name: str) -> Any:
        handle = self._opened(name)
        if handle is None:
            raise StoreError(f"The store {self.uri} has no table {name}.")
        return handle

    def _opened(self, name: str) -> Any | None:
        with self._lock:
            if name not in self._handles:
                with self._reading(name):
                    try:
                        self._handles[name] = self._db.open_table(name)
                    except ValueError as error:
                        if "not found" not in str(error):
                            raise
                        return None
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


def plain_path(uri: str) -> str:
    """A URI, as a path where it is one of this machine's files."""
    scheme = "file://"
    return unquote(uri.removeprefix(scheme)) if uri.startswith(scheme) else uri


def is_local(uri: str) -> bool:
    """Whether a URI, as `plain_path` gives it, is a directory of this machine."""
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
