"""Labelled tiles of synthetic slides, for judging encoders where no labelled cohort is at hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import openslide
from numpy.typing import NDArray
from PIL import Image

from encoder.errors import UsageError
from indexer.synthetic import SyntheticTruth, classes_at


class SyntheticTiles:
    """The tiles of synthetic slides on a grid, in memory, each with the class that fills most of it.

    Tiles that are mostly glass are left out. It is a `TileSource`.

    Args:
        truths: the slides; their files are read once.
        tile_px: side of the tiles.
        mpp: micrometres per pixel of the tiles.
        stride_tiles: distance between tiles as a share of their side.

    Raises:
        UsageError: a slide's mpp does not divide `mpp`, or no tile shows tissue.
    """

    in_memory = True
    splits = None

    def __init__(
        self, truths: Sequence[SyntheticTruth], tile_px: int, mpp: float = 1.0, stride_tiles: float = 1.0
    ) -> None:
        self.tile_px = tile_px
        pixels: list[NDArray[np.uint8]] = []
        places: list[tuple[int, int]] = []
        extents: list[int] = []
        self.slide_ids: list[str] = []
        self.labels: list[str] = []
        for truth in truths:
            factor = round(mpp / truth.mpp)
            if abs(factor * truth.mpp - mpp) > 1e-6:
                raise UsageError(
                    f"{truth.slide_id} has {truth.mpp:g} um/px, which does not divide {mpp:g}.", fix="Draw it at 0.5."
                )
            extent_px0 = tile_px * factor
            step_px0 = max(1, round(extent_px0 * stride_tiles))
            x0, y0 = np.meshgrid(
                np.arange(0, truth.width0 - extent_px0 + 1, step_px0),
                np.arange(0, truth.height0 - extent_px0 + 1, step_px0),
            )
            classes, _ = classes_at(truth, x0.ravel(), y0.ravel(), extent_px0)
            with openslide.OpenSlide(str(truth.path)) as slide:
                whole = slide.read_region((0, 0), 0, slide.dimensions).convert("RGB")
            for x, y, number in zip(x0.ravel(), y0.ravel(), classes, strict=True):
                if number < 0:
                    continue
                tile = whole.crop((int(x), int(y), int(x) + extent_px0, int(y) + extent_px0))
                pixels.append(np.asarray(tile.resize((tile_px, tile_px), Image.Resampling.BOX)))
                places.append((int(x), int(y)))
                extents.append(extent_px0)
                self.slide_ids.append(truth.slide_id)
                self.labels.append(truth.classes[number])
        if not pixels:
            raise UsageError(f"No tile of {tile_px} px at {mpp:g} um/px shows tissue.", fix="Draw larger slides.")
        self._pixels = np.stack(pixels)
        self.groups = self.slide_ids
        self.names = [f"{slide}/{x}-{y}" for slide, (x, y) in zip(self.slide_ids, places, strict=True)]
        self.positions_px0: NDArray[np.int64] = np.array(places, dtype=np.int64)
        self.extents_px0: NDArray[np.int64] = np.array(extents, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.names)

    def images(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Tiles as RGB [B, tile_px, tile_px, 3]."""
        return self._pixels[indices]
