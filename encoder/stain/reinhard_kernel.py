"""Reinhard's two passes over pixels, fused: the figures of each tile, and the change. `reinhard.py` has the formulas.

What kernels are made of is plain Python on float32; `compiled.py` compiles it. Roots are exact to float32: a guess
from the bits of the number, and two rounds of Halley's method.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from encoder.stain.compiled import BLOCK_PX, change_blocks, compiled, in_threads, unit_of
from encoder.stain.fits import Fit
from encoder.stain.reinhard import LIGHTNESS_OFFSET, ROOTS_TO_LAB, TO_XYZ, WHITE, judged

_Floats = NDArray[np.float32]
# Tiles of a few thousand pixels that are worth a thread.
_TILES_PER_THREAD = 8

# The curves of sRGB (IEC 61966-2-1) and of CIELAB (CIE 15): where each bends, and its slope below that.
_KNEE_RGB, _SLOPE_RGB = np.float32(0.04045), np.float32(1 / 12.92)
_KNEE_LIGHT, _SLOPE_LIGHT = np.float32(0.0031308), np.float32(12.92)
_KNEE_XYZ, _SLOPE_XYZ = np.float32((6 / 29) ** 3), np.float32((29 / 6) ** 2 / 3)
_KNEE_ROOT, _SLOPE_ROOT = np.float32(6 / 29), np.float32(3 * (6 / 29) ** 2)
_GAIN, _PER_GAIN, _LIFT = np.float32(1.055), np.float32(1 / 1.055), np.float32(0.055)
# The bits of a float32, read as a whole number, are about its logarithm: a share of them is about a root.
_THIRD, _THIRD_BITS = np.float32(1 / 3), np.float32(709921077)
_FIFTH, _FIFTH_BITS = np.float32(1 / 5), np.float32(851750000)
_ZERO, _HALF, _ONE, _TWO, _TWO_THIRDS = (np.float32(value) for value in (0, 0.5, 1, 2, 2 / 3))
_GREY_LEVEL = np.float32(1 / 255)


def fit_reinhard_compiled(pixels: Tensor, glass: float) -> Fit:
    """What `fit_reinhard` finds in the pixels whose darkest channel is denser than glass.

    Args:
        pixels: RGB in 0..1, float32, or uint8 [N, 3, P], on the CPU.
        glass: optical density.
    """
    kernel = compiled(_moments, _cube_root, _fifth_root, _light, _root, _read)
    found = np.empty((len(pixels), 7))
    planes, unit, to_lab = pixels.detach().numpy(), unit_of(pixels), np.array(ROOTS_TO_LAB, np.float32)
    brightest = np.float32((256 * math.exp(-glass) - 1) / 255)

    def run(first: int, last: int) -> None:
        kernel(planes, first, last, BLOCK_PX, unit, brightest, _to_roots(), to_lab, found)

    in_threads(len(pixels), _TILES_PER_THREAD, run)
    found[:, 1] += LIGHTNESS_OFFSET
    share, mean, spread = torch.from_numpy(found).float().split([1, 3, 3], dim=1)
    return judged(mean, spread, share[:, 0])


def shift_roots_compiled(
    rgb: Tensor, matrix: Tensor, offset: Tensor, kept: Tensor, fade: tuple[float, float]
) -> Tensor:
    """Change the cube roots of tiles, the more the denser a pixel is.

    Args:
        rgb: RGB in 0..1, float32, or uint8 [N, 3, H, W], on the CPU.
        matrix: on roots, [N, 3, 3].
        offset: added after it, [N, 3, 1].
        kept: which tiles stay as they are, bool [N].
        fade: densities of the darkest channel at which the change begins, and is whole.

    Returns:
        As `rgb`, and in the order of its memory.
    """
    kernel = compiled(_change, _cube_root, _fifth_root, _light, _root, _read, _cube, _encoded)
    to_roots = _to_roots()
    middle = np.float32(255 / 256 * math.exp((fade[0] + fade[1]) / 2))
    steepness = np.float32(1 / (fade[1] - fade[0]))
    of_tiles = (matrix, offset[:, :, 0])
    return change_blocks(kernel, rgb, kept, of_tiles, to_roots, np.linalg.inv(to_roots), middle, steepness)


def _to_roots() -> _Floats:
    return (np.array(TO_XYZ) / np.array(WHITE)[:, None]).astype(np.float32)


def _moments(
    pixels: NDArray[Any],
    first: int,
    last: int,
    block_px: int,
    unit: np.float32,
    brightest: np.float32,
    to_xyz: _Floats,
    to_lab: _Floats,
    found: NDArray[np.float64],
) -> None:
    """Share of pixels whose darkest channel is below `brightest`; mean and spread of the three channels of theirs."""
    size = pixels.shape[2]
    plain = np.empty((3, block_px), np.float32)
    light = np.empty((3, block_px), np.float32)
    roots = np.empty((3, block_px), np.float32)
    sums = np.empty(7)
    for tile in range(first, last):
        sums[:] = 0
        for start in range(0, size, block_px):
            count = min(block_px, size - start)
            _read(pixels[tile], start, count, unit, to_xyz, plain, light, roots)
            for i in range(count):
                if min(plain[0, i], plain[1, i], plain[2, i]) < brightest:
                    sums[0] += 1
                    for c in range(3):
                        lab = to_lab[c, 0] * roots[0, i] + to_lab[c, 1] * roots[1, i] + to_lab[c, 2] * roots[2, i]
                        value = np.float64(lab)
                        sums[1 + c] += value
                        sums[4 + c] += value * value
        held = max(1.0, sums[0])
        found[tile, 0] = sums[0] / max(1, size)
        for c in range(3):
            mean = sums[1 + c] / held
            found[tile, 1 + c] = mean
            found[tile, 4 + c] = math.sqrt(max(0.0, sums[4 + c] / held - mean * mean))


def _change(
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
    to_xyz: _Floats,
    to_rgb: _Floats,
    middle: np.float32,
    steepness: np.float32,
) -> None:
    """As `change_blocks` calls it."""
    size = pixels.shape[2]
    blocks = (size + block_px - 1) // block_px
    white = _ONE / unit
    plain = np.empty((3, block_px), np.float32)
    light = np.empty((3, block_px), np.float32)
    roots = np.empty((3, block_px), np.float32)
    weight = np.empty(block_px, np.float32)
    for block in range(first, last):
        tile = block // blocks
        start = block % blocks * block_px
        count = min(block_px, size - start)
        if kept[tile]:
            for c in range(3):
                for i in range(count):
                    changed[tile, c, start + i] = pixels[tile, c, start + i]
            continue
        _read(pixels[tile], start, count, unit, to_xyz, plain, light, roots)
        for i in range(count):
            # Transmission over that in the middle of the fade, and the series of the area hyperbolic tangent for its
            # logarithm; where that is no longer good, the change is whole or nothing.
            ratio = (min(plain[0, i], plain[1, i], plain[2, i]) + _GREY_LEVEL) * middle
            z = (ratio - _ONE) / (ratio + _ONE)
            weight[i] = min(max(_ZERO, _HALF - steepness * z * (_TWO + _TWO_THIRDS * z * z)), _ONE)
        for c in range(3):
            x, y, z, shift = matrix[tile, c, 0], matrix[tile, c, 1], matrix[tile, c, 2], offset[tile, c]
            for i in range(count):
                light[c, i] = _cube(x * roots[0, i] + y * roots[1, i] + z * roots[2, i] + shift)
        for c in range(3):
            x, y, z = to_rgb[c, 0], to_rgb[c, 1], to_rgb[c, 2]
            for i in range(count):
                new = _encoded(x * light[0, i] + y * light[1, i] + z * light[2, i])
                roots[c, i] = (plain[c, i] + weight[i] * (new - plain[c, i])) * white + rounding
        for c in range(3):
            for i in range(count):
                changed[tile, c, start + i] = roots[c, i]


def _read(
    pixels: NDArray[Any],
    start: int,
    count: int,
    unit: np.float32,
    to_xyz: _Floats,
    plain: _Floats,
    light: _Floats,
    roots: _Floats,
) -> None:
    """Fill a block with the pixels of a tile [3, P] in 0..1, their linear light, and their cube roots."""
    # Short loops over one block each, which the compiler turns into vector instructions.
    for c in range(3):
        for i in range(count):
            plain[c, i] = np.float32(pixels[c, start + i]) * unit
    for c in range(3):
        for i in range(count):
            light[c, i] = _light(plain[c, i])
    for c in range(3):
        red, green, blue = to_xyz[c, 0], to_xyz[c, 1], to_xyz[c, 2]
        for i in range(count):
            roots[c, i] = _root(red * light[0, i] + green * light[1, i] + blue * light[2, i])


def _light(rgb: np.float32) -> np.float32:
    above = max(_KNEE_RGB, rgb)
    base = (above + _LIFT) * _PER_GAIN
    # To the power of 2.4: the square of base times its fifth root.
    product = base * _fifth_root(base)
    return product * product + (rgb - above) * _SLOPE_RGB


def _root(xyz: np.float32) -> np.float32:
    above = max(_KNEE_XYZ, xyz)
    return _cube_root(above) + (xyz - above) * _SLOPE_XYZ


def _cube(root: np.float32) -> np.float32:
    above = max(_KNEE_ROOT, root)
    return above * above * above + (root - above) * _SLOPE_ROOT


def _encoded(light: np.float32) -> np.float32:
    # In this order of arguments what is no number becomes black.
    inside = min(max(_ZERO, light), _ONE)
    above = max(_KNEE_LIGHT, inside)
    root = _cube_root(above)
    # To the power of 1/2.4 = 1/3 + 1/12.
    power = root * np.sqrt(np.sqrt(root))
    return min(max(_ZERO, power * _GAIN - _LIFT + (inside - above) * _SLOPE_LIGHT), _ONE)


def _cube_root(x: np.float32) -> np.float32:
    """Of a positive number."""
    guess = np.int32(np.float32(np.float32(x).view(np.int32)) * _THIRD + _THIRD_BITS).view(np.float32)
    cube = guess * guess * guess
    guess = guess * (cube + x + x) / (cube + cube + x)
    cube = guess * guess * guess
    return guess * (cube + x + x) / (cube + cube + x)


def _fifth_root(x: np.float32) -> np.float32:
    """Of a positive number."""
    guess = np.int32(np.float32(np.float32(x).view(np.int32)) * _FIFTH + _FIFTH_BITS).view(np.float32)
    square = guess * guess
    power = square * square * guess
    guess = guess * (power + power + x + x + x) / (power + power + power + x + x)
    square = guess * guess
    power = square * square * guess
    return guess * (power + power + x + x + x) / (power + power + power + x + x)
