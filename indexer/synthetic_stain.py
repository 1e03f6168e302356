"""Scanners and stains of synthetic slides: light that has passed two dyes, by Beer and Lambert."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from encoder.errors import UsageError

Vector = tuple[float, float, float]

INKS = ("blue", "green", "black")
INK_DENSITIES: dict[str, Vector] = {
    "blue": (1.9, 1.1, 0.25),
    "green": (1.7, 0.45, 1.2),
    "black": (1.6, 1.6, 1.5),
}
# Optical density of RGB per unit of dye, and how far single laboratories stray from it.
_HAEMATOXYLIN = np.array([0.65, 0.70, 0.29])
_EOSIN = np.array([0.10, 0.97, 0.22])
_STRAY = 0.07


@dataclass(frozen=True)
class Scanner:
    """How one laboratory stains and one scanner sees.

    Attributes:
        haematoxylin: optical density of RGB per unit concentration, unit length.
        eosin: likewise.
        haematoxylin_gain: concentration that dense chromatin reaches.
        eosin_gain: concentration that dense collagen reaches.
        white: RGB of empty glass.
        shading: fall of the light towards the corners, as a share.
        noise: standard deviation of the sensor's noise in grey levels.
        blur_px0: radius of the optical blur in level-0 pixels.
    """

    name: str
    haematoxylin: Vector
    eosin: Vector
    haematoxylin_gain: float
    eosin_gain: float
    white: Vector
    shading: float
    noise: float
    blur_px0: float


SCANNERS: dict[str, Scanner] = {
    s.name: s
    for s in (
        Scanner("neutral", (0.65, 0.70, 0.29), (0.10, 0.97, 0.22), 1.5, 0.92, (243, 243, 244), 0.02, 1.6, 0.55),
        Scanner("violet", (0.62, 0.75, 0.24), (0.22, 0.93, 0.16), 1.75, 0.72, (240, 238, 246), 0.03, 1.2, 0.7),
        Scanner("warm", (0.58, 0.72, 0.39), (0.05, 0.93, 0.38), 1.3, 1.12, (246, 242, 236), 0.02, 2.2, 0.45),
        Scanner("faded", (0.68, 0.66, 0.32), (0.13, 0.96, 0.26), 0.95, 0.62, (238, 241, 240), 0.04, 1.8, 0.8),
        Scanner("dark", (0.70, 0.67, 0.25), (0.08, 0.96, 0.30), 1.7, 1.2, (236, 236, 238), 0.03, 2.5, 0.6),
    )
}


def find_scanner(scanner: str | int) -> Scanner:
    """Give a preset by its name, or one drawn from an integer.

    Raises:
        UsageError: no preset has that name.
    """
    if isinstance(scanner, str):
        if scanner not in SCANNERS:
            raise UsageError(
                f"no scanner is named {scanner!r};", fix=f"use one of {', '.join(SCANNERS)} or an integer."
            )
        return SCANNERS[scanner]
    rng = np.random.default_rng([7, scanner])
    light = rng.uniform(236, 247)
    return Scanner(
        f"seeded-{scanner}",
        _near(rng, _HAEMATOXYLIN),
        _near(rng, _EOSIN),
        float(rng.uniform(1.0, 1.75)),
        float(rng.uniform(0.65, 1.15)),
        _triple(light + rng.uniform(-3, 3, 3)),
        float(rng.uniform(0.01, 0.04)),
        float(rng.uniform(1.0, 2.5)),
        float(rng.uniform(0.4, 0.8)),
    )


def transmit(
    scanner: Scanner,
    haematoxylin: NDArray[np.float32],
    eosin: NDArray[np.float32],
    light: NDArray[np.float32],
    noise: NDArray[np.float32],
) -> NDArray[np.uint8]:
    """Colour concentration maps.

    Args:
        haematoxylin: float32 [h, w], 0 to about 1.
        eosin: float32 [h, w], 0 to about 1.
        light: float32 [h, w], share of the light that reaches the glass.
        noise: float32 [h, w, 3] of unit variance.

    Returns:
        uint8 RGB [h, w, 3].
    """
    h = haematoxylin * np.float32(scanner.haematoxylin_gain)
    e = eosin * np.float32(scanner.eosin_gain)
    rgb = np.empty((*h.shape, 3), np.uint8)
    for c in range(3):
        value = h * np.float32(-scanner.haematoxylin[c])
        value -= e * np.float32(scanner.eosin[c])
        np.exp(value, out=value)
        value *= light
        value *= np.float32(scanner.white[c])
        value += noise[..., c] * np.float32(scanner.noise)
        np.clip(value, 0, 255, out=value)
        rgb[..., c] = value
    return rgb


def _near(rng: np.random.Generator, vector: NDArray[np.float64]) -> Vector:
    moved = np.maximum(vector + _STRAY * rng.standard_normal(3), 0.02)
    return _triple(moved / np.linalg.norm(moved))


def _triple(values: NDArray[np.float64]) -> Vector:
    r, g, b = (float(v) for v in values)
    return r, g, b
