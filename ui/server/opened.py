"""The one cohort of a server process, shared by the pages and the slide view."""

from __future__ import annotations

import atexit
import os
import threading
from functools import cache

from query import open_cohort
from query.cohort import Cohort

STORE_VARIABLE = "HISTOSEEK_STORE"

_OPENING = threading.Lock()


def opened_cohort(uri: str) -> Cohort:
    """The cohort of a store, opened at the first call and kept until the process ends. Safe from several threads.

    Raises:
        StoreError: there is no store.
    """
    with _OPENING:  # a cache alone would open it once for each of the threads that ask first
        return _cohort(uri)


def served_store() -> str | None:
    """Folder or URI of the store that this process serves; None outside the explorer's server."""
    return os.environ.get(STORE_VARIABLE)


@cache
def _cohort(uri: str) -> Cohort:
    # Held to the very end, a store makes DuckDB write notices of leaks.
    atexit.register(_cohort.cache_clear)
    return open_cohort(uri)
