"""What was made of one table's vectors to search them fast: kept while memory allows, made beside the searches."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from encoder.errors import HistoSeekError, QueryError
from query.engines.contract import Places
from query.engines.faiss_ivf import FaissIvf, list_count
from query.engines.resident import ResidentExact
from query.memory import MemoryBudget
from query.recall import Step, calibrate

# Vectors in memory, a half-precision copy of them, and FAISS's indexes on the CPU and on the GPU.
Item = Literal["vectors", "half", "faiss", "faiss-gpu"]
_ITEMS: tuple[Item, ...] = ("vectors", "half", "faiss", "faiss-gpu")
# Of a GPU's free memory.
_GPU_SHARE = 0.8


class Shelf:
    """Holds the engines that live in memory. Safe to use from several threads.

    No call is made to the budget while this shelf's own lock is held: the budget calls back into shelves.

    Args:
        places: of the rows.
        dim: length of a vector.
        load: reads all vectors, float32 [N, dim].
        budget: of memory, shared with other shelves.
        device: where half-precision copies live; None for the GPU where PyTorch finds one.
    """

    def __init__(
        self,
        places: Places,
        dim: int,
        load: Callable[[], NDArray[np.float32]],
        budget: MemoryBudget,
        device: str | None = None,
    ) -> None:
        self._places, self._dim, self._load = places, dim, load
        self._budget, self._device = budget, device
        self._lock, self._loading = threading.Lock(), threading.Lock()
        self._held: dict[Item, Any] = {}
        self._working: dict[Item, threading.Thread] = {}
        self._failed: dict[Item, str] = {}
        self._steps: tuple[Step, ...] = ()
        self._closed = False

    @property
    def vector_bytes(self) -> int:
        """Bytes of all vectors in float32."""
        return 4 * self._dim * self._places.slide_code.size

    @property
    def fits(self) -> bool:
        """Whether the vectors could be held if everything else went."""
        return self._budget.fits(self.vector_bytes)

    @property
    def failures(self) -> dict[Item, str]:
        """Why things could not be made."""
        with self._lock:
            return dict(self._failed)

    @property
    def faiss_steps(self) -> tuple[Step, ...]:
        """What the FAISS index on the CPU was measured to find; empty where there is none."""
        with self._lock:
            return self._steps if "faiss" in self._held else ()

    def has(self, item: Item) -> bool:
        """Whether something is there."""
        with self._lock:
            return item in self._held

    def get(self, item: Item) -> Any | None:
        """Something that is there, which counts as a use of it and of the vectors; None where it is not."""
        with self._lock:
            found = self._held.get(item)
        if found is not None:
            self._budget.touch((id(self), "vectors"))
            self._budget.touch((id(self), item))
        return found

    def resident(self) -> ResidentExact:
        """The engine over the vectors in memory, read where they are not there.

        Raises:
            QueryError: they do not fit the budget.
        """
        found = self.get("vectors")
        if found is not None:
            return found
        with self._loading:
            found = self.get("vectors")
            if found is not None:
                return found
            size = self.vector_bytes
            if not self._reserve("vectors", size):
                raise QueryError(
                    f"{self._places.slide_code.size:,} vectors of {self._dim} numbers need {size / 2**30:.2f} GiB of "
                    f"memory, the budget is {self._budget.total / 2**30:.2f} GiB.",
                    "Use a machine with more memory, raise memory_budget, or choose rows with `where`.",
                )
            try:
                engine = ResidentExact(self._load(), self._places)
            except BaseException:
                self._budget.release((id(self), "vectors"))
                raise
            # Where it had to go while it was read, it still serves the search that waits for it.
            self._keep("vectors", engine)
            return engine

    def warm(self, item: Item, wait: bool = False) -> bool:
        """Make something beside the searches, where memory allows; what failed once is not tried again.

        Args:
            item: to make.
            wait: until it is made.

        Returns:
            Whether it is there now.
        """
        with self._lock:
            if item in self._held:
                return True
            if not self._closed and item not in self._failed and item not in self._working:
                thread = threading.Thread(target=self._make, args=(item,), daemon=True, name=f"make-{item}")
                self._working[item] = thread
                thread.start()
            working = self._working.get(item)
        if wait and working is not None:
            working.join()
        return self.has(item)

    def moved(self, places: Places) -> None:
        """Order equal distances by other places: the same rows among other slides."""
        with self._lock:
            self._places = places
            for engine in self._held.values():
                engine.places = places

    def close(self) -> None:
        """Give all memory back; what is being made is thrown away when it is done."""
        with self._lock:
            self._closed = True
            self._held.clear()
        for item in _ITEMS:
            self._budget.release((id(self), item))

    def _reserve(self, item: Item, size: int, evict: bool = True) -> bool:
        return self._budget.reserve((id(self), item), size, lambda: self._drop(item), evict)

    def _keep(self, item: Item, engine: Any, steps: tuple[Step, ...] = ()) -> None:
        key = (id(self), item)
        with self._lock:
            if self._closed or ("vectors" not in self._held and item != "vectors"):
                pass  # the others rank by the vectors
            else:
                engine.places = self._places
                self._held[item] = engine
                self._steps = steps or self._steps
        if not self._budget.holds(key):
            self._drop(item)
        elif not self.has(item):
            self._budget.release(key)

    def _drop(self, item: Item) -> None:
        with self._lock:
            if item == "vectors":
                self._held.clear()
            else:
                self._held.pop(item, None)
        if item == "vectors":
            for other in _ITEMS:
                self._budget.release((id(self), other))

    def _make(self, item: Item) -> None:
        makers: dict[Item, Callable[[], None]] = {
            "vectors": self._make_vectors,
            "half": self._make_half,
            "faiss": self._make_faiss,
            "faiss-gpu": self._make_faiss_gpu,
        }
        try:
            makers[item]()
        except (HistoSeekError, RuntimeError, MemoryError, OSError, ValueError, ImportError) as error:
            # What is only faster must not take anything down with it.
            with self._lock:
                self._failed[item] = str(error) if isinstance(error, HistoSeekError) else repr(error)
            self._budget.release((id(self), item))
        finally:
            with self._lock:
                self._working.pop(item, None)

    def _make_vectors(self) -> None:
        self.resident()

    def _room_for(self, item: Item, size: int) -> None:
        # The vectors must not go for what only makes their search faster.
        if not self._reserve(item, size, evict=False):
            raise QueryError(f"{item} needs {size / 2**30:.2f} GiB, which the memory budget does not hold.")

    def _make_half(self) -> None:
        import torch

        from encoder.device import choose_device, native_bf16
        from query.engines.half import HalfExact

        device = choose_device(self._device)
        if not native_bf16(device):
            raise QueryError(f"{device} does not compute in bfloat16.")
        resident = self.resident()
        size = HalfExact.bytes_needed(*resident.matrix.shape)
        on_gpu = device.type == "cuda"
        if on_gpu and size > _GPU_SHARE * torch.cuda.mem_get_info(device)[0]:
            raise QueryError(f"a copy of {size / 2**30:.2f} GiB does not fit the GPU.")
        self._room_for("half", 0 if on_gpu else size)
        self._keep("half", HalfExact(resident.matrix, resident.places, device))

    def _make_faiss(self) -> None:
        resident = self.resident()
        rows, dim = resident.matrix.shape
        if list_count(rows) < 2:
            raise QueryError("too few rows for inverted lists.")
        self._room_for("faiss", FaissIvf.bytes_needed(rows, dim))
        index = FaissIvf.build(resident.matrix, resident.places)
        self._keep("faiss", index, calibrate(index, resident))

    def _make_faiss_gpu(self) -> None:
        from encoder.device import choose_device
        from query.engines.faiss_gpu import FaissGpuFlat

        device = choose_device(self._device)
        resident = self.resident()
        self._room_for("faiss-gpu", 0)
        self._keep("faiss-gpu", FaissGpuFlat(resident.matrix, resident.places, device.index or 0))
