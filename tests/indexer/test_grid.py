"""The grid's arithmetic, ids and keys."""

from __future__ import annotations

import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from encoder.errors import QueryError, SlideError, UsageError
from indexer.grid import Grid, TissueSettings, lay_grid, make_grid, parse_tile_key, plan_tiles, tile_id, tile_key
from indexer.slide import SlideInfo


def info(width: int = 20000, height: int = 15000, mpp: float = 0.5, **changes: Any) -> SlideInfo:
    downsamples = changes.pop("level_downsamples", (1.0, 2.0, 4.0, 8.0))
    return SlideInfo(
        slide_id="a",
        path=Path("a.svs"),
        vendor="aperio",
        width0=width,
        height0=height,
        mpp=mpp,
        mpp_source="reader",
        objective=None,
        level_sizes=tuple((int(width / d), int(height / d)) for d in downsamples),
        level_downsamples=downsamples,
        bounds_px0=changes.pop("bounds_px0", (0, 0, width, height)),
        warnings=(),
        fingerprint="",
    )


@pytest.mark.parametrize(
    ("slide_mpp", "asked", "level", "native", "upsampling"),
    [
        (0.5, 0.5, 0, True, 1.0),
        (0.5, 1.0, 1, True, 1.0),
        (0.499, 0.5, 0, True, 1.0),
        (0.2282, 0.9, 2, True, 1.0),  # 0.9128 is 1.4 % off
        (0.25, 0.49, 0, False, 1.0),  # level 1 at 0.5 is 2.04 % off, and coarser
        (0.5, 1.5, 1, False, 1.0),
        (0.5, 1.99, 2, True, 1.0),
        (0.5, 1.9, 1, False, 1.0),
        (0.688, 0.5, 0, False, 1.376),
        (0.5, 30.0, 3, False, 1.0),
    ],
)
def test_the_level_is_the_coarsest_that_is_fine_enough(
    slide_mpp: float, asked: float, level: int, native: bool, upsampling: float
) -> None:
    found = lay_grid(info(mpp=slide_mpp), make_grid(asked, 224))
    assert (found.level, found.native) == (level, native)
    assert found.upsampling == pytest.approx(upsampling)
    true = slide_mpp * found.downsample if native else asked
    assert found.true_mpp == pytest.approx(true)
    assert found.extent_exact_px0 == pytest.approx(224 * true / slide_mpp)


def test_too_much_upsampling_is_refused_unless_allowed() -> None:
    with pytest.raises(SlideError, match=r"2\.2 times coarser"):
        lay_grid(info(mpp=1.1), make_grid(0.5, 224))
    assert lay_grid(info(mpp=1.1), make_grid(0.5, 224, allow_upsampling=True)).upsampling == pytest.approx(2.2)
    assert lay_grid(info(mpp=1.0), make_grid(0.5, 224)).upsampling == pytest.approx(2.0)


def test_edge_tiles_belong_where_half_lies_inside() -> None:
    for width, columns in ((1000, 4), (896, 4), (1007, 4), (1008, 5), (1120, 5), (111, 1), (1, 1)):
        assert lay_grid(info(width=width), make_grid(0.5, 224)).columns == columns


def test_native_tiles_begin_on_whole_pixels_of_their_level() -> None:
    found = lay_grid(info(bounds_px0=(1003, 2001, 4000, 4000)), make_grid(2.0, 64))
    assert (found.origin_x0, found.origin_y0) == (1004, 2004)
    resampled = lay_grid(info(bounds_px0=(1003, 2001, 4000, 4000)), make_grid(1.7, 64))
    assert (resampled.origin_x0, resampled.origin_y0) == (1003, 2001)


def test_more_than_65536_columns_are_refused() -> None:
    with pytest.raises(SlideError, match="columns"):
        lay_grid(info(width=100_000), make_grid(0.5, 16, 1))


def test_a_plan_of_too_many_tiles_is_refused_before_any_work() -> None:
    slide = SimpleNamespace(info=info(width=60_000, height=60_000))
    with pytest.raises(SlideError, match=r"[0-9,]{11} cells.*stride or mpp"):
        plan_tiles(slide, make_grid(1.0, 16, 1))  # type: ignore[arg-type]


