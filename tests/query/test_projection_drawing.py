"""Pictures of maps: counts and colours against a loop over points, legends against counting, and what eyes need."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from encoder.errors import QueryError
from indexer.store import open_store
from query import open_cohort
from query.projection.colouring import Categories, Category, Numbers, colour_by, colour_columns
from query.projection.drawing import cells_of, disc_offsets, disc_radius, draw_map, png_of, rasterise
from query.projection.palette import CATEGORIES, CHOSEN, DENSITY, MISSING, OTHERS, hex_of, ramp
from query.projection.tile_map import TileMap
from query.projection.window import Window, extent_of, nearest_point, pixels_of, whole_window

SIDE = 12
WINDOW = Window(-1.5, -1.0, 1.5, 2.0)


def points(count: int, seed: int = 0) -> np.ndarray:
    """Places around the window, some of them outside, some on one point."""
    xy = np.random.default_rng(seed).uniform(-2.2, 2.5, (count, 2)).astype(np.float32)
    xy[: count // 4] = xy[0]
    return xy


def map_of(xy: np.ndarray) -> TileMap:
    rows: Any = range(len(xy))  # drawing asks for nothing but their number
    return TileMap("pca", rows, pa.table({}), xy, extent_of(xy), len(xy), False, {})


def classes(count: int, seed: int = 1) -> Categories:
    codes = np.random.default_rng(seed).integers(4, size=count).astype(np.int16)
    legend = tuple(Category(f"c{n}", int((codes == n).sum()), hex_of(CATEGORIES[n])) for n in range(4))
    return Categories("organ", codes, legend, np.array(CATEGORIES[:4], np.uint8))


def numbers(count: int, seed: int = 2) -> Numbers:
    values = np.random.default_rng(seed).uniform(-1, 6, count).astype(np.float32)
    values[::5] = np.nan
    return Numbers("age", values, 0.0, 5.0, len(values[::5]))


def lying_on(xy: np.ndarray, radius: int) -> dict[tuple[int, int], list[int]]:
    """Points on each pixel (row, column), point by point and pixel by pixel."""
    found: dict[tuple[int, int], list[int]] = {}
    for number, (x, y) in enumerate(xy.astype(np.float64).tolist()):
        column = int(np.floor((x - WINDOW.left) / WINDOW.width * SIDE))
        row = int(np.floor((WINDOW.top - y) / WINDOW.height * SIDE))
        for down, right in itertools.product(range(-radius, radius + 1), repeat=2):
            at = (row + down, column + right)
            if down**2 + right**2 <= radius**2 and 0 <= at[0] < SIDE and 0 <= at[1] < SIDE:
                found.setdefault(at, []).append(number)
    return found


@pytest.mark.parametrize("radius", [0, 1, 3])
@pytest.mark.parametrize("kind", ["density", "classes", "numbers"])
def test_counts_and_colours_are_those_of_a_loop(radius: int, kind: str) -> None:
    xy = points(60)
    colours = {"density": None, "classes": classes(60), "numbers": numbers(60)}[kind]
    column, row = pixels_of(xy, WINDOW, SIDE, SIDE)
    shown = np.arange(60)
    if not radius:
        shown = np.flatnonzero((column >= 0) & (column < SIDE) & (row >= 0) & (row < SIDE))
    cells = cells_of(column[shown], row[shown], SIDE, SIDE, radius)
    raster = rasterise(cells, shown, SIDE * SIDE, colours)
    expected = lying_on(xy, radius)
    assert {divmod(int(p), SIDE): int(c) for p, c in zip(raster.pixel, raster.counts, strict=True)} == {
        at: len(there) for at, there in expected.items()
    }
    assert (np.diff(raster.pixel) > 0).all()
    for pixel, count, colour in zip(raster.pixel.tolist(), raster.counts.tolist(), raster.colours, strict=True):
        there = expected[divmod(pixel, SIDE)]
        if isinstance(colours, Categories):
            votes = Counter(int(colours.codes[n]) for n in there)
            wanted = colours.colours[min(votes, key=lambda code: (-votes[code], code))].astype(float)
        elif isinstance(colours, Numbers):
            known = [float(colours.values[n]) for n in there if not np.isnan(colours.values[n])]
            wanted = ramp(np.array(min(max(np.mean(known) / 5, 0), 1))) if known else np.array(MISSING, float)
        else:
            most = max(4.0, float(np.quantile([len(others) for others in expected.values()], 0.995)))
            share = min(1.0, np.log(count) / np.log(most))
            wanted = np.array(DENSITY[0]) + share * (np.array(DENSITY[1], float) - DENSITY[0])
        np.testing.assert_allclose(colour, wanted, atol=1e-3)


def test_many_points_are_pixels_and_few_are_discs() -> None:
    assert disc_radius(0, 800, 600) == 0 and disc_radius(1, 800, 600) == 5 and disc_radius(10**6, 800, 600) == 0
    assert 1 <= disc_radius(10_000, 800, 600) < disc_radius(1000, 800, 600) < 5
    assert disc_radius(1, 1600, 1200, 2) == 10 == 2 * disc_radius(1, 800, 600)
    assert disc_offsets(1.0).tolist() == [[0, -1], [-1, 0], [0, 0], [1, 0], [0, 1]]
    one = draw_map(map_of(np.zeros((1, 2), np.float32)), WINDOW, 61, 61)
    assert 60 < (one[..., 3] > 0).sum() < 110
    row, column = np.argwhere(one[..., 3] > 0).mean(axis=0)
    assert pixels_of(np.zeros((1, 2)), WINDOW, 61, 61) == (pytest.approx([column], abs=1), pytest.approx([row], abs=1))
    many = points(3000)
    dense = draw_map(map_of(many), WINDOW, SIDE, SIDE)
    expected = lying_on(many, 0)
    opacity = dense[..., 3]
    assert {tuple(at) for at in np.argwhere(opacity).tolist()} == set(expected)
    fullest = max(expected, key=lambda at: len(expected[at]))
    emptiest = min(expected, key=lambda at: len(expected[at]))
    assert opacity[fullest] == 255 > opacity[emptiest]


def test_a_disc_reaches_in_from_outside() -> None:
    outside = np.array([[WINDOW.right + 0.02, 0.5]], np.float32)
    picture = draw_map(map_of(np.concatenate([outside, np.array([[-1, -0.5]], np.float32)])), WINDOW, 100, 100)
    assert picture[45:55, 98:, 3].max() > 100


def test_chosen_points_stand_out_before_grey_ones() -> None:
    xy = np.array([[-1, 0], [1, 0]], np.float32)
    tile_map, chosen = map_of(xy), np.array([False, True])
    picture = draw_map(tile_map, WINDOW, 90, 90, None, chosen)
    at = list(zip(*pixels_of(xy, WINDOW, 90, 90), strict=True))
    (grey_column, grey_row), (column, row) = at
    assert tuple(picture[row, column, :3]) == CHOSEN and tuple(picture[grey_row, grey_column, :3]) == MISSING
    assert picture[row, column, 3] > 2 * picture[grey_row, grey_column, 3] > 0
    colours = Categories("a", np.array([0, 2], np.int16), (), np.array(CATEGORIES[:3], np.uint8))
    coloured = draw_map(tile_map, WINDOW, 90, 90, colours, chosen)
    assert tuple(coloured[row, column, :3]) == CATEGORIES[2] and tuple(coloured[grey_row, grey_column, :3]) == MISSING


def test_what_cannot_be_drawn_is_refused() -> None:
    tile_map = map_of(points(5))
    for size in ((0, 10), (10, 5000)):
        with pytest.raises(QueryError, match="cannot be drawn"):
            draw_map(tile_map, WINDOW, *size)
    with pytest.raises(QueryError, match="do not fit 5 points"):
        draw_map(tile_map, WINDOW, 10, 10, None, np.ones(4, np.bool_))
    with pytest.raises(QueryError, match="no area"):
        Window(0, 0, 0, 1)
    assert not draw_map(map_of(np.empty((0, 2), np.float32)), WINDOW, 8, 8).any()
    assert png_of(draw_map(tile_map, WINDOW, 8, 8)).startswith(b"\x89PNG")


# --- windows


def test_a_picture_shows_all_points_at_one_scale() -> None:
    xy = points(200)
    for width_px, height_px in ((300, 100), (100, 300)):
        window = whole_window(extent_of(xy), width_px, height_px)
        assert window.width / width_px == pytest.approx(window.height / height_px)
        column, row = pixels_of(xy, window, width_px, height_px)
        assert column.min() > 0 and column.max() < width_px - 1 and row.min() > 0 and row.max() < height_px - 1
    far = np.array([[3e38, -3e38]], np.float32)
    assert [int(part[0]) for part in pixels_of(far, WINDOW, 10, 10)] == [10**9, 10**9]


def test_points_on_one_spot_have_an_extent() -> None:
    assert extent_of(np.full((3, 2), 2.0, np.float32)) == Window(1.5, 1.5, 2.5, 2.5)
    flat = extent_of(np.array([[0, 1], [10, 1]], np.float32))
    assert (flat.left, flat.right) == (0, 10) and flat.height == 0.5


def test_the_nearest_point_is_picked_within_some_pixels() -> None:
    xy = points(80)
    for x, y in np.random.default_rng(4).uniform(-1.5, 1.5, (50, 2)).tolist():
        away = np.hypot((xy[:, 0] - x) / WINDOW.width * 300, (xy[:, 1] - y) / WINDOW.height * 100)
        found = nearest_point(xy, x, y, WINDOW, 300, 100, 6)
        if away.min() > 6:
            assert found is None
        else:
            assert found is not None and away[found] == pytest.approx(away.min())


# --- colours


@pytest.fixture(scope="module")
def mapped(small: Any) -> tuple[Any, TileMap]:
    cohort = open_cohort(str(small.path))
    return cohort, cohort.map(store=False)


def test_classes_are_counted_and_the_frequent_ones_come_first(small: Any, mapped: Any) -> None:
    cohort, tile_map = mapped
    found = colour_by(cohort.store, tile_map, "organ")
    assert isinstance(found, Categories)
    assert [(line.name, line.count) for line in found.legend] == [
        ("colon", 72),
        ("liver", 72),
        ("o'hare", 36),
        ("none", 36),
    ]
    assert [line.colour for line in found.legend] == [hex_of(c) for c in (*CATEGORIES[:3], MISSING)]
    organs = np.array(["liver", "liver", "colon", "colon", "o'hare", "none"])[small.slide[small.slide < 6]]
    assert [found.legend[code].name for code in found.codes.tolist()] == organs.tolist()


def test_numbers_have_a_scale_and_those_missing_are_counted(small: Any, mapped: Any) -> None:
    cohort, tile_map = mapped
    tissue = colour_by(cohort.store, tile_map, "tissue")
    assert isinstance(tissue, Numbers) and tissue.missing == 0
    np.testing.assert_array_equal(tissue.values, small.tissue[small.slide < 6])
    assert (tissue.low, tissue.high) == pytest.approx(np.quantile(tissue.values, [0.01, 0.99]))
    age = colour_by(cohort.store, tile_map, "age")  # six whole numbers: classes
    assert isinstance(age, Categories) and {line.name for line in age.legend} == {str(40 + n) for n in range(6)}
    with pytest.raises(QueryError, match=r"no column or annotation 'orgn'.*organ"):
        colour_by(cohort.store, tile_map, "orgn")


def replaced(tile_map: TileMap, name: str, values: pa.Array) -> TileMap:
    return replace(tile_map, slides=tile_map.slides.append_column(name, values))


def test_columns_of_every_kind(mapped: Any) -> None:
    cohort, tile_map = mapped
    count = tile_map.slides.num_rows
    assert count == 7  # the unfinished slide is one of them, and has no tile
    kinds = {
        "blank": pa.array(["", None, "", None, "x", "x", "y"]),
        "flag": pa.array([True, False, None, True, True, True, False]),
        "grade": pa.array([1.0, 2.0, float("nan"), None, 1.0, 1.0, 1.0]),
        "score": pa.array([0.5, 2.0, float("inf"), None, 1.0, 1.5, 0.5]),
        "day": pa.array([datetime(2020, 1, 1, tzinfo=UTC)] * 7, pa.timestamp("us", tz="UTC")),
        "bytes": pa.array([b"a"] * 7),
        "nothing": pa.nulls(7, pa.float64()),
    }
    for name, values in kinds.items():
        tile_map = replaced(tile_map, name, values)
    in_order = tile_map.slides["slide_id"].to_pylist()
    assert in_order == ["crashed", "s0", "s1", "s2", "s3", "s4", "s5"]

    def lines(name: str) -> dict[str, int]:
        found = colour_by(cohort.store, tile_map, name)
        assert isinstance(found, Categories)
        assert [int((found.codes == n).sum()) for n in range(len(found.legend))] == [
            line.count for line in found.legend
        ]
        return {line.name: line.count for line in found.legend}

    assert lines("blank") == {"x": 72, "y": 36, "none": 108}
    assert lines("flag") == {"true": 108, "false": 72, "none": 36}
    assert lines("grade") == {"1": 108, "2": 36, "none": 72}
    assert lines("day") == {"2020-01-01 00:00:00.000000Z": 216}
    score = colour_by(cohort.store, tile_map, "score")
    assert isinstance(score, Numbers) and score.missing == 72
    empty = colour_by(cohort.store, tile_map, "nothing")
    assert isinstance(empty, Categories) and [(line.name, line.count) for line in empty.legend] == [("none", 216)]
    with pytest.raises(QueryError, match="'bytes' of binary cannot"):
        colour_by(cohort.store, tile_map, "bytes")
    offered = colour_columns(cohort.store, tile_map)
    assert offered[:3] == ["slide_id", "organ", "age"] and offered[-4:] == ["tissue", "x0", "y0", "extent_px0"]
    assert {"blank", "flag", "grade", "score"} <= set(offered)
    assert not {"bytes", "nothing", "path", "slide_no", "cohort"} & set(offered)


def test_more_classes_than_colours_share_a_grey(mapped: Any) -> None:
    cohort, tile_map = mapped
    rows = tile_map.rows
    names = pa.array([f"n{n % 14:02d}" for n in range(len(rows))])
    per_tile = replace(
        tile_map,
        rows=replace(rows, slide_code=np.arange(len(rows), dtype=np.int32)),
        slides=pa.table({"kind": names}),
    )
    found = colour_by(cohort.store, per_tile, "kind")
    assert isinstance(found, Categories) and len(found.legend) == 11
    assert found.legend[10] == Category("4 others", 60, hex_of(OTHERS))
    assert [line.name for line in found.legend[:6]] == [f"n{n:02d}" for n in range(6)]
    assert sum(line.count for line in found.legend) == len(rows)


def test_annotations_of_tiles_and_slides_colour_points(small: Any, tmp_path: Path) -> None:
    import shutil

    path = shutil.copytree(small.path, tmp_path / "store")
    store = open_store(str(path))
    ids = small.tile_id
    store.annotate("label", ["old", "tumour", "tumour"], [0, 0, 0], ids[:3].tolist(), small.grid_id)
    store.annotate("label", ["stroma", "of slide"], [0, 1], None)
    store.annotate("label", ["new"], [0], ids[:1].tolist(), small.grid_id)
    store.annotate("label", ["elsewhere"], [0], ids[5:6].tolist(), "other-grid")
    store.annotate("score", [0.25, 0.75, 3], [0, 0, 0], ids[:3].tolist(), small.grid_id)
    cohort = open_cohort(str(path))
    tile_map = cohort.map(store=False)
    found = colour_by(cohort.store, tile_map, "label")
    assert isinstance(found, Categories)
    given = {line.name: line.count for line in found.legend}
    assert given == {"stroma": 33, "of slide": 36, "tumour": 2, "new": 1, "none": 144}
    assert found.legend[int(found.codes[0])].name == "new"
    score = colour_by(cohort.store, tile_map, "score")
    assert isinstance(score, Numbers) and score.missing == 213
    np.testing.assert_array_equal(score.values[:3], np.float32([0.25, 0.75, 3]))
    assert colour_columns(cohort.store, tile_map)[-2:] == ["label", "score"]


# --- what eyes need


def linear(colour: Any) -> np.ndarray:
    share = np.asarray(colour, float) / 255
    return np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)


def luminance(colour: Any) -> np.ndarray:
    return linear(colour) @ np.array([0.2126, 0.7152, 0.0722])


def lab(light: np.ndarray) -> np.ndarray:
    to_xyz = np.array([[0.4125, 0.3576, 0.1804], [0.2127, 0.7152, 0.0722], [0.0193, 0.1192, 0.9503]])
    xyz = light @ to_xyz.T / np.array([0.9505, 1.0, 1.0888])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)


# What people without one kind of cone see, after Machado, Oliveira and Fernandes (2009), at full severity.
SIGHTS = {
    "all cones": np.eye(3),
    "no red": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "no green": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "no blue": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}


@pytest.mark.parametrize("sight", SIGHTS)
def test_classes_are_told_apart_by_everybody(sight: str) -> None:
    seen = lab(np.clip(linear(CATEGORIES) @ np.asarray(SIGHTS[sight]).T, 0, 1))
    for a, b in itertools.combinations(seen, 2):
        assert np.linalg.norm(a - b) > 15


def test_colours_are_clear_on_white_and_on_dark_paper() -> None:
    scale = ramp(np.linspace(0, 1, 50))
    assert (np.diff(luminance(scale)) > 0).all()
    dark = luminance((14, 17, 23))
    for colour in (*CATEGORIES, OTHERS, CHOSEN, *DENSITY, *scale):
        on_white, on_dark = 1.05 / (luminance(colour) + 0.05), (luminance(colour) + 0.05) / (dark + 0.05)
        assert on_white > 1.75 and on_dark > 2.2, colour


@pytest.mark.parametrize("paper", [(255, 255, 255), (14, 17, 23)])
def test_a_single_tile_among_many_is_seen_on_either_paper(paper: tuple[int, int, int]) -> None:
    xy = points(3000)
    picture = draw_map(map_of(xy), WINDOW, SIDE * 8, SIDE * 8).astype(float)
    solid = picture[..., 3:] / 255
    seen = luminance(picture[..., :3] * solid + np.array(paper) * (1 - solid))
    drawn = picture[..., 3] > 0
    ratio = np.maximum(seen, luminance(paper)) + 0.05
    ratio /= np.minimum(seen, luminance(paper)) + 0.05
    assert ratio[drawn].min() > 1.3 and ratio[drawn].max() > 3
