"""Results: frozen, with pictures from the store and a sheet."""

from __future__ import annotations

import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import Image

from encoder.errors import UsageError
from query import open_cohort
from query.montage import Entry, draw_montage

COLOURS = [(205, 92, 140), (150, 90, 170), (235, 190, 205), (110, 60, 140)]


@pytest.fixture(scope="module")
def results(small):
    return open_cohort(str(small.path)).search(small.key(10), k=7)


def test_results_are_frozen_and_carry_the_slides_columns(results):
    with pytest.raises(dataclasses.FrozenInstanceError):
        results.table = None
    names = results.table.column_names
    assert names[:7] == ["rank", "tile_key", "slide_id", "x0", "y0", "extent_px0", "distance"]
    assert names[7:9] == ["percentile", "tissue"]
    assert {"organ", "age", "patient_id", "status"} <= set(names)
    assert "path" not in names
    frame = results.to_pandas()
    assert frame["distance"].is_monotonic_increasing and len(frame) == 7


def test_json_rows_hold_only_json(results):
    rows = json.loads(json.dumps(results.to_json_rows(), allow_nan=False))
    assert rows[0]["rank"] == 1 and rows[0]["distance"] == 0.0
    assert {"slide_id", "x0", "y0", "extent_px0"} <= rows[0].keys()


def test_images_are_those_of_the_hits(small, results):
    by_id = {int(tile): COLOURS[c] for tile, c in zip(small.tile_id, small.cluster, strict=True)}
    for tile_id, image in zip(results.tile_ids, results.images(), strict=True):
        assert np.abs(np.asarray(image)[32, 32].astype(int) - by_id[int(tile_id)]).max() <= 3
    assert np.abs(np.asarray(results.query_image)[32, 32].astype(int) - by_id[int(small.tile_id[10])]).max() <= 3


def test_thumbnails_and_place_of_the_query(small, results):
    for content, image in zip(results.thumbnails(), results.images(), strict=True):
        assert content.startswith(b"\xff\xd8")
        assert image.size == Image.open(io.BytesIO(content)).size
    place = results.query_place
    assert f"{place.slide_id}@{place.x0},{place.y0}" == small.key(10) and place.extent_px0 == 128
    assert open_cohort(str(small.path)).search(np.ones(16), k=1).query_place is None


def test_a_vector_has_no_picture_and_still_a_sheet(small):
    found = open_cohort(str(small.path)).search(np.ones(16), k=2)
    assert found.query_image is None
    assert found.montage().width > 200


def test_montage_shows_query_and_hits(tmp_path, results):
    sheet = results.montage(tmp_path / "new" / "sheet.png", columns=4)
    assert Image.open(tmp_path / "new" / "sheet.png").size == sheet.size
    pixels = np.asarray(sheet)
    query = np.asarray(results.query_image)[32, 32].astype(int)
    assert np.abs(pixels[100, 100].astype(int) - query).max() <= 3
    assert (pixels[18:24, 100] == np.array([194, 65, 12])).all(axis=-1).any()  # the frame


def test_a_sheet_that_fails_leaves_the_old_picture(tmp_path, results, monkeypatch):
    target = tmp_path / "sheet.jpg"
    results.montage(target)
    before = target.read_bytes()

    def fail(self, file, *_):
        file.write_bytes(b"half")
        raise OSError("encoder error")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(UsageError, match="encoder error"):
        results.montage(target)
    assert target.read_bytes() == before and list(tmp_path.iterdir()) == [target]


def test_a_sheet_has_a_limit(results, monkeypatch):
    monkeypatch.setattr("query.tile_list.MAX_SHEET_TILES", 6)
    with pytest.raises(UsageError, match="at most 6 tiles, these are 7"):
        results.montage()


def test_montage_bears_odd_input():
    tall = Image.new("RGB", (30, 300), (10, 200, 10))
    entries = [Entry(None, "1  0.0", "x" * 200, "0, 0"), Entry(tall, "2", "ä→é" * 40, "")]
    assert draw_montage(tall, "q" * 500, entries, columns=5).height > 200
    assert draw_montage(None, "", [], columns=0).width > 200
    narrow, wide = (draw_montage(tall, "q", entries * 3, columns=c) for c in (1, 6))
    assert narrow.height > wide.height and narrow.width < wide.width


def test_hits_become_outlines_that_qupath_reads(results):
    everything = results.to_geojson()
    assert everything["type"] == "FeatureCollection" and len(everything["features"]) == len(results)
    json.dumps(everything, allow_nan=False)
    row = results.table.slice(1, 1).to_pylist()[0]
    ring = everything["features"][1]["geometry"]["coordinates"][0]
    assert ring[0] == ring[-1] == [row["x0"], row["y0"]] and len(ring) == 5
    assert ring[2] == [row["x0"] + row["extent_px0"], row["y0"] + row["extent_px0"]]
    only = results.to_geojson(row["slide_id"])["features"]
    assert {feature["properties"]["slide_id"] for feature in only} == {row["slide_id"]}
    assert results.to_geojson("absent")["features"] == []
