"""Tiles at their places in two dimensions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from query.projection.models import Method
from query.projection.window import Window
from query.rows import TileRows


@dataclass(frozen=True)
class TileMap:
    """Every searchable tile of one encoder on one grid at its place in two dimensions.

    Attributes:
        method: `pca` or `umap`.
        rows: the tiles.
        slides: the cohort's slides, sorted by id; `rows.slide_code` counts in them.
        xy: places, float32 [N, 2], row-aligned with `rows`, finite, read-only.
        extent: the smallest window around all of them.
        fitted_on: tiles that the map was fitted on.
        stored: whether the store holds it.
        settings: how it was made.
        notes: what to know of it.
    """

    method: Method
    rows: TileRows = field(repr=False)
    slides: pa.Table = field(repr=False)
    xy: NDArray[np.float32] = field(repr=False)
    extent: Window
    fitted_on: int
    stored: bool
    settings: dict[str, Any]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)
