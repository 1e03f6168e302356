"""Macenko's and Vahadane's changes of optical density, fused: from pixels to pixels, a block at a time.

What kernels are made of is plain Python on float32; `compiled.py` compiles it. Logarithms and exponentials are exact
to float32: the exponent from the bits of the number, the rest from a series.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from encoder.stain.compiled import change_blocks, compiled

_Floats = NDArray[np.float32]

_ZERO, _HALF, _ONE, _TWO = (np.float32(value) for value in (0, 0.5, 1, 2))
_GREY_LEVEL = np.float32(1 / 255)
# The logarithm of full light, which has no density, and one grey level: `to_density` adds that against black.
_BRIGHTEST = np.float32(math.log(256 / 255))
# Float32 has 23 bits of fraction below the exponent, which counts from -127.
_FRACTION_BITS, _FRACTION, _LOWEST = np.int32(23), np.int32((1 << 23) - 1), np.float32(127)
_PER_FRACTION = np.float32(1 << 23)
# The bits of the root of one half: fractions are taken between it and the root of two, where the series is shortest.
_ROOT_HALF = np.int32(0x3F3504F3)
_TO_ROOT_HALF = np.int32(0x3F800000 - 0x3F3504F3)
_LOG_2, _PER_LOG_2 = np.float32(math.log(2)), np.float32(1 / math.log(2))
_LOG_3, _LOG_5, _LOG_7 = (np.float32(2 / power) for power in (3, 5, 7))
_EXP_2, _EXP_3, _EXP_4, _EXP_5, _EXP_6 = (np.float32(1 / math.factorial(power)) for power in range(2, 7))
# Exponents beyond this are black or white by far.
_FAR = np.float32(60)


def mix_compiled(rgb: Tensor, matrix: Tensor, kept: Tensor) -> Tensor:
    """Multiply the optical densities of tiles.

    Args:
        rgb: RGB in 0..1, float32, or uint8 [N, 3, H, W], on the CPU.
        matrix: on densities, [N, 3, 3].
        kept: which tiles stay as they are, bool [N].

    Returns:
        As `rgb`, and in the order of its memory.
    """
    kernel = compiled(_mix, _log, _exp, _read, _write, _copy)
    # A density is the logarithm of full light less that of the pixel: the constants, taken together.
    offset = float(_BRIGHTEST) * (1 - matrix.sum(dim=2))
    return change_blocks(kernel, rgb, kept, (matrix, offset))


def sparse_compiled(rgb: Tensor, stains: Tensor, again: Tensor, penalty: float, kept: Tensor) -> Tensor:
    """Take tiles apart into sparse amounts of two stains, and put other stains in their place.

    Args:
        rgb: as for `mix_compiled`.
        stains: unit densities [N, 2, 3], none negative.
        again: columns are the densities that replace them, [N, 3, 2].
        penalty: of each unit of amount; see `sparse_amounts`.
        kept: which tiles stay as they are, bool [N].

    Returns:
        As `mix_compiled`.
    """
    kernel = compiled(_mix_sparse, _log, _exp, _read, _write, _copy)
    return change_blocks(kernel, rgb, kept, (stains, again), np.float32(penalty))


def _mix(
    pixels: NDArray[Any],
    changed: NDArray[Any],
    first: int,
    last: int,
    block_px: int,
    unit: np.float32,
    rounding: np.float32,
    kept: NDArray[np.bool_],
    matrix: _Floats,
    offset: _Floats,
) -> None:
    """As `change_blocks` calls it."""
    size = pixels.shape[2]
    blocks = (size + block_px - 1) // block_px
    logs = np.empty((3, block_px), np.float32)
    mixed = np.empty((3, block_px), np.float32)
    for block in range(first, last):
        tile = block // blocks
        start = block % blocks * block_px
        count = min(block_px, size - start)
        if kept[tile]:
            _copy(pixels[tile], changed[tile], start, count)
            continue
        _read(pixels[tile], start, count, unit, logs)
        for c in range(3):
            red, green, blue, shift = matrix[tile, c, 0], matrix[tile, c, 1], matrix[tile, c, 2], offset[tile, c]
            for i in range(count):
                mixed[c, i] = red * logs[0, i] + green * logs[1, i] + blue * logs[2, i] + shift
        _write(mixed, changed[tile], start, count, unit, rounding)


def _mix_sparse(
    pixels: NDArray[Any],
    changed: NDArray[Any],
    first: int,
    last: int,
    block_px: int,
    unit: np.float32,
    rounding: np.float32,
    kept: NDArray[np.bool_],
    stains: _Floats,
    again: _Floats,
    penalty: np.float32,
) -> None:
    """The same by sparse amounts; `sparse_amounts` has the three cases."""
    size = pixels.shape[2]
    blocks = (size + block_px - 1) // block_px
    logs = np.empty((3, block_px), np.float32)
    amounts = np.empty((2, block_px), np.float32)
    for block in range(first, last):
        tile = block // blocks
        start = block % blocks * block_px
        count = min(block_px, size - start)
        if kept[tile]:
            _copy(pixels[tile], changed[tile], start, count)
            continue
        _read(pixels[tile], start, count, unit, logs)
        (r1, g1, b1), (r2, g2, b2) = stains[tile, 0], stains[tile, 1]
        cosine = r1 * r2 + g1 * g2 + b1 * b2
        across = (g1 * b2 - b1 * g2) ** 2 + (b1 * r2 - r1 * b2) ** 2 + (r1 * g2 - g1 * r2) ** 2
        per_square_sine = _ONE / max(np.float32(1e-6), across)
        for i in range(count):
            red, green, blue = _BRIGHTEST - logs[0, i], _BRIGHTEST - logs[1, i], _BRIGHTEST - logs[2, i]
            one = r1 * red + g1 * green + b1 * blue - penalty
            other = r2 * red + g2 * green + b2 * blue - penalty
            both_one, both_other = (one - cosine * other) * per_square_sine, (other - cosine * one) * per_square_sine
            amounts[0, i] = _ZERO if both_one < _ZERO else max(_ZERO, one if both_other < _ZERO else both_one)
            amounts[1, i] = _ZERO if both_other < _ZERO else max(_ZERO, other if both_one < _ZERO else both_other)
        for c in range(3):
            one, other = again[tile, c, 0], again[tile, c, 1]
            for i in range(count):
                logs[c, i] = _BRIGHTEST - one * amounts[0, i] - other * amounts[1, i]
        _write(logs, changed[tile], start, count, unit, rounding)


def _copy(pixels: NDArray[Any], changed: NDArray[Any], start: int, count: int) -> None:
    for c in range(3):
        for i in range(start, start + count):
            changed[c, i] = pixels[c, i]


def _read(pixels: NDArray[Any], start: int, count: int, unit: np.float32, logs: _Floats) -> None:
    """Logarithms of the pixels of a tile [3, P] in 0..1 and one grey level."""
    # Short loops over one block each, which the compiler turns into vector instructions.
    for c in range(3):
        for i in range(count):
            logs[c, i] = np.float32(pixels[c, start + i]) * unit + _GREY_LEVEL
    for c in range(3):
        for i in range(count):
            logs[c, i] = _log(logs[c, i])


def _write(
    logs: _Floats, changed: NDArray[Any], start: int, count: int, unit: np.float32, rounding: np.float32
) -> None:
    white = _ONE / unit
    for c in range(3):
        for i in range(count):
            logs[c, i] = min(max(_ZERO, _exp(logs[c, i]) - _GREY_LEVEL), _ONE) * white + rounding
    for c in range(3):
        for i in range(count):
            changed[c, start + i] = logs[c, i]


def _log(x: np.float32) -> np.float32:
    """Of a positive number."""
    bits = np.int32(np.float32(x).view(np.int32) + _TO_ROOT_HALF)
    exponent = np.float32(np.int32(bits >> _FRACTION_BITS)) - _LOWEST
    fraction = np.int32(np.int32(bits & _FRACTION) + _ROOT_HALF).view(np.float32)
    # Twice the area hyperbolic tangent.
    z = (fraction - _ONE) / (fraction + _ONE)
    s = z * z
    return exponent * _LOG_2 + z * (_TWO + s * (_LOG_3 + s * (_LOG_5 + s * _LOG_7)))


def _exp(x: np.float32) -> np.float32:
    # In this order of arguments what is no number becomes black.
    x = min(max(-_FAR, x), _FAR)
    exponent = np.floor(x * _PER_LOG_2 + _HALF)
    f = x - exponent * _LOG_2
    series = _ONE + f * (_ONE + f * (_EXP_2 + f * (_EXP_3 + f * (_EXP_4 + f * (_EXP_5 + f * _EXP_6)))))
    return series * np.int32((exponent + _LOWEST) * _PER_FRACTION).view(np.float32)
