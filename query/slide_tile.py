"""Pixels of an indexed slide on a grid that is already known: a centred tile, or tiles by their ids."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoder.errors import QueryError, SlideError, TileError
from indexer.grid import Geometry, Grid, TilePlan, lay_grid
from indexer.manifest import SlideEntry
from indexer.pixels import TileReader
from indexer.slide import Slide, open_slide


@contextmanager
def open_indexed(slide_row: dict[str, Any]) -> Iterator[Slide]:
    """Open the file of a slide at the scale that was settled when it was indexed.

    Args:
        slide_row: of the store's slides.

    Raises:
        SlideError: the slide cannot be opened, or is no longer the file that was indexed.
    """
    with open_slide(_entry(slide_row)) as slide:
        if slide_row["fingerprint"] not in (None, slide.info.fingerprint):
            raise SlideError(
                f"{slide.info.path} is not the file that was indexed.", "Index it again, or bring the file back."
            )
        yield slide


def read_centred_tile(slide_row: dict[str, Any], x0: int, y0: int, grid: Grid) -> NDArray[np.uint8]:
    """Read the tile of a grid's scale and size whose centre is a point, uint8 [tile_px, tile_px, 3].

    Args:
        slide_row: of the store's slides.
        x0, y0: level-0 pixels; parts of the tile outside the slide are white.

    Raises:
        QueryError: the slide can no longer be read there, or is not the file that was indexed.
    """
    try:
        with open_indexed(slide_row) as slide:
            geometry = lay_grid(slide.info, grid)
            half = geometry.extent_exact_px0 / 2
            corner = [centre - half for centre in (x0, y0)]
            if geometry.native:  # native tiles begin on whole pixels of their level
                corner = [round(value / geometry.downsample) * geometry.downsample for value in corner]
            shifted = replace(geometry, origin_x0=corner[0], origin_y0=corner[1], rows=1, columns=1)
            plan = _plan(slide, grid, shifted, np.zeros(1, np.int32), np.zeros(1, np.int32))
            return TileReader(slide, plan).read(0)
    except (SlideError, TileError) as error:
        raise QueryError(
            f"Slide {slide_row['slide_id']} cannot be read at {x0},{y0}: {error.message}",
            "Ask by an indexed tile, or make the slide's file available.",
        ) from error


@contextmanager
def open_tiles(
    slide_row: dict[str, Any], grid: Grid, tile_ids: NDArray[np.int64]
) -> Iterator[Callable[[int], NDArray[np.uint8]]]:
    """Open a slide for reading tiles of a grid by their position in `tile_ids`; safe from several threads.

    Args:
        slide_row: of the store's slides.
        tile_ids: int64 [N], of this slide.

    Raises:
        SlideError: the slide cannot be opened, or is no longer the file that was indexed.
    """
    with open_indexed(slide_row) as slide:
        rows, cols = (tile_ids >> 16 & 0xFFFF).astype(np.int32), (tile_ids & 0xFFFF).astype(np.int32)
        yield TileReader(slide, _plan(slide, grid, lay_grid(slide.info, grid), rows, cols)).read


def _entry(slide_row: dict[str, Any]) -> SlideEntry:
    """The slide at the scale that was settled when it was indexed."""
    return SlideEntry(
        slide_id=slide_row["slide_id"],
        path=Path(slide_row["path"]),
        mpp=slide_row["mpp"],
        patient_id=slide_row["patient_id"],
        site_id=slide_row["site_id"],
        cohort=slide_row["cohort"],
        mask=None,
        extra={},
    )


def _plan(slide: Slide, grid: Grid, geometry: Geometry, rows: NDArray[np.int32], cols: NDArray[np.int32]) -> TilePlan:
    return TilePlan(
        slide=slide.info,
        grid=grid,
        geometry=geometry,
        rows=rows,
        cols=cols,
        x0=np.rint(geometry.origin_x0 + cols * geometry.stride_exact_px0).astype(np.int32),
        y0=np.rint(geometry.origin_y0 + rows * geometry.stride_exact_px0).astype(np.int32),
        extent_px0=max(1, round(geometry.extent_exact_px0)),
        tissue=np.ones(len(rows), np.float32),
        reasons={},
        warnings=(),
    )
