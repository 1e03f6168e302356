"""FAISS on the GPU: all vectors in half precision; exact where its margin shows it, for unfiltered searches."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoder.errors import QueryError
from query.engines.contract import Ask, Hits, Places, Ranking, rank_exactly
from query.engines.faiss_ivf import load_faiss

_ADD_ROWS = 65_536
# FAISS's GPU selection gives no more than this.
_MOST_WANTED = 2048
# Rounding both vectors to 11 significant bits moves a dot product of unit vectors by at most 2 x 2^-11.
_SLACK = 2 * 2.1 * 2.0**-11
_PROBE_SECONDS = 120.0
# A wheel without code for the card aborts the process at the first kernel, which no handler catches.
_PROBE = """
import numpy, sys
import faiss
if faiss.get_num_gpus() < 1:
    print("FAISS finds no GPU"); sys.exit(3)
options = faiss.GpuIndexFlatConfig(); options.useFloat16 = True
index = faiss.GpuIndexFlatIP(faiss.StandardGpuResources(), 16, options)
rows = numpy.eye(16, dtype="float32"); index.add(rows)
_, found = index.search(rows, 1)
sys.exit(0 if found[:, 0].tolist() == list(range(16)) else 4)
"""


@lru_cache(maxsize=1)
def why_not(python: str = sys.executable, program: str = _PROBE) -> str | None:
    """Why FAISS cannot search on this machine's GPU; None where it can. Tried once, in a process of its own."""
    try:
        done = subprocess.run([python, "-c", program], capture_output=True, text=True, timeout=_PROBE_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"the trial did not end: {error}"
    if done.returncode == 0:
        return None
    if done.returncode == 3:
        return done.stdout.strip()
    if done.returncode < 0:
        return f"FAISS aborted on this card (signal {-done.returncode}): its wheel has no code for it"
    lines = (done.stderr or done.stdout).strip().splitlines()
    return f"FAISS failed on this card: {lines[-1] if lines else f'exit code {done.returncode}'}"


class FaissGpuFlat:
    """Compares queries with every vector on the GPU.

    Args:
        matrix: unit vectors, float32 [N, dim]; stays in memory, for the ranking.
        places: of the rows.
        device: number of the GPU.

    Raises:
        QueryError: FAISS cannot use the GPU.
    """

    name = "FAISS flat on the GPU (float16), float64 ranking"

    def __init__(self, matrix: NDArray[np.float32], places: Places, device: int = 0) -> None:
        reason = why_not()
        if reason is not None:
            raise QueryError(f"FAISS cannot search on the GPU: {reason}.", "Install another FAISS wheel.")
        faiss = load_faiss()
        self.matrix, self.places = matrix, places
        options = faiss.GpuIndexFlatConfig()
        options.useFloat16 = True
        options.device = device
        # FAISS's memory on the GPU serves one search at a time.
        self._lock = threading.Lock()
        self._resources = faiss.StandardGpuResources()
        self._index = faiss.GpuIndexFlatIP(self._resources, matrix.shape[1], options)
        for start in range(0, len(matrix), _ADD_ROWS):
            self._index.add(np.ascontiguousarray(matrix[start : start + _ADD_ROWS]))

    def rank(self, asks: Sequence[Ask], allowed: NDArray[np.bool_] | None = None) -> Iterator[Ranking]:
        """See `Engine.rank`; takes no filter.

        Raises:
            QueryError: rows are to be left out.
        """
        if allowed is not None:
            raise QueryError("FAISS on the GPU takes no filter.", "Search with another engine.")
        units = np.stack([ask.unit for ask in asks]).astype(np.float32)
        wanted = min(len(self.matrix), 256)
        with self._lock:
            scores, found = self._index.search(units, wanted)
        for i, ask in enumerate(asks):
            yield _FlatRanking(self, ask, units[i : i + 1], scores[i], found[i])

    def search(self, unit: NDArray[np.float32], wanted: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Scores and rows of the nearest, for one query [1, dim]."""
        with self._lock:
            scores, found = self._index.search(unit, wanted)
        return scores[0], found[0]


class _FlatRanking:
    def __init__(
        self, engine: Any, ask: Ask, unit: NDArray[np.float32], scores: NDArray[np.float32], rows: NDArray[np.int64]
    ) -> None:
        self._engine, self._ask, self._unit, self._scores, self._rows = engine, ask, unit, scores, rows
        self._struck = np.zeros(len(engine.matrix), np.bool_)

    @property
    def scanned(self) -> int:
        return len(self._engine.matrix)

    def best(self, count: int) -> Hits:
        total = len(self._engine.matrix)
        while True:
            kept = ~self._struck[self._rows]
            rows, scores = self._rows[kept], self._scores[kept]
            everything = self._rows.size >= total
            # Exact only if what was not given lies below all that may belong to the answer.
            if everything or (rows.size >= count and self._scores[-1] < scores[count - 1] - _SLACK):
                break
            if self._rows.size >= _MOST_WANTED:
                return self._exhaustively(count)
            wanted = min(total, _MOST_WANTED, 4 * max(count, self._rows.size))
            self._scores, self._rows = self._engine.search(self._unit, wanted)
        return rank_exactly(self._ask, rows, self._engine.matrix.__getitem__, self._engine.places, count)

    def strike(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> None:
        self._struck[rows] = True

    def _exhaustively(self, count: int) -> Hits:
        """Where very many rows lie close together: compare all of them on the host."""
        from query.engines.resident import ResidentExact

        ranking = next(ResidentExact(self._engine.matrix, self._engine.places).rank([self._ask]))
        ranking.strike(self._struck)
        return ranking.best(count)
