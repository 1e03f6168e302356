"""Encoded tiles in memory: the latest used, up to so many bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable


class TileCache:
    """Keeps JPEG bytes by key, and forgets those that were not used for longest. Safe from several threads.

    Args:
        most_bytes: that it holds.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, bytes] = OrderedDict()
        self._bytes = 0

    @property
    def held_bytes(self) -> int:
        """Bytes held now."""
        return self._bytes

    def get(self, key: Hashable) -> bytes | None:
        """The bytes of a key; None where they are not held."""
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
            return found

    def put(self, key: Hashable, content: bytes) -> None:
        """Hold bytes; others are forgotten for them."""
        with self._lock:
            former = self._kept.pop(key, None)
            self._bytes -= len(former) if former is not None else 0
            self._kept[key] = content
            self._bytes += len(content)
            while self._bytes > self._most and self._kept:
                _, gone = self._kept.popitem(last=False)
                self._bytes -= len(gone)
