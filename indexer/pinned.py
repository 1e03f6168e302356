"""Tables as of one version, and what tells cheaply that a table has got a new one."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from encoder.errors import StoreError
from indexer.table_files import versions_folder

_KEPT = 16  # datasets of old versions, and scanners; one costs its manifest's memory
# Two commits within one tick of the file system's clock (4 ms on Linux, 2 s on FAT) leave the folder's time as it was.
_TRUSTED_AFTER_NS = 2_000_000_000


@dataclass(frozen=True)
class _Seen:
    """A version, and the state of the folder of versions just before it was read."""

    state: tuple[int, int]
    version: int
    trusted: bool


class PinnedTables:
    """Lance datasets that stay at the version they were asked for, and the versions of tables.

    Args:
        folder: of a local store; None for an object store.
        open_dataset: opens a table's dataset at any version; None where there is no such table.
    """

    def __init__(self, folder: str | None, open_dataset: Callable[[str], Any | None]) -> None:
        self._folder = folder
        self._open = open_dataset
        self._newest: dict[str, Any] = {}  # whose `latest_version` costs a fifth of asking LanceDB
        self._kept: OrderedDict[tuple[str, int], Any] = OrderedDict()
        self._scanners: OrderedDict[tuple[Any, ...], Any] = OrderedDict()
        self._folders: dict[str, Path] = {}
        self._seen: dict[str, _Seen] = {}

    def version(self, name: str) -> int:
        """Latest version of a table, read from the store; 0 where it does not exist."""
        opened = self._opened(name)
        return 0 if opened is None else int(opened.latest_version)

    def dataset(self, name: str, version: int) -> Any:
        """The Lance dataset of a table as of a version.

        Raises:
            StoreError: there is no such table.
            OSError: "not found": its version is gone.
        """
        key = (name, version)
        found = self._kept.get(key)
        if found is None:
            opened = self._opened(name)
            if opened is None:
                raise StoreError(f"The store has no table {name}.")
            found = opened.checkout_version(version)
            self._kept[key] = found
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return found

    def scanner(self, name: str, version: int, columns: Sequence[str] | None, **options: Any) -> Any:
        """Lance's scanner of a version, kept: to make one takes a tenth of reading a small table.

        Several threads may read from one at the same time, each from the start.

        Args:
            name: of the table.
            version: of it.
            columns: to read; None for all.
            options: of Lance's scanner; values that can be hashed.

        Raises:
            StoreError, OSError: as for `dataset`.
        """
        key = (name, version, None if columns is None else tuple(columns), *sorted(options.items()))
        found = self._scanners.get(key)
        if found is None:
            wanted = None if columns is None else list(columns)
            found = self.dataset(name, version).scanner(columns=wanted, scan_in_order=True, **options)
            self._scanners[key] = found
            while len(self._scanners) > _KEPT:
                self._scanners.popitem(last=False)
        return found

    def stamp(self, names: Sequence[str]) -> tuple[tuple[int, int], ...]:
        """What changes whenever one of the tables gets a new version: an inode and a version for each.

        A local folder's time of change says whether a version that was read before still holds, unless the
        change is so young that another one may bear the same time; then the version is read. The clock of a
        network file system must not be more than two seconds behind this machine's.

        Args:
            names: of the tables; one that does not exist counts too.
        """
        if self._folder is None:
            return tuple((0, self.version(name)) for name in names)
        return tuple(self._local_stamp(name) for name in names)

    def mark(self, name: str) -> tuple[int, int]:
        """What changes with every file that comes or goes among a table's versions, also when it is made anew.

        A local folder's time of change and inode; the version in an object store.
        """
        if self._folder is None:
            return (0, self.version(name))
        try:
            found = self._versions_folder(name).stat()
        except FileNotFoundError:
            return (0, 0)
        return (found.st_mtime_ns, found.st_ino)

    def _versions_folder(self, name: str) -> Path:
        folder = self._folders.get(name)
        if folder is None:
            assert self._folder is not None
            folder = self._folders[name] = versions_folder(Path(self._folder), name)
        return folder

    def _local_stamp(self, name: str) -> tuple[int, int]:
        try:
            found = self._versions_folder(name).stat()
        except FileNotFoundError:
            return (0, 0)
        state = (found.st_mtime_ns, found.st_ino)
        seen = self._seen.get(name)
        if seen is None or seen.state != state or not seen.trusted:
            # The folder's state was taken first: a commit in between is read now and shows in the next state.
            trusted = time.time_ns() - found.st_mtime_ns > _TRUSTED_AFTER_NS
            seen = self._seen[name] = _Seen(state, self.version(name), trusted)
        return (found.st_ino, seen.version)

    def _opened(self, name: str) -> Any | None:
        found = self._newest.get(name)
        if found is None:
            found = self._open(name)
            if found is not None:
                self._newest[name] = found
        return found
