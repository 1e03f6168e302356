"""Exports: complete, aligned, whole or not at all."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from encoder.errors import QueryError, UsageError
from encoder.tiles import TileFolder
from query import open_cohort
from query.export import export_parquet, export_tiles


@pytest.fixture
def kept(tmp_path, write_store):
    """Two slides whose tile images are kept: each shows its own tile id."""
    slides = [{"slide_id": f"odd/{n}", "patient_id": f"p{n}", "grade": "ab"[n]} for n in range(2)]
    small = write_store(tmp_path / "store", slides, side=3, extra={"grade": pa.string()})
    name = f"tiles_{small.grid_id}"
    full = small.store.table_schema(name)
    rows = small.store.read(name).to_pylist()
    for position, row in enumerate(rows):
        buffer = io.BytesIO()
        Image.new("RGB", (64, 64), (10 * position, 100, 50)).save(buffer, "JPEG", quality=95)
        row["image"] = buffer.getvalue()
    small.store.lance.upsert("x", name, ["tile_id"], pa.Table.from_pylist(rows, schema=full))
    return small


def test_kept_tiles_become_a_tile_folder(kept, tmp_path):
    cohort = open_cohort(str(kept.path))
    report = export_tiles(cohort, tmp_path / "out", label="grade")
    assert (report.tiles, report.slides, report.failures) == (18, 2, ())
    source = TileFolder(tmp_path / "out")
    assert len(source) == 18 and source.labels == ["a"] * 9 + ["b"] * 9
    assert source.groups == ["p0"] * 9 + ["p1"] * 9 and set(source.slide_ids) == {"odd/0", "odd/1"}
    np.testing.assert_array_equal(source.extents_px0, np.full(18, 128))
    np.testing.assert_allclose(source.mpps, 1.0)
    kept_rows = kept.store.read(f"tiles_{kept.grid_id}").to_pylist()
    truth = {(r["slide_no"], r["x0"], r["y0"]): r["image"] for r in kept_rows}
    with (tmp_path / "out" / "tiles.csv").open() as stream:
        for row in csv.DictReader(stream):
            key = (int(row["slide_id"][-1]), int(row["x0"]), int(row["y0"]))
            assert (tmp_path / "out" / "images" / row["file"]).read_bytes() == truth[key]


def test_filter_and_empty_folder(kept, tmp_path):
    (tmp_path / "out").mkdir()
    cohort = open_cohort(str(kept.path))
    assert export_tiles(cohort, tmp_path / "out", where="grade = 'b' AND x0 = 0").tiles == 3
    with pytest.raises(UsageError, match="not an empty folder"):
        export_tiles(cohort, tmp_path / "out")
    assert len(TileFolder(tmp_path / "out")) == 3


def test_failed_export_leaves_nothing(small, kept, tmp_path):
    cohort = open_cohort(str(small.path))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(QueryError, match="No tile could be read: s0"):  # no kept image, no slide file
        export_tiles(cohort, tmp_path / "out")
    for options, says in [
        ({"where": "orgn = 1"}, "Did you mean 'organ'"),
        ({"where": "x0 < 0"}, "No tile matches"),
        ({"label": "orgn"}, "Did you mean 'organ'"),
        ({"grid": "other"}, "no grid 'other'"),
    ]:
        with pytest.raises(QueryError, match=says):
            export_tiles(cohort, tmp_path / "out", **options)
    assert sorted(tmp_path.iterdir()) == before


def test_parquet_holds_vectors_and_metadata(small, tmp_path):
    cohort = open_cohort(str(small.path))
    file = tmp_path / "new" / "vectors.parquet"
    report = export_parquet(cohort, file)
    assert (report.tiles, report.slides) == (216, 6)
    table = pq.read_table(file)
    matrix = table["vector"].combine_chunks().flatten().to_numpy().reshape(-1, 16)
    np.testing.assert_array_equal(matrix, small.matrix)
    assert table["slide_id"].to_pylist() == [small.slide_ids[s] for s in small.slide]
    assert table["tile_id"].to_pylist() == small.tile_id.tolist()
    assert set(table["extent_px0"].to_pylist()) == {128} and "organ" in table.column_names
    about = json.loads(table.schema.metadata[b"histoseek"])
    assert about["encoder_id"] == small.encoder_id and about["grid"]["tile_px"] == 64
    with pytest.raises(UsageError, match="exists"):
        export_parquet(cohort, file)
    some = tmp_path / "some.parquet"
    assert export_parquet(cohort, some, where="organ = 'colon' AND y0 = 128").tiles == 12
    assert set(pq.read_table(some)["organ"].to_pylist()) == {"colon"}
    with pytest.raises(QueryError, match="No tile matches"):
        export_parquet(cohort, tmp_path / "none.parquet", where="x0 < 0")
    assert sorted(f.name for f in tmp_path.iterdir()) == ["new", "some.parquet"]
