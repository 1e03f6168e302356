"""Stain normalisation of one picture in plain NumPy float64, written from the papers' formulas alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
Array = NDArray[np.float64]

TO_XYZ = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
WHITE = np.array([0.95047, 1.0, 1.08883])


def density(picture: Picture) -> Array:
    """Optical densities [H * W, 3]."""
    return -np.log((picture.reshape(-1, 3).astype(np.float64) + 1) / 256)


def seen(picture: Picture, count: int | None) -> Picture:
    """The pixels on a regular lattice that are looked at where `count` stained ones are enough."""
    if count is None:
        return picture
    stride = max(1, int(np.sqrt(picture.shape[0] * picture.shape[1] // (4 * count))))
    return picture[stride // 2 :: stride, stride // 2 :: stride]


def picked(pixels: Array, chosen: NDArray[np.bool_], count: int | None) -> Array:
    """The chosen pixels, or `count` of them at even distances."""
    held = np.flatnonzero(chosen)
    if count is not None:
        held = held[[int((i + 0.5) * len(held) / count) for i in range(count)]]
    return pixels[held]


def macenko(picture: Picture, count: int | None = None) -> tuple[Array, Array]:
    """Stains [2, 3], haematoxylin first, and their strengths [2]."""
    od = density(seen(picture, count))
    pixels = picked(od, (od > 0.15).all(axis=1), count)
    stains = extremes(pixels)
    return stains, np.percentile(pixels @ np.linalg.pinv(stains), 99, axis=0)


def extremes(pixels: Array) -> Array:
    """Directions at the 1st and 99th percentile of the angle in the plane of the two main axes."""
    values, axes = np.linalg.eigh(np.cov(pixels.T))
    order = np.argsort(values)[::-1]
    main, other = axes[:, order[0]], axes[:, order[1]]
    if main.sum() < 0:
        main = -main
    angles = np.arctan2(pixels @ other, pixels @ main)
    found = [np.cos(a) * main + np.sin(a) * other for a in np.percentile(angles, [1, 99])]
    return np.array(sorted(found, key=lambda stain: -stain[0]))


def vahadane(picture: Picture, count: int | None = None, rounds: int = 60) -> tuple[Array, Array]:
    """The same by sparse non-negative factorisation."""
    od = density(seen(picture, count))
    pixels = picked(od, (od > 0.15).any(axis=1), count)
    stains = np.clip(extremes(pixels), 0, None)
    stains /= np.linalg.norm(stains, axis=1, keepdims=True)
    for _ in range(rounds):
        amounts = sparse(stains, pixels, 0.1)
        a, b = amounts.T @ amounts, amounts.T @ pixels
        for i in range(2):
            row = np.clip(stains[i] + (b[i] - a[i] @ stains) / max(a[i, i], 1e-6), 0, None)
            stains[i] = row / max(1.0, float(np.linalg.norm(row)))
    stains = np.array(sorted(stains, key=lambda stain: -stain[0]))
    amounts = sparse(stains, pixels, 0.01)
    return stains, np.percentile(amounts, 99, axis=0)


def sparse(stains: Array, pixels: Array, penalty: float) -> Array:
    """Non-negative amounts [P, 2] of least penalised residual: for each pixel the best of the four supports."""
    best, lowest = np.zeros((len(pixels), 2)), 0.5 * (pixels**2).sum(axis=1)
    for support in ([0], [1], [0, 1]):
        part = stains[support]
        amounts = np.linalg.solve(part @ part.T, part @ pixels.T - penalty).T
        cost = 0.5 * ((pixels - amounts @ part) ** 2).sum(axis=1) + penalty * amounts.sum(axis=1)
        better = (amounts >= 0).all(axis=1) & (cost < lowest)
        lowest = np.where(better, cost, lowest)
        found = np.zeros_like(best)
        found[:, support] = amounts
        best = np.where(better[:, None], found, best)
    return best


def restained(picture: Picture, source: tuple[Array, Array], target: tuple[Array, Array], penalty: float) -> Array:
    """RGB in 0..255 with the target's stains; amounts by least squares, or sparse ones where there is a penalty."""
    od = density(picture)
    if penalty:
        amounts = sparse(source[0], od, penalty)
    else:
        amounts = od @ np.linalg.pinv(source[0])
    again = (amounts / source[1] * target[1]) @ target[0]
    return np.clip(256 * np.exp(-again) - 1, 0, 255).reshape(picture.shape)


def lab(rgb: Array) -> Array:
    """CIELAB of RGB in 0..1, [..., 3]."""
    light = np.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    xyz = light @ TO_XYZ.T / WHITE
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


def rgb_of(colours: Array) -> Array:
    """RGB in 0..1 of CIELAB."""
    y = (colours[..., 0] + 16) / 116
    f = np.stack([y + colours[..., 1] / 500, y, y - colours[..., 2] / 200], axis=-1)
    xyz = np.where(f > 0.008856 ** (1 / 3), f**3, (f - 16 / 116) / 7.787) * WHITE
    light = xyz @ np.linalg.inv(TO_XYZ).T
    bent = 1.055 * np.maximum(light, 1e-9) ** (1 / 2.4) - 0.055
    return np.clip(np.where(light > 0.0031308, bent, 12.92 * light), 0, 1)


def reinhard(picture: Picture, count: int | None = None) -> tuple[Array, Array]:
    """Mean and standard deviation in CIELAB of what is stained."""
    picture = seen(picture, count)
    stained = (density(picture) > 0.15).any(axis=1)
    colours = lab(picture.reshape(-1, 3) / 255)[stained]
    return colours.mean(axis=0), colours.std(axis=0)


def reinhard_restained(picture: Picture, source: tuple[Array, Array], target: tuple[Array, Array]) -> Array:
    """RGB in 0..255 with the target's mean and spread; fades out where there is less and less stain."""
    mean, spread = source
    rgb = picture.reshape(-1, 3) / 255
    changed = rgb_of((lab(rgb) - mean) / spread * target[1] + target[0])
    weight = np.clip((density(picture).max(axis=1) - 0.10) / 0.10, 0, 1)[:, None]
    return 255 * (rgb + weight * (changed - rgb)).reshape(picture.shape)
