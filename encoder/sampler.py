"""Which tiles a step takes: a pure function of seed and step, so that nothing of it needs saving."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class BatchSampler:
    """Shuffled epochs without repetition; the few tiles that fill no batch wait for another epoch.

    Args:
        tiles: number of tiles, at least `batch`.
        batch: tiles per step.
        seed: of the shuffling.
    """

    def __init__(self, tiles: int, batch: int, seed: int) -> None:
        self._tiles, self._batch, self._seed = tiles, batch, seed
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)

    @property
    def steps_per_epoch(self) -> int:
        """Batches in one pass over the tiles."""
        return self._tiles // self._batch

    def indices(self, step: int) -> NDArray[np.int64]:
        """Tiles of a step, counted from 0."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._order = np.random.default_rng([self._seed, epoch]).permutation(self._tiles)
            self._epoch = epoch
        return self._order[place * self._batch : (place + 1) * self._batch]
