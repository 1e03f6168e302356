"""Colours of a map: told apart by people who see fewer colours, and clear on white and on dark paper."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Colour = tuple[int, int, int]

# Any two differ by at least 15 (CIELAB) also without red, green or blue cones, and each from both papers; the first
# six are those of Okabe and Ito that do.
CATEGORIES: tuple[Colour, ...] = (
    (0, 114, 178),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (86, 180, 233),
    (213, 94, 0),
    (142, 86, 246),
    (160, 20, 79),
    (143, 209, 117),
    (154, 107, 63),
)
OTHERS: Colour = (106, 112, 122)
MISSING: Colour = (176, 181, 189)
# From few tiles to many, and of tiles that are chosen among others.
DENSITY: tuple[Colour, Colour] = (74, 134, 206), (184, 62, 160)
CHOSEN: Colour = (213, 94, 0)
# From low to high, of growing lightness.
_RAMP: tuple[Colour, ...] = ((91, 79, 196), (47, 127, 193), (31, 160, 138), (116, 184, 74), (217, 185, 43))


def ramp(shares: NDArray[np.floating]) -> NDArray[np.float64]:
    """Colours of shares between 0 and 1 [...], float64 [..., 3] between 0 and 255."""
    stops = np.linspace(0, 1, len(_RAMP))
    return np.stack([np.interp(shares, stops, [colour[c] for colour in _RAMP]) for c in range(3)], axis=-1)


def hex_of(colour: Colour | NDArray[np.floating]) -> str:
    """A colour as HTML writes it."""
    red, green, blue = (round(float(part)) for part in colour)
    return f"#{red:02x}{green:02x}{blue:02x}"


def ramp_stops() -> tuple[str, ...]:
    """The colours of the scale of numbers, from low to high, as HTML writes them."""
    return tuple(hex_of(colour) for colour in _RAMP)
