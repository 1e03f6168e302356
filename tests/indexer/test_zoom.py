"""The deep-zoom pyramid: its geometry against OpenSlide's own, its pixels against plain averages, bounded work."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pyvips
from numpy.typing import NDArray
from openslide.deepzoom import DeepZoomGenerator

from encoder.errors import TileError, UsageError
from indexer import zoom
from indexer.manifest import SlideEntry
from indexer.slide import Slide, open_slide
from indexer.zoom import Zoom, ZoomGeometry

PURPLE = (150, 80, 160)


def smooth(width: int, height: int) -> NDArray[np.uint8]:
    """A picture whose averages are known at any scale, and that no flip or shift leaves as it is."""
    y, x = np.mgrid[:height, :width]
    return np.stack([60 + x * 180 // width, 60 + y * 180 // height, 128 + 60 * np.sin(x / 90)], -1).astype(np.uint8)


def write(path: Path, pixels: NDArray[np.uint8], pyramid: bool = True) -> Path:
    image = pyvips.Image.new_from_array(pixels, interpretation="srgb")
    image.tiffsave(
        str(path),
        tile=True,
        tile_width=256,
        tile_height=256,
        pyramid=pyramid,
        compression="jpeg",
        Q=95,
        depth="onetile",
    )
    return path


def opened(path: Path) -> Slide:
    return open_slide(SlideEntry("a", path, mpp=0.5))


def whole_level(reader: Zoom, level: int) -> NDArray[np.uint8]:
    """All tiles of a level, put together."""
    columns, rows = reader.geometry.tiles(level)
    return np.vstack([np.hstack([reader.read(level, c, r) for c in range(columns)]) for r in range(rows)])


def level_by_averages(pixels: NDArray[np.uint8], pitch: int) -> NDArray[np.float64]:
    """The slow oracle: every pixel of a level is the mean of its square, the picture's edge continued."""
    pad = [(0, -side % pitch) for side in pixels.shape[:2]]
    whole = np.pad(pixels, (*pad, (0, 0)), mode="edge").astype(np.float64)
    rows, columns = whole.shape[0] // pitch, whole.shape[1] // pitch
    return whole.reshape(rows, pitch, columns, pitch, 3).mean((1, 3))


@pytest.mark.parametrize(
    "size", [(1, 1), (1, 2), (511, 513), (512, 512), (513, 1), (1024, 1025), (18048, 15936), (65537, 40000)]
)
def test_the_geometry_is_that_of_deep_zoom(size: tuple[int, int]) -> None:
    geometry = ZoomGeometry(*size, tile_px=512)
    slide: Any = SimpleNamespace(  # what their generator asks a slide for
        level_dimensions=(size,), level_downsamples=(1.0,), properties={}, get_best_level_for_downsample=lambda _: 0
    )
    theirs = DeepZoomGenerator(slide, tile_size=512, overlap=0)
    levels = range(geometry.max_level + 1)
    assert len(levels) == theirs.level_count
    assert [geometry.level_size(level) for level in levels] == list(theirs.level_dimensions)
    assert [geometry.tiles(level) for level in levels] == list(theirs.level_tiles)


def test_tiles_that_do_not_exist_are_refused() -> None:
    geometry = ZoomGeometry(1000, 700, tile_px=512)
    assert geometry.max_level == 10
    assert geometry.tile_box(10, 1, 1) == (512, 512, 488, 188)
    for level, column, row in ((11, 0, 0), (-1, 0, 0), (10, 2, 0), (10, 0, 2), (10, -1, 0), (9, 1, 0)):
        with pytest.raises(UsageError, match="there is no"):
            geometry.tile_box(level, column, row)


