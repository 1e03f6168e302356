"""The maps that this process has at hand, and those that it is making beside the pages."""

from __future__ import annotations

import atexit
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import streamlit as st

from encoder.errors import HistoSeekError
from query.choice import VectorTable
from query.cohort import Cohort
from query.projection.making import unplaced_rows
from query.projection.models import estimated_seconds
from query.projection.tile_map import TileMap

# Placing new tiles that takes no longer is done while the page waits.
QUICK_SECONDS = 8.0
_MAPS, _ANSWERS = 8, 16

T = TypeVar("T")


@dataclass
class Work:
    """A map that is being made in a thread of its own: its progress, and how it ended.

    Attributes:
        seconds: that it will take, about.
        step: what is being done.
        share: of that step, between 0 and 1; None where it cannot be told.
        problem: why it failed; None where it did not.
    """

    seconds: float
    step: str = "Starting"
    share: float | None = None
    problem: str | None = None
    started: float = field(default_factory=time.monotonic)
    ended: bool = False

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started


@dataclass(frozen=True)
class _Kept:
    """A map, and the state of the stored maps at that time."""

    stamp: Any
    tile_map: TileMap


class MapShelf:
    """Maps of a server process, shared by its sessions. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # One at a time: planes while a page waits for them, UMAP's compiled code in no two threads.
        self._making = {"pca": threading.Lock(), "umap": threading.Lock()}
        self._maps: OrderedDict[Hashable, _Kept] = OrderedDict()
        self._answers: OrderedDict[Hashable, tuple[TileMap, Any]] = OrderedDict()
        self._works: dict[Hashable, Work] = {}

    def ready(self, cohort: Cohort, table: VectorTable, method: str) -> TileMap | None:
        """The map, where it is at hand, stored, or computed in seconds; None where that takes work.

        Raises:
            QueryError: no such map can be made.
        """
        found = self._kept(cohort, table, method)
        if found is not None:
            return found
        missing = unplaced_rows(cohort, table, method)
        if method != "pca" and (missing is None or _seconds(cohort, table, method, missing) > QUICK_SECONDS):
            return None
        return self._made(cohort, table, method)

    def wait_seconds(self, cohort: Cohort, table: VectorTable, method: str) -> float:
        """What making the map or bringing it up to date takes, about; 0 where it is at hand or stored."""
        if self._kept(cohort, table, method) is not None:
            return 0.0
        missing = unplaced_rows(cohort, table, method)
        return 0.0 if missing == 0 else _seconds(cohort, table, method, missing)

    def begin(self, cohort: Cohort, table: VectorTable, method: str) -> Work:
        """Make a map in a thread of its own, unless that is under way already."""
        key = _key(cohort, table, method)
        with self._lock:
            work = self._works.get(key)
            if work is not None and not work.ended:
                return work
            seconds = _seconds(cohort, table, method, unplaced_rows(cohort, table, method))
            work = self._works[key] = Work(seconds)
        threading.Thread(
            target=self._work, args=(work, cohort, table, method), daemon=True, name=f"map-{method}"
        ).start()
        return work

    def work(self, cohort: Cohort, table: VectorTable, method: str) -> Work | None:
        """The last work on a map; None where there was none."""
        with self._lock:
            return self._works.get(_key(cohort, table, method))

    def remembered(self, tile_map: TileMap, question: Hashable, answer: Callable[[], T]) -> T:
        """What a question about a map was answered before, or is now."""
        key = (id(tile_map), question)
        with self._lock:
            known = self._answers.get(key)
            if known is not None and known[0] is tile_map:  # another map may have come to lie where one was
                self._answers.move_to_end(key)
                return known[1]
        found = answer()
        with self._lock:
            self._answers[key] = (tile_map, found)
            while len(self._answers) > _ANSWERS:
                self._answers.popitem(last=False)
        return found

    def _work(self, work: Work, cohort: Cohort, table: VectorTable, method: str) -> None:
        try:
            self._made(cohort, table, method, _Told(work))
        except HistoSeekError as error:
            work.problem = str(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, the page that waits must say it
            work.problem = f"The map could not be made: {type(error).__name__}: {error}"
        finally:
            work.ended = True

    def _made(self, cohort: Cohort, table: VectorTable, method: str, told: _Told | None = None) -> TileMap:
        with self._making[method]:
            found = self._kept(cohort, table, method)  # another session may have waited for the same
            if found is None:
                found = cohort.map(method, table.encoder_id, table.grid_id, reporter=told)
                kept = _Kept(_stamp(cohort), found)
                with self._lock:
                    self._maps[_key(cohort, table, method)] = kept
                    while len(self._maps) > _MAPS:
                        self._maps.popitem(last=False)
        return found

    def _kept(self, cohort: Cohort, table: VectorTable, method: str) -> TileMap | None:
        room, stamp, key = cohort.room(table), _stamp(cohort), _key(cohort, table, method)
        with self._lock:
            kept = self._maps.get(key)
            if kept is None or kept.stamp != stamp:
                return None
            if kept.tile_map.rows is not room.rows or kept.tile_map.slides is not room.slides:
                return None
            self._maps.move_to_end(key)
            return kept.tile_map


@st.cache_resource(show_spinner=False)
def map_shelf() -> MapShelf:
    """The shelf of this process."""
    # Held to the very end, what was read from a store makes DuckDB write notices of leaks.
    atexit.register(map_shelf.clear)
    return MapShelf()


class _Told:
    """A reporter that writes into a work; called in the thread that makes the map."""

    def __init__(self, work: Work) -> None:
        self._work, self._total, self._done = work, 0, 0

    def start(self, label: str, total: int | None, unit: str) -> None:
        """See `Reporter`."""
        self._total, self._done = total or 0, 0
        self._work.step, self._work.share = label, 0.0 if total else None

    def advance(self, n: int = 1, detail: str = "") -> None:
        """See `Reporter`."""
        self._done += n
        self._work.share = min(1.0, self._done / self._total) if self._total else None

    def grow(self, n: int) -> None:
        """See `Reporter`."""
        self._total += n

    def note(self, text: str) -> None:
        """See `Reporter`."""
        self._work.step = text

    def warn(self, text: str) -> None:
        """See `Reporter`."""
        self._work.step = text

    def finish(self) -> None:
        """See `Reporter`."""


def _key(cohort: Cohort, table: VectorTable, method: str) -> Hashable:
    return cohort.store.uri, table.encoder_id, table.grid_id, method


def _stamp(cohort: Cohort) -> Any:
    return cohort.store.lance.stamp(["projections"])


def _seconds(cohort: Cohort, table: VectorTable, method: str, missing: int | None) -> float:
    rows = cohort.room(table).rows
    count = len(rows) if missing is None else missing
    return estimated_seconds(method, count, rows.dim, fitted=missing is not None)
