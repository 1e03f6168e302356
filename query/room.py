"""The rows of one vectors table at one version, and the engine that a search of them needs."""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import cached_property

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from encoder.errors import QueryError
from indexer.ann import index_state
from indexer.store import Store
from query.background import Background, measure_background
from query.cards import IndexCard, age_note, read_card
from query.engines.contract import Engine
from query.engines.lance_ivf import LanceIvf
from query.engines.resident import ResidentExact
from query.engines.streaming import StreamingExact
from query.filters import RowFilter
from query.hit_table import HitTables
from query.memory import MemoryBudget
from query.planner import HALF_ROWS, QUICK_SECONDS, Choice, Situation
from query.rows import TableVectors, TileRows
from query.shelf import Shelf

# Until a scan or a load was timed here: slow memory and a slow disk.
_BYTES_PER_SECOND, _LOAD_BYTES_PER_SECOND = 10e9, 0.8e9
# So many searches must have been slow before a faster engine is made beside them.
_SLOW_BEFORE, _SLOW_SECONDS = 2, 0.01


class Room:
    """Searchable rows and the engines over them. Safe to use from several threads.

    Args:
        store: that holds the table.
        rows: searchable.
        slides: the cohort's slides, sorted by id.
        budget: of memory, shared with other rooms.
        device: where vectors are compared; None for the GPU where PyTorch finds one.
        shelf: of the same vectors, from a room of before; None for a new one.
    """

    def __init__(
        self,
        store: Store,
        rows: TileRows,
        slides: pa.Table,
        budget: MemoryBudget,
        device: str | None = None,
        shelf: Shelf | None = None,
    ) -> None:
        self.store, self.rows, self.slides = store, rows, slides
        self.table = store.vectors_table_name(rows.encoder_id, rows.grid_id)
        self.filter = RowFilter(slides, rows.tiles, rows.slide_code)
        self.vectors = TableVectors(store, rows)
        self.shelf = shelf or Shelf(rows.places, rows.dim, self.vectors.load, budget, device)
        self._budget, self._device = budget, device
        self._lock = threading.Lock()
        self._background: Background | None = None
        self._card: tuple[object, IndexCard | None, str | None] | None = None
        self._scan_seconds: float | None = None
        self._slow = 0

    def recoded(self, slides: pa.Table) -> Room:
        """The same vectors for a changed table of slides."""
        rows = self.rows.recoded(slides)
        self.shelf.moved(rows.places)
        return Room(self.store, rows, slides, self._budget, self._device, self.shelf)

    def close(self) -> None:
        """Give all memory back."""
        self.shelf.close()

    @cached_property
    def hit_tables(self) -> HitTables:
        """What makes tables of hits."""
        return HitTables(self.slides)

    @property
    def card(self) -> IndexCard | None:
        """What was measured of the store's index of these vectors; None where there is none, or none was."""
        return self._index()[0]

    @property
    def index_note(self) -> str | None:
        """What to know of an index whose table has moved on since it was measured; None where it has not."""
        return self._index()[1]

    @property
    def background(self) -> Background:
        """Distances of random pairs: measured here, or what `build` measured where the vectors are on disk."""
        with self._lock:
            if self._background is None:
                card = None if self.shelf.has("vectors") else self.card
                if card is not None and card.rows == len(self.rows):
                    self._background = card.background
                else:
                    self._background = self._measured()
            return self._background

    def background_of(self, units: NDArray[np.float64]) -> Background:
        """Distances of random tiles to a query of several tiles, or to their mean; directions [B, dim]."""
        background = self.background
        if not len(background.sample) and len(self.rows):
            # What `build` measured comes without the tiles.
            background = replace(background, sample=self._measured().sample)
            with self._lock:
                self._background = background
        return background.of_query(units)

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Vectors of some rows [m, dim], from memory where they are there."""
        resident = self.shelf.get("vectors")
        return self.vectors.take(rows) if resident is None else resident.matrix[rows]

    @cached_property
    def _streaming(self) -> StreamingExact:
        return StreamingExact(self.vectors, self.rows.places)

    def matrix(self) -> NDArray[np.float32]:
        """All vectors in memory, float32 [N, dim], read-only.

        Raises:
            QueryError: they do not fit the budget.
        """
        return self.shelf.resident().matrix

    def exact(self) -> ResidentExact | StreamingExact:
        """Exact search in memory where the vectors fit, else from disk."""
        try:
            return self.shelf.resident()
        except QueryError:
            return self._streaming

    def by_index(self, probes: int | None, refine: int, lists: int) -> LanceIvf:
        """The store's index at one setting."""
        rows = self.rows
        return LanceIvf(
            self.store, self.table, rows.row_of, rows.slide_no, rows.places, probes, refine,
            lists, rows.table_rows, rows.version,
        )  # fmt: skip

    def situation(self, k: int, matching: int, target_recall: float) -> Situation:
        """What the planner needs to know.

        Raises:
            QueryError: a GPU was asked for that cannot be used.
        """
        shelf = self.shelf
        if self._device is not None and self._device.startswith("cuda") and not shelf.warm("half", wait=True):
            raise QueryError(f"Device {self._device} cannot search: {shelf.failures.get('half', 'memory is full')}")
        size = shelf.vector_bytes
        resident = "ready" if shelf.has("vectors") else "fits" if shelf.fits else "too large"
        slow_to_load = resident != "ready" and size / _LOAD_BYTES_PER_SECOND > QUICK_SECONDS
        card = self.card if resident == "too large" or slow_to_load else None
        return Situation(
            rows=len(self.rows),
            matching=matching,
            target_recall=target_recall,
            resident=resident,  # type: ignore[arg-type]
            exact_seconds=self._scan_seconds or size / _BYTES_PER_SECOND,
            load_seconds=size / _LOAD_BYTES_PER_SECOND,
            k=k,
            half=shelf.has("half"),
            faiss_gpu=shelf.has("faiss-gpu"),
            faiss=shelf.faiss_steps,
            index=card.steps if card is not None else (),
            index_exists=card is not None,
        )

    def engine(self, choice: Choice) -> Engine:
        """The engine that was chosen, made where it is not there yet.

        Raises:
            QueryError: the vectors do not fit memory after all.
        """
        if choice.engine in ("half", "faiss", "faiss-gpu"):
            found = self.shelf.get(choice.engine)
            if found is not None:
                engine: Engine = found if choice.step is None else found.probing(choice.step.probes)
                return engine
        if choice.engine == "index" and choice.step is not None:
            card = self.card
            self.shelf.warm("vectors")
            return self.by_index(choice.step.probes, choice.step.refine, 1 if card is None else card.partitions)
        if choice.engine == "streaming":
            return self._streaming
        return self.exact()

    def timed(self, choice: Choice, seconds: float, filtered: bool, asks: int) -> None:
        """Learn from a search how long a scan takes, and have a faster engine made where scans are slow."""
        if filtered or asks != 1 or choice.engine not in ("resident", "half"):
            return
        if choice.engine == "resident":
            known = self._scan_seconds
            self._scan_seconds = seconds if known is None else 0.7 * known + 0.3 * seconds
        # Quick searches need nothing faster.
        self._slow += seconds > _SLOW_SECONDS
        if self._slow < _SLOW_BEFORE:
            return
        if len(self.rows) >= HALF_ROWS and not self.shelf.warm("half") and "half" not in self.shelf.failures:
            return  # it is being made, and finds the GPU where there is one: that takes seconds, which no search waits
        half = self.shelf.get("half")
        if half is not None and half.on_gpu:
            self.shelf.warm("faiss-gpu")
        elif (self._scan_seconds or 0.0) > QUICK_SECONDS:
            self.shelf.warm("faiss")

    def _measured(self) -> Background:
        return measure_background(self.rows.slide_code, self.slides, self.take, self.rows.dim)

    def _index(self) -> tuple[IndexCard | None, str | None]:
        """The card, and what to know of it; read again where indexes were built since."""
        stamp = self.store.lance.stamp(["indexes", self.table])
        known = self._card
        if known is None or known[0] != stamp:
            card = read_card(self.store, self.table, self.rows.dim)
            state = None if card is None else index_state(self.store, self.table)
            note = None if card is None or state is None else age_note(card, state)
            known = self._card = (stamp, card, note)
        return known[1], known[2]
