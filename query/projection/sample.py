"""Rows that stand for all: as many of each slide as it has and the number allows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def spread_sample(slides: NDArray[np.integer], most: int, seed: int) -> NDArray[np.int64]:
    """Choose rows at random, as many of each slide, or all of a slide that has fewer.

    Args:
        slides: number of each row's slide [N].
        most: rows to choose at most.
        seed: of the choice.

    Returns:
        Row numbers, ascending, int64 [min(N, most)].
    """
    if slides.size <= most:
        return np.arange(slides.size)
    _, codes, counts = np.unique(slides, return_inverse=True, return_counts=True)
    taken = np.minimum(counts, _cap(counts, most))
    # What is left over after equal numbers goes to the first slides that have more.
    more = np.flatnonzero(counts > taken)[: most - int(taken.sum())]
    taken[more] += 1
    order = np.lexsort((np.random.default_rng(seed).random(slides.size), codes))
    rank = np.arange(slides.size) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.sort(order[rank < np.repeat(taken, counts)])


def _cap(counts: NDArray[np.int64], most: int) -> int:
    """Largest number of rows that every slide may give without giving more than `most` together."""
    low, high = 0, int(counts.max())
    while low < high:
        middle = (low + high + 1) // 2
        if int(np.minimum(counts, middle).sum()) <= most:
            low = middle
        else:
            high = middle - 1
    return low
