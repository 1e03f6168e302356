"""Dot products of many rows with one vector, at the rate of memory: a loop that Numba compiles for this processor."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

DotRows = Callable[[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]], None]

# Numbers that are worth a compiled loop, 128 MB: one scan takes 5 to 10 ms, and NumPy's loop up to half as long again.
COMPILE_FROM = 1 << 25


class DotLoop:
    """The loop for scans of one table: NumPy's, and the compiled one from when it is there.

    The second search of a large table asks for it, and none waits.

    Args:
        numbers: of the table, rows times dim.
    """

    def __init__(self, numbers: int) -> None:
        self._large = numbers >= COMPILE_FROM
        self._searches = 0
        self.compiling: Future[DotRows] | None = None

    def get(self) -> DotRows:
        """The loop for one more search."""
        self._searches += 1
        if self._large and self.compiling is None and self._searches > 1:
            self.compiling = Future()
            threading.Thread(target=_compile, args=(self.compiling,)).start()
        made = self.compiling
        return made.result() if made is not None and made.done() and made.exception() is None else _einsum_rows


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
    rows = np.zeros((1, 1), np.float32)
    for writeable in (True, False):  # Numba takes these for two types, and vectors of a store are read-only
        rows.flags.writeable = writeable
        compiled(rows, np.zeros(1, np.float32), np.empty(1, np.float32))
    return compiled


def _dot_rows(rows: Any, vector: Any, out: Any) -> None:
    for row in range(rows.shape[0]):
        total = np.float32(0)
        for column in range(vector.size):
            total += rows[row, column] * vector[column]
        out[row] = total


def _compile(made: Future[DotRows]) -> None:
    try:
        made.set_result(dot_rows())
    except Exception as error:  # noqa: BLE001 - whatever a compiler raises, NumPy's loop goes on giving the same answers
        made.set_exception(error)


def _einsum_rows(rows: NDArray[np.float32], vector: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    # Measured: in threads einsum reads memory at about twice the rate of BLAS gemv.
    np.einsum("ij,j->i", rows, vector, out=out)
