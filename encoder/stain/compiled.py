"""Kernels for the CPU: plain functions that Numba compiles on first use, run in as many threads as PyTorch uses.

Each elementwise operation of PyTorch is a pass over memory; a kernel does them all while a block of pixels is in cache.
Kernels are never parallel by themselves: Numba's own threads do not survive a fork, and do not ask PyTorch how many.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Pixels that are worth loading Numba for, which takes most of a second; three tiles of 224 px are not.
_LEAST_PX = 1 << 18
# Pixels of a block, whose values on the way stay in the first level of the cache together.
BLOCK_PX = 512
# Blocks that are worth a thread: some tenths of a millisecond.
_BLOCKS_PER_THREAD = 64
# Parts of the work for each thread, so that one which is held up does not keep the others waiting.
_PARTS = 4


def worth_compiling(rgb: Tensor) -> bool:
    """Whether kernels are for these tiles [N, 3, H, W]: many pixels, uint8 or float32, on a CPU that has Numba.

    For all others, and on machines without Numba, PyTorch's operations compute the same, two to five times slower. The
    answer depends on nothing that happened before, so that a run that is repeated has the same bits.
    """
    known = rgb.device.type == "cpu" and rgb.dtype in (torch.uint8, torch.float32)
    return known and rgb.numel() >= 3 * _LEAST_PX and _has_numba()


@cache
def compiled(kernel: Callable[..., None], *helpers: Callable[..., Any]) -> Callable[..., None]:
    """Compile a kernel; it releases the interpreter while it runs.

    The first call with arrays of a new type and layout takes one to three seconds, and much less where an earlier
    process left its code in the cache: beside the source, or in the user's own folder where that cannot be written.
    Numba tells a stale cache by the date of the kernel's file, so what may change elsewhere is given as an argument.

    Args:
        kernel: reads and writes arrays.
        helpers: what it calls, all in the kernel's own file.
    """
    import numba

    for helper in helpers:
        _may_be_called(helper)
    # A product and a sum may be one instruction; nothing may assume that there is no NaN.
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}
    try:
        return numba.njit(cache=True, **options)(kernel)
    except RuntimeError:
        # No folder for the cache can be written.
        return numba.njit(**options)(kernel)


def change_blocks(
    kernel: Callable[..., None], rgb: Tensor, kept: Tensor, of_tiles: Sequence[Tensor], *figures: Any
) -> Tensor:
    """Run a compiled kernel over all blocks of pixels; they are counted through all tiles.

    Args:
        kernel: takes pixels [N, 3, P], where to write changed ones, the first block and the one after the last, the
            pixels of a block, what a pixel is multiplied by to lie in 0..1, what is added to a changed pixel before it
            is cut off to a whole number, `kept`, `of_tiles`, and `figures`.
        rgb: RGB in 0..1, float32, or uint8 [N, 3, H, W], on the CPU.
        kept: which tiles stay as they are, bool [N].
        of_tiles: what the kernel must know of each tile, [N, ...].
        figures: what it must know for all.

    Returns:
        As `rgb`, and in the order of its memory.

    Raises:
        ValueError: figures of another number of tiles, behind which a kernel would read.
    """
    pixels = rgb.detach().flatten(2)
    changed = torch.empty_like(pixels)
    before, after = pixels.numpy(), changed.numpy()
    rows = [each.contiguous().numpy() for each in (kept, *of_tiles)]
    if any(len(row) != len(rgb) for row in rows):
        raise ValueError(f"figures of {[len(row) for row in rows]} tiles for {len(rgb)}")
    rounding = np.float32(0.5 if rgb.dtype == torch.uint8 else 0)
    unit = unit_of(rgb)

    def run(first: int, last: int) -> None:
        kernel(before, after, first, last, BLOCK_PX, unit, rounding, *rows, *figures)

    in_threads(len(rgb) * -(-pixels.shape[2] // BLOCK_PX), _BLOCKS_PER_THREAD, run)
    return changed.view_as(rgb)


def unit_of(pixels: Tensor) -> np.float32:
    """What pixels are multiplied by to lie in 0..1."""
    return np.float32(1 / 255 if pixels.dtype == torch.uint8 else 1)


def in_threads(count: int, least: int, run: Callable[[int, int], None]) -> None:
    """Call `run` on ranges that together are 0..count, in as many threads as PyTorch would use here.

    The threads end with the call: a process that is forked later misses none of them.

    Args:
        count: how many units of work there are.
        least: units that are worth a thread.
        run: takes the first unit, and the one after the last.
    """
    threads = max(1, min(torch.get_num_threads(), count // least))
    if threads == 1:
        run(0, count)
        return
    parts = min(count, threads * _PARTS)
    edges = [count * part // parts for part in range(parts + 1)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(run, edges[:-1], edges[1:]))


@cache
def _may_be_called(helper: Callable[..., Any]) -> None:
    from numba.extending import register_jitable

    register_jitable(helper)


@cache
def _has_numba() -> bool:
    try:
        import numba  # noqa: F401
    except ImportError:
        return False
    return True