@given(
    width=st.integers(1, 150_000),
    height=st.integers(1, 150_000),
    mpp=st.floats(0.1, 4.0),
    asked=st.floats(0.1, 20.0),
    tile_px=st.integers(16, 1024),
    overlap=st.floats(0.3, 2.0),
    offset=st.integers(0, 5000),
    levels=st.integers(1, 6),
)
def test_grid_arithmetic(
    width: int, height: int, mpp: float, asked: float, tile_px: int, overlap: float, offset: int, levels: int
) -> None:
    slide = info(
        width + offset,
        height + offset,
        mpp,
        level_downsamples=tuple(2.0**level for level in range(levels)),
        bounds_px0=(offset, offset, width, height),
    )
    grid = make_grid(asked, tile_px, max(1, round(tile_px * overlap)), allow_upsampling=True)
    try:
        found = lay_grid(slide, grid)
    except SlideError:
        # Tiny steps on a coarse slide: more of them than an index can number, and than are laid.
        stride_px0 = grid.stride_px * asked / mpp
        assert max(width, height) / (stride_px0 / 1.02) > 65_000
        return
    level_mpp = mpp * slide.level_downsamples[found.level]
    if found.native:
        assert abs(level_mpp / asked - 1) <= 0.02
        assert found.origin_x0 % found.downsample == 0 and 0 <= found.origin_x0 - offset < found.downsample
    else:
        assert found.true_mpp == asked
        assert level_mpp <= asked or found.level == 0
        coarser = [m for d in slide.level_downsamples if level_mpp < (m := mpp * d) <= asked]
        assert not coarser
        assert found.upsampling == pytest.approx(max(1.0, level_mpp / asked))
    assert found.extent_exact_px0 * mpp == pytest.approx(tile_px * found.true_mpp)
    # Rounding once, no position is more than half a pixel off, however far along the row.
    columns = np.arange(found.columns)
    exact = found.origin_x0 + columns * found.stride_exact_px0
    assert np.abs(np.rint(exact) - exact).max() <= 0.5
    # Every tile but a lone first one lies half inside, and one more would not.
    end = offset + width
    if found.columns > 1:
        assert exact[-1] + found.extent_exact_px0 / 2 <= end + 1e-3
    assert exact[-1] + found.stride_exact_px0 + found.extent_exact_px0 / 2 > end - 1e-3


@given(
    slide_no=st.integers(0, 2**31 - 1),
    row=st.integers(0, 65535),
    col=st.integers(0, 65535),
)
def test_tile_ids_pack_and_unpack(slide_no: int, row: int, col: int) -> None:
    packed = int(np.asarray(tile_id(slide_no, row, col)))
    assert (packed >> 32, packed >> 16 & 0xFFFF, packed & 0xFFFF) == (slide_no, row, col)
    rows, cols = np.array([row, 0], np.int32), np.array([col, 0], np.int32)
    many = tile_id(slide_no, rows, cols)
    assert many.dtype == np.int64 and int(many[0]) == packed  # type: ignore[index]


@given(slide_id=st.text(min_size=1), x0=st.integers(0, 2**31 - 1), y0=st.integers(0, 2**31 - 1))
def test_tile_keys_round_trip(slide_id: str, x0: int, y0: int) -> None:
    assert parse_tile_key(tile_key(slide_id, x0, y0)) == (slide_id, x0, y0)


@pytest.mark.parametrize("text", ["a", "a@1", "a@1,", "@1,2", "a@x,y", ""])
def test_texts_that_are_no_keys_are_refused(text: str) -> None:
    with pytest.raises(QueryError, match="no tile key"):
        parse_tile_key(text)


def test_a_grid_is_named_by_its_settings() -> None:
    grid = make_grid(1.0, 128)
    assert re.fullmatch(r"m1-0-t128-[0-9a-f]{8}", grid.grid_id)
    assert make_grid(0.5, 224, 112).grid_id.startswith("m0-5-t224-s112-")
    longest = make_grid(49.123456, 8192, 8191).grid_id
    assert len(longest) <= 32 and re.fullmatch(r"[a-z0-9-]+", longest)
    others = [
        make_grid(1.0, 128, 64),
        make_grid(1.0001, 128),
        make_grid(1.0, 128, min_tissue=0.4),
        make_grid(1.0, 128, tissue=TissueSettings(reject_blur=False)),
        make_grid(1.0, 128, allow_upsampling=True),
    ]
    assert len({grid.grid_id, *(other.grid_id for other in others)}) == 6
    assert Grid.from_json(grid.to_json()) == grid
    assert make_grid(1, 128) == grid


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"mpp": 0.0, "tile_px": 128}, "mpp"),
        ({"mpp": math.nan, "tile_px": 128}, "mpp"),
        ({"mpp": 1.0, "tile_px": 4}, "tile"),
        ({"mpp": 1.0, "tile_px": 128, "stride_px": 0}, "stride"),
        ({"mpp": 1.0, "tile_px": 128, "min_tissue": 1.5}, "min_tissue"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make_grid(**settings)
