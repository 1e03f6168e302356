"""Tiles that a store keeps as images, as a source for another encoder."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from encoder.errors import TileError
from indexer.schema import tiles_table_name
from indexer.slide_job import TileList
from indexer.store import Store


class KeptImages:
    """Reads a slide's tiles from the store.

    Args:
        store: that keeps them.
        grid_id: their grid.
        tiles: which; `indices` are their positions in this list.
        slide_id: their slide, for messages.
    """

    path = "store"
    fallbacks = 0

    def __init__(self, store: Store, grid_id: str, tiles: TileList, slide_id: str) -> None:
        self._store = store
        self._grid_id = grid_id
        self._ids = tiles.ids
        self._slide_id = slide_id

    def read(self, index: int) -> NDArray[np.uint8]:
        """Read one tile, uint8 [tile_px, tile_px, 3].

        Raises:
            TileError: its image was not kept.
        """
        return self.read_batch(np.asarray([index]))[0]

    def read_batch(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Read tiles, uint8 [N, tile_px, tile_px, 3], in one pass over the store.

        Raises:
            TileError: the image of one was not kept.
        """
        ids = [int(self._ids[index]) for index in indices]
        images = self._store.tile_images(self._grid_id, ids)
        missing = next((tile for tile in ids if tile not in images), None)
        if missing is not None:
            raise TileError(
                f"The store {self._store.uri} keeps no image of tile {missing} of slide {self._slide_id}.",
                fix="Index the slide's file with --keep-images.",
            )
        return np.stack([np.asarray(Image.open(io.BytesIO(images[tile])).convert("RGB")) for tile in ids])


def kept_tiles(store: Store, grid_id: str, slide_no: int) -> TileList:
    """The tiles of a slide as the store has them, row by row of the grid."""
    columns = ["tile_id", "x0", "y0", "extent_px0", "tissue"]
    rows = store.read(tiles_table_name(grid_id), columns, f"slide_no = {slide_no}").sort_by("tile_id")
    return TileList(
        ids=rows["tile_id"].to_numpy(),
        x0=rows["x0"].to_numpy(),
        y0=rows["y0"].to_numpy(),
        extent_px0=rows["extent_px0"][0].as_py() if len(rows) else 0,
        tissue=rows["tissue"].to_numpy(),
        indices=np.arange(len(rows)),
    )
