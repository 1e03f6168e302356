"""The read stage: pixels of a few tiles, with their thumbnails and, where asked, their images."""

from __future__ import annotations

import io
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from encoder.errors import HistoSeekError
from indexer.schema import THUMB_PX, TILE_IMAGE_QUALITY
from indexer.slide_job import SlideJob, TileFailure

_THUMB_QUALITY = 80


@dataclass(frozen=True)
class ReadChunk:
    """Tiles as they were read.

    Attributes:
        positions: int64 [n], places in the job's list of tiles.
        pixels: uint8 [n, tile_px, tile_px, 3].
        thumbs: JPEG of each tile; None where the tiles table has its rows already.
        images: JPEG of each tile at full size; None where they are not kept.
        failures: tiles that could not be read.
        seconds: that the reading thread was busy.
    """

    positions: NDArray[np.int64]
    pixels: NDArray[np.uint8]
    thumbs: list[bytes] | None
    images: list[bytes] | None
    failures: tuple[TileFailure, ...]
    seconds: float


def read_chunk(job: SlideJob, positions: NDArray[np.int64]) -> ReadChunk:
    """Read some tiles of a job; a tile that cannot be read becomes a failure, never an exception."""
    started = time.perf_counter()
    side = job.grid.tile_px
    good: list[int] = []
    pixels = np.empty((len(positions), side, side, 3), dtype=np.uint8)
    failures: list[TileFailure] = []
    reader = job.reader
    if reader is None:
        raise RuntimeError(f"The job of slide {job.slide.slide_id} was closed before its last chunk.")
    if not job.abandoned.is_set():
        try:
            pixels = reader.read_batch(job.tiles.indices[positions])
            good = positions.tolist()
        except Exception:  # noqa: BLE001 - one tile is bad; tile by tile shows which
            for position in positions.tolist():
                try:
                    pixels[len(good)] = reader.read(int(job.tiles.indices[position]))
                    good.append(position)
                except Exception as error:  # noqa: BLE001 - whatever is wrong with one tile must not stop the slide
                    failures.append(tile_failure(job, position, "read", error))
    pixels = pixels[: len(good)]
    thumbs = [_jpeg(tile, _THUMB_QUALITY, THUMB_PX) for tile in pixels] if job.writes_tiles else None
    kept = job.writes_tiles and job.keep_images
    images = [_jpeg(tile, TILE_IMAGE_QUALITY) for tile in pixels] if kept else None
    seconds = time.perf_counter() - started
    return ReadChunk(np.asarray(good, dtype=np.int64), pixels, thumbs, images, tuple(failures), seconds)


def tile_failure(job: SlideJob, position: int, phase: str, error: Exception) -> TileFailure:
    """Put an exception into the words of the quarantine table."""
    text = " ".join(str(error).split())
    message = text if isinstance(error, HistoSeekError) else f"{job.key(position)}: {type(error).__name__}: {text}"
    return TileFailure(position, phase, type(error).__name__, message)


def _jpeg(tile: NDArray[np.uint8], quality: int, side: int | None = None) -> bytes:
    picture: Any = Image.fromarray(tile)
    if side is not None and picture.width > side:
        picture = picture.resize((side, side), Image.Resampling.BOX)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
