"""FAISS on the CPU: inverted lists of 8-bit vectors in memory, ranked again exactly."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from query.engines.contract import Ask, Hits, Places, Ranking, rank_exactly

# k-means looks at this many vectors per list, as FAISS advises at least 39 and uses at most 256.
_TRAIN_PER_LIST = 64
_ADD_ROWS = 65_536
# Rows ranked again for each row wanted: 8-bit scores are off by about a hundredth.
_REFINE, _REFINE_AT_LEAST = 4, 64
_WIDEN = 4


@lru_cache(maxsize=1)
def load_faiss() -> ModuleType:
    """Import FAISS, which takes most of a second."""
    import faiss

    return faiss


@dataclass
class FaissIvf:
    """Looks into the lists nearest to the query; wider where a filter leaves too few rows there.

    Attributes:
        index: trained and filled; ids are row numbers.
        matrix: unit vectors, float32 [N, dim], for the ranking.
        places: of the rows.
        probes: lists looked into.
    """

    index: Any
    matrix: NDArray[np.float32]
    places: Places
    probes: int

    @property
    def name(self) -> str:
        """In words."""
        return f"FAISS IVF{self.index.nlist},SQ8 in memory, {self.probes} lists probed, float64 ranking"

    @staticmethod
    def bytes_needed(rows: int, dim: int) -> int:
        """Memory of the index: codes, ids and centres."""
        return rows * (dim + 8) + 4 * dim * list_count(rows)

    @classmethod
    def build(cls, matrix: NDArray[np.float32], places: Places, probes: int = 1) -> FaissIvf:
        """Train on evenly spaced rows and add all, on half of the cores: searches go on meanwhile."""
        faiss = load_faiss()
        faiss.omp_set_num_threads(max(1, (os.cpu_count() or 2) // 2))  # of the calling thread only
        rows, dim = matrix.shape
        lists = list_count(rows)
        index = faiss.index_factory(dim, f"IVF{lists},SQ8", faiss.METRIC_INNER_PRODUCT)
        index.cp.niter = 10
        picked = np.linspace(0, rows - 1, min(rows, lists * _TRAIN_PER_LIST)).astype(np.int64)
        index.train(np.ascontiguousarray(matrix[picked]))
        for start in range(0, rows, _ADD_ROWS):
            index.add(np.ascontiguousarray(matrix[start : start + _ADD_ROWS]))
        return cls(index, matrix, places, min(probes, lists))

    def probing(self, probes: int | None) -> FaissIvf:
        """The same index with another number of lists looked into; None for all."""
        return replace(self, probes=probes or int(self.index.nlist))

    def rank(self, asks: Sequence[Ask], allowed: NDArray[np.bool_] | None = None) -> Iterator[Ranking]:
        """See `Engine.rank`; rows that the probed lists do not hold are missed."""
        for ask in asks:
            yield _IvfRanking(self, ask, allowed)


def list_count(rows: int) -> int:
    """Inverted lists for so many rows: about their square root."""
    return int(max(1, min(round(np.sqrt(rows)), rows // 39)))


class _IvfRanking:
    def __init__(self, engine: FaissIvf, ask: Ask, allowed: NDArray[np.bool_] | None) -> None:
        self._engine, self._ask, self._allowed = engine, ask, allowed
        self._probes = engine.probes
        self._unit = np.ascontiguousarray(ask.unit[None], np.float32)
        self._owned = False

    @property
    def scanned(self) -> int:
        """About as many rows as the probed lists hold."""
        index = self._engine.index
        return round(index.ntotal * min(1.0, self._probes / index.nlist))

    def best(self, count: int) -> Hits:
        index = self._engine.index
        wanted = int(min(max(_REFINE * count, _REFINE_AT_LEAST), index.ntotal))
        if count < 1 or not wanted:
            return Hits.none()
        rows = self._search(wanted)
        while rows.size < count and self._probes < index.nlist:
            self._probes = min(index.nlist, self._probes * _WIDEN)
            rows = self._search(wanted)
        return rank_exactly(self._ask, rows, self._engine.matrix.__getitem__, self._engine.places, count)

    def strike(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> None:
        if not self._owned:
            whole = np.ones(self._engine.index.ntotal, np.bool_) if self._allowed is None else self._allowed.copy()
            self._allowed, self._owned = whole, True
        assert self._allowed is not None
        self._allowed[rows] = False

    def _search(self, wanted: int) -> NDArray[np.int64]:
        faiss = load_faiss()
        options: dict[str, Any] = {"nprobe": self._probes}
        if self._allowed is not None:
            bits = np.packbits(self._allowed, bitorder="little")
            options["sel"] = faiss.IDSelectorBitmap(self._allowed.size, faiss.swig_ptr(bits))
        parameters = faiss.SearchParametersIVF(**options)
        _, found = self._engine.index.search(self._unit, wanted, params=parameters)
        return np.asarray(found[0][found[0] >= 0], np.int64)
