"""Queries that read pixels, on drawn slides indexed by colour statistics."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from PIL import Image

import query.slide_tile
from encoder.embed import TileEncoder
from encoder.errors import QueryError
from encoder.progress import SilentReporter
from encoder.registry import load_encoder
from indexer.grid import make_grid, plan_tiles
from indexer.index_request import IndexRequest
from indexer.manifest import discover
from indexer.pipeline import index
from indexer.pixels import TileReader
from indexer.slide import open_slide
from indexer.synthetic import draw_slide
from query import open_cohort
from query.export import export_tiles
from query.queries import PointQuery
from query.slide_tile import read_centred_tile


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Two slides of 1,536 px at 0.5 um/px, indexed at 1 um/px in tiles of 64 px."""
    folder = tmp_path_factory.mktemp("drawn")
    for number in range(2):
        draw_slide(folder / f"s{number}.tif", seed=number, width0=1536, height0=1536)
    entries = discover([folder], None)
    grid = make_grid(1.0, 64)
    store = folder / "store"
    report = index(str(store), IndexRequest([load_encoder("colour")], entries, mpp=1.0, tile_px=64), SilentReporter())
    assert report.indexed == 2
    with open_slide(entries[0]) as slide:
        plan = plan_tiles(slide, grid)
        reader = TileReader(slide, plan)
        pixels = {plan.key(i): reader.read(i) for i in range(0, len(plan), max(1, len(plan) // 6))}
    return folder, open_cohort(str(store)), pixels


def test_a_tiles_own_pixels_find_it(drawn):
    _, cohort, pixels = drawn
    for key, image in pixels.items():
        results = cohort.search(image, k=3)
        best = results.table.slice(0, 1).to_pylist()[0]
        assert best["tile_key"] == key and best["distance"] < 1e-5
        assert "taken to be the grid's 1 um/px" in results.plan.notes[0]
        assert results.query_image.size == (64, 64)


def test_a_picture_at_another_scale_is_brought_to_the_grids(drawn):
    _, cohort, pixels = drawn
    key, image = next(iter(pixels.items()))
    larger = Image.fromarray(image).resize((128, 128), Image.Resampling.NEAREST)
    vector = cohort.embed_image(larger, mpp=0.5)
    assert vector.shape == (42,) and np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)
    assert cohort.search(vector, k=1).table["tile_key"].to_pylist() == [key]
    with pytest.raises(QueryError, match="takes a picture"):
        cohort.embed_image(vector)


def test_a_point_without_a_tile_is_read_from_the_slide(drawn, tmp_path, monkeypatch):
    _, cohort, _ = drawn
    tiles = cohort.vectors(columns=["slide_id", "x0", "y0"]).table.to_pandas()
    own = tiles[tiles.slide_id == "s0"]
    x0, y0 = int(own.x0.iloc[0]), int(own.y0.iloc[0])
    inside = cohort.search(PointQuery("s0", x0 + 64, y0 + 64), k=1)
    assert inside.table["tile_key"].to_pylist() == [f"s0@{x0},{y0}"]
    taken = {(x, y) for x, y in zip(own.x0, own.y0, strict=True)}
    gap = next((x, y) for x in range(0, 1408, 128) for y in range(0, 1408, 128) if (x, y) not in taken)
    writable = []
    embed, read = TileEncoder.embed, query.slide_tile.read_centred_tile

    def read_only(*place):
        pixels = read(*place)
        pixels.flags.writeable = False  # as resampled pixels are
        return pixels

    monkeypatch.setattr(query.slide_tile, "read_centred_tile", read_only)
    # PyTorch warns, once in a process, of arrays that may not be written to.
    monkeypatch.setattr(
        TileEncoder, "embed", lambda self, tiles: writable.append(tiles.flags.writeable) or embed(self, tiles)
    )
    results = cohort.search(PointQuery("s0", gap[0] + 64, gap[1] + 64), k=2, exclude=["slide"])
    assert writable == [True]
    assert any("the slide was read there" in note for note in results.plan.notes)
    assert set(results.table["slide_id"].to_pylist()) == {"s1"}
    assert results.query_image.size == (64, 64)
    assert results.montage(tmp_path / "sheet.png").width > 0


def test_centred_read_equals_the_grids_tile(drawn):
    """A read centred on a tile's middle gives that tile's pixels."""
    _, cohort, pixels = drawn
    slide = next(row for row in cohort.slides.to_pylist() if row["slide_id"] == "s0")
    for key, image in pixels.items():
        x0, y0 = (int(part) for part in key.rpartition("@")[2].split(","))
        found = read_centred_tile(slide, x0 + 64, y0 + 64, make_grid(1.0, 64))
        np.testing.assert_array_equal(found, image)


def test_tiles_are_exported_from_the_slides(drawn, tmp_path):
    _, cohort, pixels = drawn
    report = export_tiles(cohort, tmp_path / "tiles", where="slide_id = 's0'")
    assert report.failures == () and report.slides == 1
    with (tmp_path / "tiles" / "tiles.csv").open() as stream:
        rows = {f"{r['slide_id']}@{r['x0']},{r['y0']}": r for r in csv.DictReader(stream)}
    assert len(rows) == report.tiles
    for key, image in pixels.items():
        written = np.asarray(Image.open(tmp_path / "tiles" / "images" / rows[key]["file"])).astype(int)
        assert written.shape == (64, 64, 3) and np.abs(written - image).mean() < 4  # JPEG
        assert float(rows[key]["mpp"]) == pytest.approx(1.0)


def test_a_changed_slide_is_not_read_as_if_it_were_the_old_one(drawn, tmp_path):
    folder, cohort, _ = drawn
    file = folder / "s1.tif"
    content = file.read_bytes()
    draw_slide(file, seed=77, width0=1536, height0=1536)
    try:
        report = export_tiles(cohort, tmp_path / "tiles")
        assert report.slides == 1
        assert report.failures[0][0] == "s1" and "not the file that was indexed" in report.failures[0][1]
        slide = next(row for row in cohort.slides.to_pylist() if row["slide_id"] == "s1")
        with pytest.raises(QueryError, match="not the file that was indexed"):
            read_centred_tile(slide, 700, 700, make_grid(1.0, 64))
    finally:
        file.write_bytes(content)
