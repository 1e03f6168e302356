"""Small stores written without any slide: clustered vectors, coloured thumbnails."""

from __future__ import annotations

import io
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from indexer import schema
from indexer.grid import make_grid, tile_id
from indexer.store import Store, create_store

COLOURS = [(205, 92, 140), (150, 90, 170), (235, 190, 205), (110, 60, 140)]


@dataclass
class SmallStore:
    """A store on disk and what was put into it, one entry per finished tile."""

    path: Path
    store: Store
    grid_id: str
    encoder_id: str
    slide_ids: list[str]
    matrix: np.ndarray
    slide: np.ndarray
    x0: np.ndarray
    y0: np.ndarray
    tissue: np.ndarray
    cluster: np.ndarray
    tile_id: np.ndarray

    def key(self, row: int) -> str:
        return f"{self.slide_ids[self.slide[row]]}@{self.x0[row]},{self.y0[row]}"


def append(store: Store, name: str, rows: list[dict[str, Any]]) -> None:
    full = store.table_schema(name)
    store.lance.append(name, name, pa.Table.from_pylist([dict.fromkeys(full.names) | row for row in rows], schema=full))


def jpeg(colour) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def write_store():
    """Writes a store of slides with a square grid of tiles each; more calls on one path add vectors."""

    def write(
        path: Path,
        slides: list[dict[str, Any]],
        side: int = 6,
        dim: int = 16,
        seed: int = 0,
        spread: float = 0.15,
        unfinished: tuple[str, ...] = (),
        encoder_id: str = "toy-12345678",
        extra: dict[str, pa.DataType] | None = None,
    ) -> SmallStore:
        rng = np.random.default_rng(seed)
        store = create_store(str(path))
        grid = make_grid(1.0, 64)
        now = datetime.now(UTC)
        if "slides" in store.tables() and not store.count("slides"):
            if extra:
                store.lance.add_columns("columns", "slides", [pa.field(k, v) for k, v in extra.items()])
            rows = [
                {"slide_no": no, "path": f"/absent/{row['slide_id']}.tif", "mpp": 0.5, "width0": 2000, "height0": 2000}
                | {"registered_at": now}
                | row
                for no, row in enumerate(slides)
            ]
            append(store, "slides", rows)
            grid_row = {"grid_id": grid.grid_id, "mpp": 1.0, "tile_px": 64, "stride_px": 64, "created_at": now}
            settings = {"settings": grid.to_json(), "settings_hash": grid.settings_hash, "resampler": grid.resampler}
            append(store, "grids", [grid_row | settings])
            store.lance.create(schema.tiles_table_name(grid.grid_id), schema.TILES)
        encoder = {"encoder_id": encoder_id, "name": encoder_id[:-9], "method": "random", "dim": dim, "spec": "{}"}
        append(store, "encoders", [encoder | {"created_at": now}])
        name = schema.vectors_table_name(encoder_id, grid.grid_id)
        store.lance.create(name, schema.vectors_schema(dim, 1.0))
        centres = np.random.default_rng(99).standard_normal((len(COLOURS), dim))
        kept: dict[str, list] = {key: [] for key in ("matrix", "slide", "x0", "y0", "tissue", "cluster", "tile_id")}
        for no, slide in enumerate(slides):
            row, col = (index.ravel() for index in np.meshgrid(np.arange(side), np.arange(side), indexing="ij"))
            count = row.size
            cluster = rng.integers(len(COLOURS), size=count)
            vectors = centres[cluster] + spread * rng.standard_normal((count, dim)) * np.sqrt(dim)
            norms = np.linalg.norm(vectors, axis=1)
            vectors = (vectors / norms[:, None]).astype(np.float32)
            columns = {
                "tile_id": tile_id(no, row, col),
                "slide_no": np.full(count, no, np.int32),
                "x0": (col * 128).astype(np.int32),
                "y0": (row * 128).astype(np.int32),
                "tissue": rng.uniform(0.3, 1, count).astype(np.float32),
            }
            tiles = columns | {
                "extent_px0": np.full(count, 128, np.int32),
                "thumb": [jpeg(COLOURS[c]) for c in cluster],
                "image": pa.nulls(count, pa.binary()),
            }
            tile_table = schema.tiles_table_name(grid.grid_id)
            if store.count(tile_table, f"slide_no = {no}") == 0:
                store.lance.append("tiles", tile_table, pa.table(tiles).select(schema.TILES.names).cast(schema.TILES))
            full = store.table_schema(name)
            flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), dim)
            vector_rows = columns | {"norm": norms.astype(np.float32), "vector": flat}
            store.lance.append("vectors", name, pa.table(vector_rows).select(full.names).cast(full))
            if slide["slide_id"] in unfinished:
                continue
            done = {"table_name": name, "slide_no": no, "slide_id": slide["slide_id"], "rows": count, "tiles": count}
            append(store, "done", [done | {"reasons": "{}", "bad_tiles": 0, "at": now}])
            truth = {"matrix": vectors, "slide": np.full(count, no), "cluster": cluster}
            for key, values in (columns | truth).items():
                if key in kept:
                    kept[key].append(values)
        arrays = {key: np.concatenate(values) for key, values in kept.items()}
        ids = [slide["slide_id"] for slide in slides]
        return SmallStore(path, store, grid.grid_id, encoder_id, ids, **arrays)

    return write


@pytest.fixture(scope="session")
def small(tmp_path_factory, write_store) -> SmallStore:
    """Six finished slides and one unfinished; patients p0..p2, one slide without a patient."""
    slides = [
        {"slide_id": f"s{n}", "patient_id": f"p{n // 2}", "site_id": "ab"[n % 2], "organ": organ, "age": 40.0 + n}
        for n, organ in enumerate(["liver", "liver", "colon", "colon", "o'hare", None])
    ]
    slides[5]["patient_id"] = None
    slides.append({"slide_id": "crashed", "patient_id": "p9", "site_id": "a", "organ": "liver", "age": None})
    extra = {"organ": pa.string(), "age": pa.float64()}
    path = tmp_path_factory.mktemp("small") / "store"
    return write_store(path, slides, unfinished=("crashed",), extra=extra)
