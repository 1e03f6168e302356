"""A budget of memory for what can be made again: the least recently used goes first."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path


class MemoryBudget:
    """Counts what caches hold, and drops the least recently used where another needs the room.

    Args:
        most: bytes that all may hold together; None for half of what is free whenever one is asked for.
    """

    def __init__(self, most: int | None = None) -> None:
        self._most = most
        self._lock = threading.RLock()
        self._held: OrderedDict[Hashable, tuple[int, Callable[[], None]]] = OrderedDict()

    @property
    def held(self) -> int:
        """Bytes that are held."""
        with self._lock:
            return sum(size for size, _ in self._held.values())

    @property
    def total(self) -> int:
        """Bytes that may be held."""
        return (available_memory() + self.held) // 2 if self._most is None else self._most

    def fits(self, size: int) -> bool:
        """Whether so many bytes could be held if everything else went."""
        return size <= self.total

    def reserve(self, key: Hashable, size: int, drop: Callable[[], None], evict: bool = True) -> bool:
        """Take room for a cache, if need be from others.

        Args:
            key: names it.
            size: bytes.
            drop: called when it has to go.
            evict: whether others may have to go for it.

        Returns:
            Whether there is room; if not, nothing was dropped.
        """
        with self._lock:
            self.release(key)
            total = self.total
            if size > total or (not evict and size + self.held > total):
                return False
            while self._held and size + self.held > total:
                _, (_, gone) = self._held.popitem(last=False)
                gone()
            self._held[key] = (size, drop)
            return True

    def holds(self, key: Hashable) -> bool:
        """Whether a cache has its room still."""
        with self._lock:
            return key in self._held

    def touch(self, key: Hashable) -> None:
        """Note that a cache was used."""
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)

    def release(self, key: Hashable) -> None:
        """Give its room back."""
        with self._lock:
            self._held.pop(key, None)


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
