"""The embed stage: vectors of unit length from the tiles that were read, slide by slide and in order."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from encoder.contract import Encoder, NonFiniteVectorsError
from encoder.errors import EncoderError
from indexer.reading import ReadChunk, tile_failure
from indexer.slide_job import SlideJob, TileFailure


@dataclass(frozen=True)
class Vectors:
    """One encoder's vectors of a batch.

    Attributes:
        kept: int64 [m], rows of the batch that have a vector.
        unit: float32 [m, dim], of unit length.
        norms: float32 [m], the lengths that they had.
        failures: tiles of the batch without a vector.
    """

    kept: NDArray[np.int64]
    unit: NDArray[np.float32]
    norms: NDArray[np.float32]
    failures: tuple[TileFailure, ...]


@dataclass(frozen=True)
class EmbeddedBatch:
    """A batch of one job, its pixels let go.

    Attributes:
        positions: int64 [n], places in the job's list of tiles.
        thumbs, images: as in `ReadChunk`.
        vectors: one per target of the job.
        failures: tiles that could not be read.
        planned: tiles that the batch was to hold.
        embed_seconds, read_seconds: that the stages were busy with it.
    """

    positions: NDArray[np.int64]
    thumbs: list[bytes] | None
    images: list[bytes] | None
    vectors: tuple[Vectors, ...]
    failures: tuple[TileFailure, ...]
    planned: int
    embed_seconds: float
    read_seconds: float


def embed_batch(job: SlideJob, chunks: Sequence[ReadChunk]) -> EmbeddedBatch:
    """Embed the tiles of some chunks of one job with each of its encoders.

    Raises:
        EncoderError: an encoder fails in another way than by vectors that are not finite.
    """
    started = time.perf_counter()
    positions = np.concatenate([chunk.positions for chunk in chunks])
    pixels = np.concatenate([chunk.pixels for chunk in chunks]) if len(chunks) > 1 else chunks[0].pixels
    vectors = tuple(_embed(job, target.encoder, positions, pixels) for target in job.targets)
    return EmbeddedBatch(
        positions=positions,
        thumbs=_joined([chunk.thumbs for chunk in chunks]),
        images=_joined([chunk.images for chunk in chunks]),
        vectors=vectors,
        failures=tuple(failure for chunk in chunks for failure in chunk.failures),
        planned=sum(len(chunk.positions) + len(chunk.failures) for chunk in chunks),
        embed_seconds=time.perf_counter() - started,
        read_seconds=sum(chunk.seconds for chunk in chunks),
    )


def _embed(job: SlideJob, encoder: Encoder, positions: NDArray[np.int64], pixels: NDArray[np.uint8]) -> Vectors:
    rows = np.arange(len(positions))
    failures: list[TileFailure] = []
    raw = np.empty((0, encoder.spec.dim), dtype=np.float32)
    while len(rows):
        try:
            raw = encoder.embed(pixels if len(rows) == len(pixels) else pixels[rows])
            break
        except NonFiniteVectorsError as error:
            # The other tiles of the batch are embedded again without these.
            bad = np.asarray(error.rows, dtype=np.int64)
            if not len(bad):
                raise
            failures += [_not_finite(job, int(positions[row]), encoder.spec.name) for row in rows[bad]]
            rows = np.delete(rows, bad)
    norms = np.sqrt(np.einsum("nd,nd->n", raw, raw, dtype=np.float64))
    directed = norms > 0
    failures += [_zero(job, int(positions[row]), encoder.spec.name) for row in rows[~directed]]
    unit = (raw[directed] / norms[directed, None]).astype(np.float32)
    return Vectors(rows[directed], unit, norms[directed].astype(np.float32), tuple(failures))


def _not_finite(job: SlideJob, position: int, name: str) -> TileFailure:
    error = EncoderError(f"The encoder {name} gives no finite vector for the tile {job.key(position)}.")
    return tile_failure(job, position, "embed", error)


def _zero(job: SlideJob, position: int, name: str) -> TileFailure:
    error = EncoderError(f"The encoder {name} gives a vector of zeros for the tile {job.key(position)}.")
    return tile_failure(job, position, "embed", error)


def _joined(parts: Sequence[list[bytes] | None]) -> list[bytes] | None:
    return None if any(part is None for part in parts) else [item for part in parts for item in part or []]
