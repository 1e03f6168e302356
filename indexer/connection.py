"""The connection to a store's LanceDB tables: open handles, pinned versions, and errors that say what to do."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import lancedb

from encoder.errors import StoreError
from indexer.pinned import PinnedTables

# LanceDB's own limits are gigabytes; a store is read in streams and needs little of either.
_INDEX_CACHE_BYTES = 256 << 20
_METADATA_CACHE_BYTES = 128 << 20
# A vector index is searched here, and one that does not fit is read from disk by every query: with an index of
# 389 MB, 178 ms a query instead of 76. What is never searched takes none of it.
_SEARCHED_CACHE_BYTES = 1 << 30


class Connection:
    """Handles of the tables at one place.

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
        self._pinned = PinnedTables(uri if is_local(uri) else None, self._open_dataset)
        self._pinned_session: Any | None = None

    def _latest(self, name: str) -> Any:
        """Lance dataset of a table's latest version."""
        self._handle(name)
        return self._pinned.dataset(name, self._pinned.version(name))

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

    def _open_dataset(self, name: str) -> Any | None:
        handle = self._opened(name)
        if handle is None:
            return None
        with self._lock:
            if self._pinned_session is None:
                # Statistics of an index would carry its centroids, megabytes that nobody reads, and warn of it.
                os.environ.setdefault("LANCE_INCLUDE_VECTOR_CENTROIDS", "false")
                import lance  # here: most commands never pin a version

                self._pinned_session = lance.Session(
                    index_cache_size_bytes=_SEARCHED_CACHE_BYTES, metadata_cache_size_bytes=_METADATA_CACHE_BYTES
                )
        return handle.to_lance(session=self._pinned_session)

    @contextmanager
    def _reading(self, name: str, version: int | None = None) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError, ValueError) as error:
            if version is not None and "not found" in str(error).lower():
                raise StoreError(
                    f"Version {version} of the table {name} of the store {self.uri} is gone: "
                    "old versions were removed meanwhile.",
                    fix="Open the store again.",
                ) from error
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
    """A URI, as an absolute path where it is one of this machine's files: it still leads there from elsewhere."""
    scheme = "file://"
    path = unquote(uri.removeprefix(scheme)) if uri.startswith(scheme) else uri
    return str(Path(path).absolute()) if is_local(path) else path


def is_local(uri: str) -> bool:
    """Whether a URI, as `plain_path` gives it, is a directory of this machine."""
    return "://" not in uri