@pytest.mark.parametrize("pyramid", [True, False])
def test_every_level_shows_the_averages_of_level_0(tmp_path: Path, pyramid: bool) -> None:
    width, height = 1417, 1100  # no level but the first divides evenly
    pixels = smooth(width, height)
    with opened(write(tmp_path / "a.tif", pixels, pyramid)) as slide:
        reader = Zoom(slide, tile_px=256)
        geometry = reader.geometry
        for level in range(geometry.max_level, -1, -1):
            seen = whole_level(reader, level).astype(np.float64)
            expected = level_by_averages(pixels, geometry.pitch_px0(level))
            assert seen.shape == expected.shape == (*geometry.level_size(level)[::-1], 3)
            off = np.abs(seen - expected)
            if geometry.pitch_px0(level) <= 16:
                assert off.mean() < 2 and off.max() < 12, level
            else:
                # The last pixel lacks its part outside the slide, which moves the others by less than a pixel.
                slope = 180 / np.array(geometry.level_size(level))
                assert (off[..., :2] <= slope + 3).all(), level


def test_stored_levels_are_given_as_openslide_reads_them(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", smooth(1536, 1024))
    with opened(path) as slide:
        reader = Zoom(slide, tile_px=512)
        for level, stored in ((11, 0), (10, 1)):
            expected = slide.read_region(512 << stored, 0, stored, 256 if stored else 512, 512)
            assert np.array_equal(reader.read(level, 1, 0)[:, : expected.shape[1]], expected)


def test_the_edge_has_no_white_seam(tmp_path: Path) -> None:
    pixels = np.full((901, 1031, 3), PURPLE, np.uint8)
    with opened(write(tmp_path / "a.tif", pixels, pyramid=False)) as slide:
        reader = Zoom(slide, lambda: pixels[::10, ::10], tile_px=256)
        for level in range(reader.geometry.max_level + 1):
            assert np.abs(whole_level(reader, level).astype(int) - PURPLE).max() < 8, level


def test_a_square_is_white_outside_the_slide(tmp_path: Path) -> None:
    with opened(write(tmp_path / "a.tif", np.full((600, 800, 3), PURPLE, np.uint8))) as slide:
        reader = Zoom(slide)
        square = reader.read_square(-200, -100, 400, 200).astype(int)
        assert (square[:48] > 250).all() and (square[:, :98] > 250).all()
        assert np.abs(square[54:, 104:] - PURPLE).max() < 8
        assert reader.read_square(10, 10, 64, 512).shape == (512, 512, 3)  # finer than level 0
        for x0, y0, side in ((800, 0, 10), (-10, 0, 10), (0, 0, 0), (0, 0, 1601), (0, -40, 40)):
            with pytest.raises(UsageError, match="no part"):
                reader.read_square(x0, y0, side, 64)


def test_a_coarse_tile_of_a_flat_slide_reads_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoom, "_MOST_STORED_PX", 512**2)
    pixels = np.full((1600, 2400, 3), 255, np.uint8)
    pixels[960:1280, 1600:1920] = PURPLE
    asked: list[tuple[int, int]] = []
    with opened(write(tmp_path / "flat.tif", pixels, pyramid=False)) as slide:
        read = slide.read_level

        def counted(level: int, x: int, y: int, width: int, height: int) -> Any:
            asked.append((width, height))
            return read(level, x, y, width, height)

        monkeypatch.setattr(slide, "read_level", counted)
        made: list[int] = []

        def overview() -> NDArray[np.uint8]:
            made.append(1)
            return pixels[::20, ::20]

        reader = Zoom(slide, overview, tile_px=256)
        for level in range(reader.geometry.max_level, -1, -1):
            asked.clear()
            pitch = reader.geometry.pitch_px0(level)
            seen = reader.read(level, 0, 0)
            assert sum(width * height for width, height in asked) <= 512**2
            assert bool(asked) == (pitch <= 2)
            if 4 <= pitch <= 16:  # the overview stands in, in its right place
                seen = whole_level(reader, level)
                middle = seen[1120 // pitch, 1760 // pitch].astype(int)
                assert np.abs(middle - PURPLE).max() < 8
                assert (seen[900 // pitch, 1760 // pitch] > 250).all()
                assert (seen[1120 // pitch, 1990 // pitch] > 250).all()
        assert len(made) == 1
        with pytest.raises(TileError, match=r"flat\.tif.*no overview"):
            Zoom(slide, tile_px=256).read(4, 0, 0)
