"""Pictures over a slide: their places, their colours against a plain loop, and distances that are search's own."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from encoder.errors import QueryError
from indexer.grid import Grid, lay_grid
from query import open_cohort
from query.engines.contract import Ask
from query.engines.nearest_of import nearest_distances
from query.overlay import (
    MAX_SIDE_PX,
    SIMILARITY,
    LegendEntry,
    _most_frequent,
    _stride_px0,
    similarity_overlay,
    tissue_overlay,
    value_overlay,
)
from query.queries import RegionQuery, examples
from query.resolve import slide_code
from query.slide_tile import open_indexed

TILE = 128


@pytest.fixture(scope="module")
def cohort(small):
    return open_cohort(str(small.path))


def pixels(overlay):
    return np.asarray(Image.open(io.BytesIO(overlay.png)))


def under(overlay, x0, y0):
    """Colour of the overlay over a point, transparent outside."""
    picture = pixels(overlay)
    column = int(np.floor((x0 - overlay.x0) / overlay.width0 * picture.shape[1]))
    row = int(np.floor((y0 - overlay.y0) / overlay.height0 * picture.shape[0]))
    inside = 0 <= row < picture.shape[0] and 0 <= column < picture.shape[1]
    return tuple(picture[row, column].tolist()) if inside else (0, 0, 0, 0)


def queries(small):
    region = RegionQuery("s2", ((0, 0), (3 * TILE, 2 * TILE)))
    several = examples([small.key(40), small.key(41), small.matrix[7]], [small.key(100)])
    return {"tile": small.key(75), "vector": small.matrix[3] * 7, "region": region, "examples": several}


@pytest.mark.parametrize("kind", ["tile", "vector", "region", "examples"])
@pytest.mark.parametrize("budget", [None, 1_000])
def test_distances_are_those_of_search_to_the_bit(small, kind, budget):
    cohort = open_cohort(str(small.path), memory_budget=budget)
    query = queries(small)[kind]
    room, probe = cohort.probe(query)
    found = cohort.search(query, k=500, where="slide_id = 's2'", apart=0, target_recall=1)
    own = room.rows.of_slide(slide_code("s2", room.slides))
    distances = nearest_distances([Ask(vector, probe.row) for vector in probe.vectors], own, room.take)
    mine = dict(zip(room.rows.tile_id[own].tolist(), distances.tolist(), strict=True))
    searched = dict(zip(found.tile_ids.tolist(), found.table["distance"].to_pylist(), strict=True))
    assert len(searched) == 36 - np.isin(own, probe.own_rows).sum()
    assert all(mine[tile] == distance for tile, distance in searched.items())


def test_the_nearest_of_many_vectors_is_found_among_equal_ones():
    rng = np.random.default_rng(3)
    matrix = rng.standard_normal((9000, 40)).astype(np.float32)
    matrix[100] = 0  # a vector without a direction lies at distance 1
    units = np.concatenate([matrix[:5], matrix[:5] * 3, rng.standard_normal((20, 40))])
    rows = rng.permutation(9000)[:8500]
    asks = [Ask(vector) for vector in units] + [Ask(matrix[8], 8)]
    slow = np.min([nearest_distances([ask], rows, matrix.__getitem__) for ask in asks], axis=0)
    np.testing.assert_array_equal(nearest_distances(asks, rows, matrix.__getitem__), slow)
    assert slow[rows == 8] == 0 and (slow[rows == 100] == 1).all()


@pytest.mark.parametrize("kind", ["tile", "vector", "region", "examples"])
def test_each_tile_has_the_colour_of_its_distance(small, cohort, kind):
    query = queries(small)[kind]
    for slide in ("s1", "s2"):
        overlay = similarity_overlay(cohort, query, slide)
        found = cohort.search(query, k=500, where=f"slide_id = '{slide}'", apart=0)
        rows = [row for row in found.to_json_rows() if kind != "tile" or row["tile_key"] != query]
        distances = [row["distance"] for row in rows]
        nearest, median = min(distances), float(np.median(distances))
        for row in rows:
            value = np.clip((median - row["distance"]) / (median - nearest), 0, 1)
            wanted = tuple(SIMILARITY.rgba(np.array([value]))[0].tolist())
            assert under(overlay, row["x0"] + TILE / 2, row["y0"] + TILE / 2) == wanted
        own = {(n % 6 * TILE, n // 6 * TILE) for n in range(36)} - {(row["x0"], row["y0"]) for row in rows}
        for x0, y0 in own if kind != "examples" else ():  # at distance 0 from itself
            assert under(overlay, x0 + TILE / 2, y0 + TILE / 2) == SIMILARITY.stops[-1][1]
        assert (overlay.x0, overlay.y0, overlay.width0, overlay.height0) == (0, 0, 6 * TILE, 6 * TILE)
        percent = {row["distance"]: row["percentile"] for row in rows}[nearest]
        share = "less than 0.01 %" if percent < 0.01 else f"{percent:.2g} %"
        assert share in overlay.legend[0].label or f"{percent:.0f} %" in overlay.legend[0].label
        assert found.plan.percentiles in overlay.legend[0].label and "median" in overlay.legend[-1].label
        assert overlay.legend[0].colour == "#ffec28"
        assert found.plan.query in overlay.note


def test_equal_distances_are_all_nearest(small, cohort, monkeypatch):
    matrix = np.tile(small.matrix[:1], (36, 1))

    class Same:
        def probe(self, query, encoder, grid):
            room, probe = cohort.probe(query)
            monkeypatch.setattr(room, "take", lambda rows: matrix[: rows.size])
            return room, probe

        grid = cohort.grid

    overlay = similarity_overlay(Same(), small.matrix[1], "s0")
    assert (pixels(overlay) == SIMILARITY.stops[-1][1]).all() and pixels(overlay).shape == (6, 6, 4)


def test_slides_without_vectors_are_refused_in_a_sentence(small, cohort):
    with pytest.raises(QueryError, match="no slide 'nowhere'"):
        similarity_overlay(cohort, small.key(0), "nowhere")
    with pytest.raises(QueryError, match="crashed has no vectors"):
        similarity_overlay(cohort, small.key(0), "crashed")


@pytest.mark.parametrize(("stride", "extent"), [(57.3, 128.0), (128.0, 128.0), (201.7, 128.0)])
def test_tiles_of_overlapping_and_spread_grids_lie_where_they_are(stride, extent):
    rng = np.random.default_rng(1)
    row, col = np.divmod(rng.permutation(30 * 40)[:500], 40)
    x0, y0 = np.rint(1234.4 + col * stride).astype(np.int32), np.rint(77.6 + row * stride).astype(np.int32)
    values = rng.random(500)
    values[:20] = np.nan
    overlay = value_overlay(x0, y0, extent, stride, values, SIMILARITY, (LegendEntry("#000000", "x"),), "words")
    wanted = SIMILARITY.rgba(values)
    for number in range(500):
        centre = x0[number] + extent / 2, y0[number] + extent / 2
        assert under(overlay, *centre) == tuple(wanted[number].tolist())
    assert (pixels(overlay)[..., 3] > 0).sum() == (wanted[:, 3] > 0).sum()
    assert overlay.legend[0].label == "x" and overlay.note == "words"


def test_more_tiles_than_pixels_show_the_largest_value():
    col = np.arange(5000)
    values = (col % 7) / 6
    values[:3] = [0.5, np.nan, np.nan]
    overlay = value_overlay(col * 8, np.zeros(5000, np.int32), 8, 8, values, SIMILARITY)
    picture = pixels(overlay)
    step = -(-5000 // MAX_SIDE_PX)
    assert picture.shape == (1, -(-5000 // step), 4) and picture.shape[1] <= MAX_SIDE_PX
    for number in range(picture.shape[1]):
        most = np.nanmax(values[number * step : number * step + step])
        assert tuple(picture[0, number]) == tuple(SIMILARITY.rgba(np.array([most]))[0])
    assert overlay.width0 == picture.shape[1] * step * 8


def test_the_colours_get_lighter_and_stay_off_pink_and_purple():
    red, green, blue, opacity = SIMILARITY.table.astype(float).T
    light = 0.2126 * (red / 255) ** 2.2 + 0.7152 * (green / 255) ** 2.2 + 0.0722 * (blue / 255) ** 2.2
    assert (np.diff(light) >= -1e-3).all() and light[-1] > 10 * light[0]
    assert (np.diff(opacity) >= 0).all() and opacity[0] == 0
    assert (green >= red - 20).all()  # haematoxylin and eosin keep green the weakest
    assert tuple(SIMILARITY.rgba(np.array([np.nan, 2.0]))[0]) == (0, 0, 0, 0)


def test_the_step_of_the_grid_is_known_without_the_slide(tiny_store):
    cohort = open_cohort(str(tiny_store))
    room = cohort.room(cohort.choose())
    for code, slide in enumerate(cohort.slides.to_pylist()):
        with open_indexed(slide) as opened:
            geometry = lay_grid(opened.info, cohort.grid(room.rows.grid_id))
        own = room.rows.of_slide(code)
        assert abs(_stride_px0(room.rows, own, 1.0) - geometry.stride_exact_px0) <= 1 / 5
        assert _stride_px0(room.rows, own[:1], 0.5) == room.rows.extent_px0[own[0]] / 2


def test_tissue_is_what_the_grid_takes_for_tissue(tiny_store, tmp_path):
    cohort = open_cohort(str(tiny_store))
    grid_id = cohort.grids["grid_id"][0].as_py()
    slide = cohort.slides.to_pylist()[0]
    overlay = tissue_overlay(slide, grid_id, cohort.store)
    tissue = next(entry for entry in overlay.legend if entry.label.startswith("tissue, "))
    rgb = tuple(int(tissue.colour[at : at + 2], 16) for at in (1, 3, 5))
    tiles = cohort.vectors(where=f"slide_id = '{slide['slide_id']}' AND tissue = 1").table.to_pylist()
    assert tiles
    for tile in tiles:
        half = tile["extent_px0"] / 2
        assert under(overlay, tile["x0"] + half, tile["y0"] + half)[:3] == rgb
    picture = pixels(overlay)
    share = (picture[..., :3] == rgb).all(axis=2) & (picture[..., 3] > 0)
    assert abs(100 * share.mean() - float(tissue.label.split()[1])) < 1
    assert abs(overlay.width0 - slide["width0"]) < 20 and abs(overlay.height0 - slide["height0"]) < 20
    drawn = tmp_path / "drawn.geojson"
    ring = [[0, 0], [600, 0], [600, 1536], [0, 1536], [0, 0]]
    drawn.write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    masked = tissue_overlay(slide | {"mask": str(drawn)}, grid_id, cohort.store)
    outside = next(entry for entry in masked.legend if entry.label.startswith("outside the drawn mask"))
    assert "#{:02x}{:02x}{:02x}".format(*under(masked, 1200, 700)[:3]) == outside.colour


def test_a_slide_that_moved_is_a_sentence(tiny_store, tmp_path):
    cohort = open_cohort(str(tiny_store))
    grid_id = cohort.grids["grid_id"][0].as_py()
    slide = cohort.slides.to_pylist()[0]
    with pytest.raises(QueryError, match=f"The tissue of slide {slide['slide_id']} cannot be drawn: .*gone.tif"):
        tissue_overlay(slide | {"path": str(tmp_path / "gone.tif")}, grid_id, cohort.store)
    with pytest.raises(QueryError, match="not the file that was indexed"):
        tissue_overlay(slide | {"fingerprint": "0"}, grid_id, cohort.store)
    with pytest.raises(QueryError, match=r"gone\.geojson"):
        tissue_overlay(slide | {"mask": str(tmp_path / "gone.geojson")}, grid_id, cohort.store)
    with pytest.raises(QueryError, match="no grid 'other'"):
        tissue_overlay(slide, "other", cohort.store)


def test_blocks_show_what_they_hold_most_of():
    rng = np.random.default_rng(2)
    places = rng.choice(np.array([0, 1, 2, 5], np.uint8), (50, 37))
    found = _most_frequent(places, 4)
    assert found.shape == (13, 10)
    for row in range(13):
        for column in range(10):
            block = places[4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            assert found[row, column] == np.argmax(np.bincount(block.ravel(), minlength=6))


def test_grids_of_the_store_are_read_as_they_were_made(small, cohort):
    assert isinstance(cohort.grid(small.grid_id), Grid) and cohort.grid(small.grid_id).tile_px == 64
