"""How long `open_cohort` takes on a store of a million rows, each time in a fresh process, imports excluded."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from harness import Row, add_options, describe_machine, report

from encoder.contract import EncoderSpec
from indexer import schema
from indexer.grid import make_grid, tile_id
from indexer.store import Store, create_store

TILES_PER_SLIDE = 2000
# What a fresh process runs: the import is timed apart, then the opening, then what every page asks for.
PROBE = """
import json, sys, time
started = time.perf_counter()
from query.cohort import open_cohort
imported = time.perf_counter()
cohort = open_cohort(sys.argv[1])
opened = time.perf_counter()
slides, tables = cohort.slides.num_rows, len(cohort.vector_tables)
used = time.perf_counter()
heavy = [name for name in ("torch", "openslide", "pyvips") if name in sys.modules]
seconds = {"import": imported - started, "open": opened - imported, "slides": used - opened}
print(json.dumps({"seconds": seconds, "slides": slides, "tables": tables, "heavy": heavy}))
"""


def main() -> None:
    """Write a store as an indexing run would, one commit per slide and table, and open it."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    parser.set_defaults(repeats=7)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=384)
    options = parser.parse_args()
    machine = describe_machine()
    with tempfile.TemporaryDirectory() as folder:
        uri = str(Path(folder) / "store")
        started = time.perf_counter()
        slides = write_store(uri, options.rows, options.dim)
        written = time.perf_counter() - started
        size = sum(f.stat().st_size for f in Path(uri).rglob("*") if f.is_file()) / 2**30
        found = [probe(uri) for _ in range(options.repeats + 1)][1:]
    first = found[0]
    if first["slides"] != slides or first["tables"] != 1:
        sys.exit(f"the store was not read as written: {first}")
    middle = {name: statistics.median(f["seconds"][name] for f in found) for name in first["seconds"]}
    what = f"open_cohort, {options.rows:,} rows of {options.dim}, {slides} slides"
    heavy = ", ".join(first["heavy"]) or "neither torch nor OpenSlide"
    rows = [
        Row(what, middle["open"], "s", 0.3, at_least=False, detail=f"{size:.2f} GiB, median of {options.repeats}"),
        Row("its imports", middle["import"], "s", detail=f"load {heavy}"),
        Row("then .slides and .vector_tables", middle["slides"], "s"),
        Row("writing that store", written, "s", detail=f"{2 * slides} commits of tiles and vectors"),
    ]
    report("opening", rows, options.out, machine, processes=found)


def probe(uri: str) -> dict[str, Any]:
    """Open the store in a fresh process."""
    done = subprocess.run([sys.executable, "-c", PROBE, uri], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"opening failed:\n{done.stderr[-1000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def write_store(uri: str, rows: int, dim: int) -> int:
    """Write slides, tiles without pictures, and vectors; returns how many slides."""
    store, now = create_store(uri), datetime.now(UTC)
    grid = make_grid(1.0, 128)
    spec = EncoderSpec("benchmark", "random", {"kind": "none"}, dim, 128, 1.0, (0.5,) * 3, (0.25,) * 3)
    slides = -(-rows // TILES_PER_SLIDE)
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
    add(store, "slides", [slide_row(n, now) for n in range(slides)])
    tiles, vectors = schema.tiles_table_name(grid.grid_id), schema.vectors_table_name(spec.encoder_id, grid.grid_id)
    store.lance.create(tiles, schema.TILES)
    store.lance.create(vectors, schema.vectors_schema(dim, 1.0))
    rng, done = np.random.default_rng(0), []
    for n in range(slides):
        count = min(TILES_PER_SLIDE, rows - n * TILES_PER_SLIDE)
        common = tile_columns(n, count)
        extra = {"extent_px0": pa.array(np.full(count, 256, np.int32)), "thumb": pa.nulls(count, pa.binary())}
        extra |= {"image": pa.nulls(count, pa.binary())}
        store.lance.append("tiles", tiles, pa.table(common | extra).select(schema.TILES.names).cast(schema.TILES))
        unit = rng.standard_normal((count, dim), dtype=np.float32)
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        own = {"norm": pa.array(np.ones(count, np.float32)), "vector": as_vectors(unit)}
        layout = schema.vectors_schema(dim, 1.0)
        store.lance.append("vectors", vectors, pa.table(common | own).select(layout.names).cast(layout))
        done.append(done_row(vectors, n, count, grid.settings_hash, now))
    add(store, "done", done)
    return slides


def add(store: Store, name: str, rows: list[dict[str, Any]]) -> None:
    """Append rows to a fixed table; columns that are not given stay null."""
    layout = schema.FIXED_TABLES[name]
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


def slide_row(n: int, now: datetime) -> dict[str, Any]:
    """A slide with an overview of about the usual size."""
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
        "thumbnail": np.random.default_rng(n).bytes(80_000),
        "patient_id": f"patient-{n // 2:04d}",
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
        "tissue": pa.array(np.ones(count, np.float32)),
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


if __name__ == "__main__":
    main()
