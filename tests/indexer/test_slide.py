"""Opening slides: scale, levels, bounds, transparency, and failing well."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pyvips
from numpy.typing import NDArray
from PIL import Image

import indexer.slide
from encoder.errors import SlideError, TileError
from indexer import flow, readers
from indexer.grid import TissueSettings, make_grid, plan_tiles
from indexer.manifest import SlideEntry, discover
from indexer.mpp import MppSources, resolve_mpp
from indexer.overview import read_overview
from indexer.pixels import TileReader
from indexer.readers import open_reader
from indexer.slide import open_slide, true_downsample


def picture(width: int, height: int) -> NDArray[np.uint8]:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) % 200], axis=-1).astype(np.uint8)


def write_slide(file: Path, pixels: NDArray[np.uint8], mpp: float | None = 0.5, **options: Any) -> SlideEntry:
    per_mm = {} if mpp is None else {"xres": 1000 / mpp, "yres": 1000 / mpp, "resunit": "cm"}
    image = pyvips.Image.new_from_array(pixels, interpretation="srgb")
    settings = {"tile": True, "tile_width": 256, "tile_height": 256, "pyramid": True, "compression": "jpeg", "Q": 90}
    image.tiffsave(str(file), **(settings | per_mm | options))
    return SlideEntry(file.stem, file)


HERE = Path("a.svs")


@pytest.mark.parametrize(
    ("sources", "mpp", "source"),
    [
        (MppSources(0.5, (1.172, 1.172), (0.9, 0.9), 10, 2.0), 0.5, "manifest"),
        (MppSources(None, (0.25, 0.25), (0.9, 0.9), 10, 2.0), 0.25, "reader"),
        (MppSources(None, None, (0.9, 0.9), 10, 2.0), 0.9, "tiff"),
        (MppSources(None, None, None, 40, 2.0), 0.25, "objective"),
        (MppSources(None, None, None, None, 2.0), 2.0, "cohort"),
        (MppSources(0.5, (264.58, 264.58)), 0.5, "manifest"),
        (MppSources(None, (264.58, 264.58), None, 20), 0.5, "objective"),
        (MppSources(None, (264.58, 264.58), None, None, 0.5), 0.5, "cohort"),
        (MppSources(None, (0.5, 0.505)), 0.5 * 1.01**0.5, "reader"),
        (MppSources(0.3, (0.5, 0.6)), 0.3, "manifest"),
    ],
)
def test_mpp_precedence(sources: MppSources, mpp: float, source: str) -> None:
    found = resolve_mpp(sources, "a", HERE)
    assert (pytest.approx(mpp), source) == (found.mpp, found.source)


@pytest.mark.parametrize(
    "sources",
    [
        MppSources(),
        MppSources(reader=(264.58, 264.58)),
        MppSources(tiff=(25400 / 72, 25400 / 72)),
        MppSources(reader=(0.5, 0.6)),
        MppSources(manifest=264.58, reader=(0.5, 0.5)),
        MppSources(manifest=0.01),
        MppSources(cohort=80.0),
    ],
)
def test_unknown_or_impossible_mpp_says_what_to_add(sources: MppSources) -> None:
    with pytest.raises(SlideError, match="`a,MPP`") as caught:
        resolve_mpp(sources, "a", HERE)
    assert "a.svs" in caught.value.message and "slide_id,mpp" in caught.value.fix


def test_a_disagreement_above_ten_percent_is_a_warning() -> None:
    quiet = resolve_mpp(MppSources(reader=(0.25, 0.25), tiff=(0.27, 0.27), objective=40), "a", HERE)
    assert quiet.warnings == ()
    loud = resolve_mpp(MppSources(0.5, (1.172, 1.172), objective=10), "a", HERE)
    assert len(loud.warnings) == 2 and "1.172" in loud.warnings[0] and "0.5" in loud.warnings[0]


def test_levels_are_freed_from_rounding() -> None:
    assert true_downsample((46000, 32914), (11500, 8228), 4.000121) == 4.0
    assert true_downsample((9274, 9911), (144, 154), 64.38) == 64.0
    assert true_downsample((9274, 9911), (143, 154), 64.6) == 64.6
    assert true_downsample((9274, 9911), (145, 155), 63.95) == 64.0
    assert true_downsample((1000, 1000), (300, 300), 3.3333) == 3.3333


def test_open_reads_scale_levels_and_pixels(tmp_path: Path) -> None:
    pixels = picture(1531, 1277)
    with open_slide(write_slide(tmp_path / "a.tif", pixels)) as slide:
        info = slide.info
        assert (info.width0, info.height0, info.mpp_source) == (1531, 1277, "reader")
        assert info.mpp == pytest.approx(0.5)
        assert info.level_downsamples == (1.0, 2.0, 4.0, 8.0)
        assert info.bounds_px0 == (0, 0, 1531, 1277)
        region = slide.read_region(100, 200, 0, 64, 32)
        assert region.shape == (32, 64, 3)
        assert np.abs(region.astype(int) - pixels[200:232, 100:164]).mean() < 4
        # Outside is white, on every side.
        assert (slide.read_region(1600, 0, 0, 8, 8) == 255).all()
        assert (slide.read_level(0, -8, 0, 8, 8)[0] == 255).all()
        edge, origin = slide.read_level(0, 1521, 1270, 20, 20)
        assert origin == (1521, 1270)
        assert (edge[:, 10:] == 255).all() and (edge[7:] == 255).all() and (edge[:7, :10] != 255).any()
        assert max(slide.thumbnail(100).shape) == 100


def test_transparent_pixels_are_white(tmp_path: Path) -> None:
    pixels = np.full((64, 64, 4), (10, 20, 30, 255), dtype=np.uint8)
    pixels[:32, :, 3] = 0
    pixels[32:, :32, 3] = 128
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with open_slide(SlideEntry("a", tmp_path / "a.png", mpp=0.5)) as slide:
        seen = slide.read_region(0, 0, 0, 64, 64)
    assert (seen[:32] == 255).all()
    assert (seen[32:, 32:] == (10, 20, 30)).all()
    assert np.abs(seen[32:, :32].astype(int) - (132, 137, 142)).max() <= 1


def test_bounds_are_honoured_in_file_coordinates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.full((1024, 1024, 3), 255, dtype=np.uint8)
    rng = np.random.default_rng(0)
    pixels[400:800, 300:900] = np.kron(rng.integers(0, 2, (50, 75, 1)), np.ones((8, 8, 1))) * (60, 120, 40) + (
        140,
        60,
        150,
    )
    entry = write_slide(tmp_path / "a.tif", pixels)

    def with_bounds(path: Path) -> Any:
        reader = open_reader(path)
        bounds = {"x": "301", "y": "401", "width": "600", "height": "400"}
        added: Mapping[str, str] = {f"openslide.bounds-{name}": value for name, value in bounds.items()}
        reader.properties = {**reader.properties, **added}
        return reader

    monkeypatch.setattr(indexer.slide, "open_reader", with_bounds)
    with open_slide(entry) as slide:
        assert slide.info.bounds_px0 == (301, 401, 600, 400)
        plan = plan_tiles(slide, make_grid(1.0, 64))
        assert plan.geometry.native and plan.level == 1
        # The first tile begins on the first whole pixel of level 1 inside the bounds.
        assert (plan.x0.min(), plan.y0.min()) == (302, 402)
        # 4.7 tiles of 128 across and 3.1 down: the fifth lies more than half inside, the fourth down does not.
        assert (plan.geometry.columns, plan.geometry.rows) == (5, 3)
        tile = TileReader(slide, plan).read(0)
        exact = slide.read_level(1, 151, 201, 64, 64)[0]
        assert np.array_equal(tile, exact)


def test_overview_of_a_single_level_matches_the_mean(tmp_path: Path) -> None:
    pixels = picture(1024, 768)
    entry = write_slide(tmp_path / "a.tif", pixels, pyramid=False, compression="none")
    with open_slide(entry) as slide:
        seen = read_overview(slide, (0, 0, 1024, 768), 16.0)
        expected = pixels.reshape(48, 16, 64, 16, 3).mean((1, 3))
        assert seen.pixels.shape == (48, 64, 3) and not seen.unreadable.any()
        assert np.abs(seen.pixels - expected).max() <= 1


def test_plain_pictures_need_and_take_a_scale(tmp_path: Path) -> None:
    Image.fromarray(picture(300, 200)).save(tmp_path / "screen.png", dpi=(96, 96))
    Image.fromarray(picture(300, 200)).save(tmp_path / "micro.tif", dpi=(50800, 50800))
    with pytest.raises(SlideError, match=r"264\.5"):
        open_slide(SlideEntry("screen", tmp_path / "screen.png"))
    with open_slide(SlideEntry("screen", tmp_path / "screen.png"), cohort_mpp=0.7) as slide:
        assert (slide.info.mpp, slide.info.mpp_source, slide.info.vendor) == (0.7, "cohort", "image")
    with open_slide(SlideEntry("micro", tmp_path / "micro.tif")) as slide:
        assert slide.info.mpp == pytest.approx(0.5) and slide.info.mpp_source == "tiff"
        assert np.array_equal(slide.read_region(10, 20, 0, 30, 40), picture(300, 200)[20:60, 10:40])


def test_pictures_that_are_too_large_or_deep_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert flow._OPEN_SLIDES * 3 * readers.MAX_PLAIN_PIXELS <= 1 << 30  # all that are open at once
    Image.fromarray(picture(300, 200)).save(tmp_path / "a.png")
    monkeypatch.setattr(readers, "MAX_PLAIN_PIXELS", 50_000)
    with pytest.raises(SlideError, match="too many"):
        open_slide(SlideEntry("a", tmp_path / "a.png", mpp=0.5))
    Image.fromarray(np.zeros((20, 20), dtype=np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(SlideError, match="8-bit"):
        open_slide(SlideEntry("deep", tmp_path / "deep.png", mpp=0.5))


def test_files_that_are_no_slides_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.svs").write_text("this is not a slide")
    with pytest.raises(SlideError, match=r"text\.svs.*knows this format.*Check"):
        open_slide(SlideEntry("text", tmp_path / "text.svs", mpp=0.5))
    with pytest.raises(SlideError, match="does not exist"):
        open_slide(SlideEntry("gone", tmp_path / "gone.svs", mpp=0.5))
    (tmp_path / "empty.svs").write_bytes(b"")
    with pytest.raises(SlideError, match=r"empty\.svs"):
        open_slide(SlideEntry("empty", tmp_path / "empty.svs", mpp=0.5))


@pytest.mark.parametrize("share", [0.02, 0.5])
def test_a_truncated_slide_is_refused(tmp_path: Path, share: float) -> None:
    entry = write_slide(tmp_path / "a.tif", picture(1024, 1024))
    data = entry.path.read_bytes()
    cut = tmp_path / "cut.svs"
    cut.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(SlideError, match=r"cut\.svs"), open_slide(SlideEntry("cut", cut, mpp=0.5)) as slide:
        TileReader(slide, plan_tiles(slide, make_grid(0.5, 128)))


def test_a_slide_that_lost_its_coarse_levels_only_is_still_good(tmp_path: Path) -> None:
    entry = write_slide(tmp_path / "a.tif", picture(1024, 1024))
    cut = tmp_path / "cut.tif"
    cut.write_bytes(entry.path.read_bytes()[: int(entry.path.stat().st_size * 0.9)])
    grid = make_grid(0.5, 256, tissue=TissueSettings(detect=False))
    tiles = []
    for file in (entry.path, cut):
        with open_slide(SlideEntry("a", file)) as slide:
            tiles.append(TileReader(slide, plan_tiles(slide, grid)).read_batch(range(16)))
    assert np.array_equal(*tiles)


def test_a_slide_is_usable_after_a_damaged_region_and_not_after_closing(tmp_path: Path) -> None:
    entry = write_slide(tmp_path / "a.tif", picture(512, 512), pyramid=False)
    with Image.open(entry.path) as image:
        offsets, sizes = image.tag_v2[324], image.tag_v2[325]
    data = bytearray(entry.path.read_bytes())
    data[offsets[3] : offsets[3] + sizes[3]] = bytes(sizes[3])
    entry.path.write_bytes(data)
    with open_slide(entry) as slide:
        with pytest.raises(TileError, match=r"a\.tif"):
            slide.read_region(300, 300, 0, 64, 64)
        assert slide.read_region(0, 0, 0, 64, 64).shape == (64, 64, 3)
    with pytest.raises(TileError, match="closed"):
        slide.read_region(0, 0, 0, 64, 64)


def test_info_is_plain_data(tmp_path: Path) -> None:
    with open_slide(write_slide(tmp_path / "a.tif", picture(300, 300))) as slide:
        json.dumps({"warnings": slide.info.warnings, "levels": slide.info.level_downsamples})
        assert len(slide.info.fingerprint) == 32


@pytest.mark.shared_data
def test_real_slides_open(shared_data: Path) -> None:
    found = {}
    for entry in discover([shared_data / "slides"], shared_data / "slides/manifest.csv"):
        with open_slide(entry) as slide:
            found[entry.slide_id] = slide.info
    assert {i: (round(s.mpp, 3), s.mpp_source) for i, s in found.items()} == {
        "cmu-1-small-region": (0.499, "reader"),
        "colon_traditional_serrated_adenoma": (0.5, "manifest"),
        "her2st_C2": (0.688, "reader"),
        "oral_squamous_cell_carcinoma": (0.9, "manifest"),
        "tcga-cr-7395-01a-01-ts1": (0.5, "manifest"),
    }
    assert "1.172" in found["colon_traditional_serrated_adenoma"].warnings[0]
    assert found["her2st_C2"].level_downsamples[1] == 2.0


@pytest.mark.shared_data
def test_slides_without_scale_say_so(shared_data: Path) -> None:
    for name in ("slides/tcga-cr-7395-01a-01-ts1.svs", "slides_odd/CropBreastSlide.tiff"):
        path = shared_data / name
        with pytest.raises(SlideError, match=f"`{path.stem},MPP`"):
            open_slide(SlideEntry(path.stem, path))
        with open_slide(SlideEntry(path.stem, path, mpp=0.5)) as slide:
            assert slide.info.mpp == 0.5


@pytest.mark.shared_data
@pytest.mark.parametrize(
    "name",
    [
        "openslide_python/histolab_broken.svs",
        "openslide_python/unopenable.tiff",
        "small_dicom.dcm",
        "os-1-detail.ome.tif",
    ],
)
def test_odd_slides_fail_well(shared_data: Path, name: str) -> None:
    path = shared_data / "slides_odd" / name
    with pytest.raises(SlideError, match=path.name) as caught:
        open_slide(SlideEntry("odd", path, mpp=0.5))
    assert caught.value.fix


@pytest.mark.shared_data
def test_a_slide_that_opens_but_cannot_be_read_fails_at_the_plan(shared_data: Path) -> None:
    path = shared_data / "slides_odd/openslide_python/unreadable.svs"
    with open_slide(SlideEntry("unreadable", path)) as slide, pytest.raises(SlideError, match="no part of it"):
        plan_tiles(slide, make_grid(0.5, 16))
