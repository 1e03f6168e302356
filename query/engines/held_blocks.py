"""Vectors of a small table, held from a pass until its hits are ranked, so that ranking need not read them again."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class HeldBlocks:
    """The vectors of all rows that were seen; threads may add to it at a time.

    Args:
        dim: length of a vector.
    """

    def __init__(self, dim: int) -> None:
        self._dim = dim
        self._blocks: list[tuple[int, NDArray[np.float32]]] = []

    def add(self, first: int, block: NDArray[np.float32]) -> None:
        """Hold vectors [m, dim] of rows that follow each other from number `first` on."""
        if len(block):
            self._blocks.append((first, block))

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Vectors of some rows that were added, in their order [n, dim]."""
        blocks = sorted(self._blocks, key=lambda numbered: numbered[0])
        of = np.searchsorted([first for first, _ in blocks], rows, side="right") - 1
        out = np.empty((rows.size, self._dim), np.float32)
        for number in set(of.tolist()):
            first, block = blocks[number]
            here = of == number
            out[here] = block[rows[here] - first]
        return out
