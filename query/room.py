"""The engines of one vectors table: made when they are needed, kept while memory allows, gone when it changes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from encoder.errors import HistoSeekError, QueryError
from indexer.ann import index_state
from indexer.store import Store
from query.background import Background, measure_background
from query.cards import IndexCard, age_note, read_card
from query.engines.contract import Ask, Engine
from query.engines.faiss_ivf import FaissIvf, list_count
from query.engines.lance_ivf import LanceIvf
from query.engines.resident import ResidentExact
from query.engines.streaming import StreamingExact
from query.filters import RowFilter
from query.memory import MemoryBudget
from query.planner import HALF_ROWS, QUICK_SECONDS, Choice, Situation
from query.recall import Step, held_out, mean_recall, neighbours
from query.rows import TableVectors, TileRows

Cache = Literal["matrix", "half", "faiss", "faiss-gpu"]

# Until a scan or a load was timed here: slow memory and a slow disk.
_BYTES_PER_SECOND, _LOAD_BYTES_PER_SECOND = 10e9, 0.8e9
_CALIBRATION_ROWS = 100
_CALIBRATION_RECALL = 0.995
# So many searches must have been slow before a faster engine is made beside them.
_SLOW_BEFORE = 2


@dataclass
class _Caches:
    """What was made so far; a part is None until it is, or after it had to go."""

    matrix: NDArray[np.float32] | None = None
    resident: ResidentExact | None = None
    half: Any | None = None
    faiss: FaissIvf | None = None
    faiss_steps: tuple[Step, ...] = ()
    faiss_gpu: Any | None = None
    working: dict[Cache, threading.Thread] = field(default_factory=dict)
    failed: dict[Cache, str] = field(default_factory=dict)


class Room:
    """Rows of one vectors table at one version, and the engines over them. Safe to use from several threads.

    Args:
        store: that holds the table.
        rows: searchable.
        slides: the cohort's slides, sorted by id.
        budget: of memory, shared with other rooms.
        device: where vectors are compared; None for the GPU where PyTorch finds one.
    """

    def __init__(
        self, store: Store, rows: TileRows, slides: pa.Table, budget: MemoryBudget, device: str | None = None
    ) -> None:
        self.store, self.rows, self.slides = store, rows, slides
        self.table = store.vectors_table_name(rows.encoder_id, rows.grid_id)
        self.filter = RowFilter(slides, rows.tiles, rows.slide_code)
        self.vectors = TableVectors(store, rows)
        self._budget, self._device = budget, device
        self._caches = _Caches()
        self._lock = threading.Lock()
        self._loading = threading.Lock()
        self._scan_seconds: float | None = None
        self._slow = 0

    @property
    def vector_bytes(self) -> int:
        """Bytes of all vectors in float32."""
        return 4 * self.rows.dim * len(self.rows)

    def recoded(self, rows: TileRows, slides: pa.Table) -> Room:
        """The same vectors for a changed table of slides."""
        other = Room(self.store, rows, slides, self._budget, self._device)
        other._caches.matrix = self._caches.matrix
        if other._caches.matrix is not None:
            other._caches.resident = ResidentExact(other._caches.matrix, rows.places)
            self._budget.reserve((other.key, "matrix"), self.vector_bytes, lambda: other._drop("matrix"))
        self.close()
        return other

    @property
    def key(self) -> int:
        """Names this room in the budget."""
        return id(self)

    def close(self) -> None:
        """Give all memory back."""
        for name in ("matrix", "half", "faiss", "faiss-gpu"):
            self._budget.release((self.key, name))
        with self._lock:
            self._caches = _Caches()

    @cached_property
    def card(self) -> IndexCard | None:
        """What is known of the store's index of these vectors; None where there is none."""
        return read_card(self.store, self.table, self.rows.dim)

    @cached_property
    def index_note(self) -> str | None:
        """What to know of an index whose table has moved on since it was measured; None where it has not."""
        state = None if self.card is None else index_state(self.store, self.table)
        return None if state is None or self.card is None else age_note(self.card, state)

    @cached_property
    def background(self) -> Background:
        """Distances of random pairs: measured here, or what `build` measured where the vectors are on disk."""
        if self._caches.matrix is None and self.card is not None and self.card.rows == len(self.rows):
            return self.card.background
        return measure_background(self.rows.slide_code, self.slides, self.take, self.rows.dim)

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Vectors of some rows [m, dim], from memory where they are there."""
        matrix = self._caches.matrix
        return self.vectors.take(rows) if matrix is None else matrix[rows]

    def matrix(self) -> NDArray[np.float32]:
        """All vectors in memory, float32 [N, dim], read-only.

        Raises:
            QueryError: they do not fit the budget.
        """
        with self._loading:
            if self._caches.matrix is None:
                size = self.vector_bytes
                if not self._budget.reserve((self.key, "matrix"), size, lambda: self._drop("matrix")):
                    raise QueryError(
                        f"{len(self.rows):,} vectors of {self.rows.dim} numbers need {size / 2**30:.2f} GiB of "
                        f"memory, the budget is {self._budget.total / 2**30:.2f} GiB.",
                        "Use a machine with more memory, raise memory_budget, or choose rows with `where`.",
                    )
                try:
                    matrix = self.vectors.load()
                except BaseException:
                    self._budget.release((self.key, "matrix"))
                    raise
                self._caches.resident = ResidentExact(matrix, self.rows.places)
                self._caches.matrix = matrix
            self._budget.touch((self.key, "matrix"))
            return self._caches.matrix

    def situation(self, matching: int, target_recall: float) -> Situation:
        """What the planner needs to know."""
        caches, size = self._caches, self.vector_bytes
        ready = caches.matrix is not None
        resident: Literal["ready", "fits", "too large"] = "ready" if ready else "fits"
        if not ready and not self._budget.fits(size):
            resident = "too large"
        needs_index = resident == "too large" or (not ready and size / _LOAD_BYTES_PER_SECOND > QUICK_SECONDS)
        card = self.card if needs_index else None
        return Situation(
            rows=len(self.rows),
            matching=matching,
            target_recall=target_recall,
            resident=resident,
            exact_seconds=self._scan_seconds or size / _BYTES_PER_SECOND,
            load_seconds=size / _LOAD_BYTES_PER_SECOND,
            half=caches.half is not None,
            faiss_gpu=caches.faiss_gpu is not None,
            faiss=caches.faiss_steps if caches.faiss is not None else (),
            index=card.steps if card is not None else (),
            index_exists=card is not None,
        )

    def engine(self, choice: Choice) -> Engine:
        """The engine that was chosen, made where it is not there yet.

        Raises:
            QueryError: the vectors do not fit memory after all.
        """
        caches = self._caches
        if choice.engine == "half" and caches.half is not None:
            return caches.half
        if choice.engine == "faiss-gpu" and caches.faiss_gpu is not None:
            return caches.faiss_gpu
        if choice.engine == "faiss" and caches.faiss is not None and choice.step is not None:
            return caches.faiss.probing(choice.step.probes)
        if choice.engine == "index" and choice.step is not None:
            self.warm("matrix")
            return LanceIvf(
                self.store, self.table, self.rows.row_of, self.rows.slide_no, self.rows.places,
                choice.step.probes, choice.step.refine, self.rows.version,
            )  # fmt: skip
        if choice.engine == "streaming":
            return StreamingExact(self.vectors, self.rows.places)
        self.matrix()
        resident = self._caches.resident
        return resident if resident is not None else StreamingExact(self.vectors, self.rows.places)

    def timed(self, choice: Choice, seconds: float, filtered: bool, asks: int) -> None:
        """Learn from a search how long a scan takes, and have a faster engine made where scans are slow."""
        if filtered or asks != 1 or choice.engine not in ("resident", "half"):
            return
        if choice.engine == "resident":
            known = self._scan_seconds
            self._scan_seconds = seconds if known is None else 0.7 * known + 0.3 * seconds
        self._slow += 1
        if self._slow < _SLOW_BEFORE:
            return
        if self._on_gpu():
            self.warm("half")
            self.warm("faiss-gpu")
            return
        if len(self.rows) >= HALF_ROWS:
            self.warm("half")
        if (self._scan_seconds or 0.0) > QUICK_SECONDS:
            self.warm("faiss")

    def warm(self, what: Cache, wait: bool = False) -> bool:
        """Make an engine beside the searches, where memory allows.

        Args:
            what: to make.
            wait: until it is made.

        Returns:
            Whether it is there now.
        """
        with self._lock:
            caches = self._caches
            if self._made(what):
                return True
            if what not in caches.failed and what not in caches.working:
                thread = threading.Thread(target=self._make, args=(what, caches), daemon=True, name=f"make-{what}")
                caches.working[what] = thread
                thread.start()
            working = caches.working.get(what)
        if wait and working is not None:
            working.join()
        return self._made(what)

    @property
    def failures(self) -> dict[Cache, str]:
        """Why engines could not be made."""
        return dict(self._caches.failed)

    def _made(self, what: Cache) -> bool:
        caches = self._caches
        made = {"matrix": caches.matrix, "half": caches.half, "faiss": caches.faiss, "faiss-gpu": caches.faiss_gpu}
        return made[what] is not None

    def _make(self, what: Cache, caches: _Caches) -> None:
        makers: dict[Cache, Callable[[_Caches], None]] = {
            "matrix": self._make_matrix,
            "half": self._make_half,
            "faiss": self._make_faiss,
            "faiss-gpu": self._make_faiss_gpu,
        }
        try:
            makers[what](caches)
        except (HistoSeekError, RuntimeError, MemoryError, OSError, ValueError, ImportError) as error:
            # What is only faster must not take anything down with it.
            caches.failed[what] = str(error) if isinstance(error, HistoSeekError) else repr(error)
            self._budget.release((self.key, what))
        finally:
            caches.working.pop(what, None)
            if caches is not self._caches and what != "matrix":  # all was given up meanwhile
                self._budget.release((self.key, what))

    def _make_matrix(self, caches: _Caches) -> None:
        self.matrix()

    def _reserve(self, what: Cache, size: int) -> None:
        # The vectors themselves must not go for what only makes their search faster.
        if not self._budget.reserve((self.key, what), size, lambda: self._drop(what), evict=False):
            raise QueryError(f"{what} needs {size / 2**30:.2f} GiB, which the memory budget does not hold.")

    def _make_half(self, caches: _Caches) -> None:
        import torch

        from encoder.device import choose_device, native_bf16
        from query.engines.half import HalfExact

        device = choose_device(self._device)
        if not native_bf16(device):
            raise QueryError(f"{device} does not compute in bfloat16.")
        matrix = self.matrix()
        size = HalfExact.bytes_needed(len(self.rows), self.rows.dim)
        if device.type == "cpu":
            self._reserve("half", size)
        elif device.type == "cuda" and size > 0.8 * torch.cuda.mem_get_info(device)[0]:
            raise QueryError(f"a copy of {size / 2**30:.2f} GiB does not fit the GPU.")
        caches.half = HalfExact(matrix, self.rows.places, device)

    def _make_faiss(self, caches: _Caches) -> None:
        if list_count(len(self.rows)) < 2:
            raise QueryError("too few rows for inverted lists.")
        matrix = self.matrix()
        self._reserve("faiss", FaissIvf.bytes_needed(len(self.rows), self.rows.dim))
        index = FaissIvf.build(matrix, self.rows.places)
        caches.faiss_steps = calibrate(index, matrix)
        caches.faiss = index

    def _make_faiss_gpu(self, caches: _Caches) -> None:
        from query.engines.faiss_gpu import FaissGpuFlat

        caches.faiss_gpu = FaissGpuFlat(self.matrix(), self.rows.places)

    def _on_gpu(self) -> bool:
        if self._device == "cpu":
            return False
        with suppress(ImportError):
            import torch

            return torch.cuda.is_available()
        return False

    def _drop(self, what: str) -> None:
        caches = self._caches
        if what == "matrix":
            # The others rank by the matrix.
            for other in ("half", "faiss", "faiss-gpu"):
                self._budget.release((self.key, other))
            self._caches = _Caches(failed=caches.failed)
        elif what == "half":
            caches.half = None
        elif what == "faiss":
            caches.faiss, caches.faiss_steps = None, ()


def calibrate(index: FaissIvf, matrix: NDArray[np.float32]) -> tuple[Step, ...]:
    """Measure recall and time of FAISS by the number of lists probed, against exact search."""
    own = held_out(len(matrix), _CALIBRATION_ROWS, seed=1)
    asks = [Ask(matrix[row]) for row in own.tolist()]
    truth, _ = neighbours(ResidentExact(matrix, index.places), asks, own, 10)
    steps: list[Step] = []
    probes, lists = 4, int(index.index.nlist)
    while True:
        probes = min(probes, lists)
        found, seconds = neighbours(index.probing(probes), asks, own, 10)
        recall = mean_recall(found, truth, 10)
        steps.append(Step(probes, 1, recall, 1e3 * float(np.median(seconds))))
        if probes == lists or recall >= _CALIBRATION_RECALL:
            return tuple(steps)
        probes *= 2
