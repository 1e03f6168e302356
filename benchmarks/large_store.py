"""A store as a long indexing run leaves it, with vectors of one's own: for benchmarks and large tests."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from encoder.contract import EncoderSpec
from indexer import schema
from indexer.grid import make_grid, tile_id
from indexer.store import Store, create_store

TILES_PER_SLIDE = 2000


def clustered(rows: int, dim: int, seed: int, clusters: int = 3000) -> NDArray[np.float32]:
    """Unit vectors [rows, dim] around centres whose coordinates fall off by a power law, as embeddings' do."""
    rng = np.random.default_rng(seed)
    scale = (np.arange(1, dim + 1) ** -0.5).astype(np.float32)
    centres = rng.standard_normal((clusters, dim), dtype=np.float32) * scale
    matrix = np.empty((rows, dim), np.float32)
    for start in range(0, rows, 50_000):
        part = matrix[start : start + 50_000]
        part[:] = rng.standard_normal(part.shape, dtype=np.float32)
        part *= 0.5 * scale
        part += centres[rng.integers(0, clusters, len(part))]
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return matrix


def write_store(
    uri: str,
    matrix: NDArray[np.float32],
    tiles_per_slide: int = TILES_PER_SLIDE,
    overview: bytes | None = None,
    thumb: bytes | None = None,
) -> int:
    """Write slides, tiles, and unit vectors [N, dim]; returns how many slides.

    Each slide is one commit of tiles and one of vectors; two slides are of one patient, every third is a liver.

    Args:
        uri: of the new store.
        matrix: unit vectors, float32 [N, dim].
        tiles_per_slide: at most.
        overview: JPEG of every slide; None for bytes that are none.
        thumb: JPEG of every tile; None for none.
    """
    rows, dim = matrix.shape
    store, now = create_store(uri), datetime.now(UTC)
    grid = make_grid(1.0, 128)
    spec = EncoderSpec("benchmark", "random", {"kind": "none"}, dim, 128, 1.0, (0.5,) * 3, (0.25,) * 3)
    slides = -(-rows // tiles_per_slide)
    add(store, "encoders", [encoder_row(spec, now)])
    add(store, "encoder_files", [{"encoder_id": spec.encoder_id, "file": "encoder.json", "content": b"{}"}])
    add(
        store,
        "grids",
        [
            {
                "grid_id": grid.grid_id,
                "mpp": grid.mpp,
                "tile_px": grid.tile_px,
                "stride_px": grid.stride_px,
                "settings": grid.to_json(),
                "resampler": grid.resampler,
                "settings_hash": grid.settings_hash,
                "created_at": now,
            }
        ],
    )
    store.lance.add_columns("columns", "slides", [pa.field("organ", pa.string())])
    add(store, "slides", [slide_row(n, now, overview) for n in range(slides)])
    tiles, vectors = schema.tiles_table_name(grid.grid_id), schema.vectors_table_name(spec.encoder_id, grid.grid_id)
    store.lance.create(tiles, schema.TILES)
    store.lance.create(vectors, schema.vectors_schema(dim, 1.0))
    done = []
    for n in range(slides):
        first = n * tiles_per_slide
        count = min(tiles_per_slide, rows - first)
        common = tile_columns(n, count)
        extra = {"extent_px0": pa.array(np.full(count, 256, np.int32)), "thumb": pa.array([thumb] * count, pa.binary())}
        extra |= {"image": pa.nulls(count, pa.binary())}
        store.lance.append("tiles", tiles, pa.table(common | extra).select(schema.TILES.names).cast(schema.TILES))
        own = {"norm": pa.array(np.ones(count, np.float32)), "vector": as_vectors(matrix[first : first + count])}
        layout = schema.vectors_schema(dim, 1.0)
        store.lance.append("vectors", vectors, pa.table(common | own).select(layout.names).cast(layout))
        done.append(done_row(vectors, n, count, grid.settings_hash, now))
    add(store, "done", done)
    return slides


def add(store: Store, name: str, rows: list[dict[str, Any]]) -> None:
    """Append rows to a fixed table; columns that are not given stay null."""
    layout = store.table_schema(name)
    full = [dict.fromkeys(layout.names) | row for row in rows]
    store.lance.append(name, name, pa.Table.from_pylist(full, schema=layout))


def encoder_row(spec: EncoderSpec, now: datetime) -> dict[str, Any]:
    """The encoder that the vectors belong to."""
    return {
        "encoder_id": spec.encoder_id,
        "name": spec.name,
        "method": spec.method,
        "dim": spec.dim,
        "spec": json.dumps(spec.__dict__),
        "created_at": now,
    }


def slide_row(n: int, now: datetime, overview: bytes | None) -> dict[str, Any]:
    """A slide with an overview of about the usual size."""
    thumbnail = overview or np.random.default_rng(n).bytes(80_000)
    return {
        "slide_id": f"slide-{n:05d}",
        "slide_no": n,
        "path": f"/slides/slide-{n:05d}.svs",
        "fingerprint": f"{n:016x}",
        "vendor": "aperio",
        "width0": 40_000,
        "height0": 30_000,
        "mpp": 0.5,
        "mpp_source": "reader",
        "thumbnail": thumbnail,
        "patient_id": f"patient-{n // 2:04d}",
        "organ": ("liver", "colon", "lung")[n % 3],
        "registered_at": now,
    }


def tile_columns(n: int, count: int) -> dict[str, pa.Array]:
    """What tiles and vectors tables have in common."""
    row, col = np.divmod(np.arange(count, dtype=np.int32), 50)
    return {
        "tile_id": pa.array(np.asarray(tile_id(n, row, col))),
        "slide_no": pa.array(np.full(count, n, np.int32)),
        "x0": pa.array(col * 256, pa.int32()),
        "y0": pa.array(row * 256, pa.int32()),
        "tissue": pa.array(np.linspace(0, 1, count, dtype=np.float32)),
    }


def as_vectors(matrix: np.ndarray) -> pa.FixedSizeListArray:
    """Rows of a matrix as Arrow vectors."""
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel()), matrix.shape[1])


def done_row(table: str, n: int, count: int, settings_hash: str, now: datetime) -> dict[str, Any]:
    """The mark that a slide is finished."""
    return {
        "table_name": table,
        "slide_no": n,
        "slide_id": f"slide-{n:05d}",
        "fingerprint": f"{n:016x}",
        "settings_hash": settings_hash,
        "rows": count,
        "tiles": count,
        "bad_tiles": 0,
        "images": False,
        "true_mpp": 1.0,
        "upsampling": 1.0,
        "reasons": "{}",
        "reader": "vips",
        "run_id": "benchmark",
        "at": now,
    }
