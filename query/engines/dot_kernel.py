"""Dot products of many rows with one vector, at the rate of memory: a loop that Numba compiles for this processor."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

DotRows = Callable[[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]], None]


@cache
def dot_rows() -> DotRows:
    """Compile the loop: seconds at first, less than one where an earlier process left it in the cache.

    Returns:
        Takes rows float32 [N, dim], a vector float32 [dim] and where to write the products, float32 [N]; releases
        the interpreter. Each product is off by no more than one that is summed in any other order.
    """
    import numba

    # Sums may be reordered into lanes; nothing may assume that there is no NaN or infinity.
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz"}}
    try:
        compiled = numba.njit(cache=True, **options)(_dot_rows)
    except RuntimeError:
        # No folder for the cache can be written.
        compiled = numba.njit(**options)(_dot_rows)
    compiled(np.zeros((1, 1), np.float32), np.zeros(1, np.float32), np.empty(1, np.float32))
    return compiled


def _dot_rows(rows: Any, vector: Any, out: Any) -> None:
    for row in range(rows.shape[0]):
        total = np.float32(0)
        for column in range(vector.size):
            total += rows[row, column] * vector[column]
        out[row] = total
