"""Pictures of nuclei with their masks: ellipses in a clean stain, by Beer and Lambert."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

HAEMATOXYLIN, EOSIN = (0.65, 0.70, 0.29), (0.10, 0.97, 0.22)


def nuclei_picture(seed: int, side: int = 128, radius_px: float = 6.0) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A picture uint8 [side, side, 3] at about 0.5 um/px, and where its nuclei are, bool [side, side]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    mask = np.zeros((side, side), dtype=bool)
    for _ in range(max(2, round(side * side / (9 * radius_px) ** 2 * 3))):
        cy, cx = rng.uniform(0, side, 2)
        a, b = rng.uniform(0.7, 1.3, 2) * radius_px
        turn = rng.uniform(0, np.pi)
        u, v = (x - cx) * np.cos(turn) + (y - cy) * np.sin(turn), (y - cy) * np.cos(turn) - (x - cx) * np.sin(turn)
        mask |= (u / a) ** 2 + (v / b) ** 2 < 1
    haematoxylin = np.where(mask, rng.normal(1.3, 0.12, mask.shape), rng.normal(0.12, 0.04, mask.shape))
    eosin = np.clip(rng.normal(0.45, 0.1, mask.shape), 0.05, None)
    density = haematoxylin[..., None] * np.array(HAEMATOXYLIN) + eosin[..., None] * np.array(EOSIN)
    noise = rng.normal(0, 2, density.shape)
    return np.clip(242 * np.exp(-density) + noise, 0, 255).astype(np.uint8), mask


class NucleiTiles:
    """Such pictures as tiles in memory; `masks` has the truth."""

    in_memory = True
    slide_ids = labels = groups = splits = positions_px0 = extents_px0 = None

    def __init__(self, count: int, tile_px: int, first_seed: int = 0) -> None:
        drawn = [nuclei_picture(first_seed + i, tile_px) for i in range(count)]
        self._pixels = np.stack([picture for picture, _ in drawn])
        self.masks = np.stack([mask for _, mask in drawn])
        self.tile_px = tile_px
        self.names = [f"{first_seed + i}" for i in range(count)]

    def __len__(self) -> int:
        return len(self.names)

    def images(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Tiles as RGB [B, tile_px, tile_px, 3]."""
        return self._pixels[indices]
