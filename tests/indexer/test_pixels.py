"""Tiles show what lies where the plan says; the fast path gives OpenSlide's pixels or is not taken."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pyvips
from numpy.typing import NDArray
from PIL import Image

from encoder.errors import SlideError, TileError
from indexer.grid import Grid, TilePlan, TissueSettings, make_grid, plan_tiles
from indexer.manifest import SlideEntry, discover
from indexer.pixels import TileReader, sample_tiles, tile_box
from indexer.resample import resample
from indexer.slide import Slide, open_slide
from indexer.tiff_pages import tiff_pages
from indexer.vips_page import VipsPage

MPP = 0.5
SQUARES = [(130, 210, (255, 0, 0)), (701, 333, (0, 160, 0)), (411, 905, (0, 0, 255)), (1207, 951, (255, 160, 0))]
SIDE = 140


def write_slide(file: Path, pixels: NDArray[np.uint8], **options: Any) -> SlideEntry:
    image = pyvips.Image.new_from_array(pixels, interpretation="srgb")
    settings: dict[str, Any] = {
        "tile": True,
        "tile_width": 128,
        "tile_height": 128,
        "pyramid": True,
        "compression": "jpeg",
        "Q": 95,
        "xres": 1000 / MPP,
        "yres": 1000 / MPP,
        "resunit": "cm",
    }
    image.tiffsave(str(file), **(settings | options))
    return SlideEntry(file.stem, file)


def texture(width: int, height: int, seed: int = 0) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(60, 240, (height // 8 + 1, width // 8 + 1, 3))
    return np.kron(coarse, np.ones((8, 8, 1))).astype(np.uint8)[:height, :width]


def everything(mpp: float, tile_px: int, **settings: Any) -> Grid:
    return make_grid(mpp, tile_px, min_tissue=0.0, tissue=TissueSettings(detect=False), **settings)


@pytest.fixture(scope="module")
def landmarks(tmp_path_factory: pytest.TempPathFactory) -> SlideEntry:
    """Squares at known places on white; its odd size gives levels that OpenSlide thinks are fractional."""
    pixels = np.full((1277, 1531, 3), 255, dtype=np.uint8)
    for x0, y0, colour in SQUARES:
        pixels[y0 : y0 + SIDE, x0 : x0 + SIDE] = colour
    return write_slide(tmp_path_factory.mktemp("landmarks") / "a.tif", pixels, Q=100)


@pytest.fixture(scope="module")
def textured(tmp_path_factory: pytest.TempPathFactory) -> SlideEntry:
    """Sizes that are powers of two, so that OpenSlide reads every level without interpolating."""
    return write_slide(tmp_path_factory.mktemp("textured") / "a.tif", texture(1024, 1024))


@pytest.mark.parametrize(
    ("mpp", "tile_px"),
    [(0.5, 128), (1.0, 64), (2.0, 32), (0.733, 100), (1.37, 64), (3.1, 24), (0.31, 160), (0.505, 128)],
)
@pytest.mark.parametrize("fast", [True, False])
def test_landmarks_lie_where_the_plan_says(
    landmarks: SlideEntry, mpp: float, tile_px: int, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not fast:
        monkeypatch.setattr("indexer.pixels.find_page", lambda *_: "not now")
    with open_slide(landmarks) as slide:
        plan = plan_tiles(slide, everything(mpp, tile_px))
        reader = TileReader(slide, plan)
        assert reader.path == ("vips" if fast else "openslide")
        tiles = reader.read_batch(range(len(plan)))
    per_px = plan.geometry.extent_exact_px0 / tile_px
    assert per_px == pytest.approx(plan.true_mpp / MPP)
    for x0, y0, colour in SQUARES:
        edges = np.array([np.inf, np.inf, -np.inf, -np.inf])
        for index, tile in enumerate(tiles):
            near = np.abs(tile.astype(int) - colour).sum(2) < 190
            # Half of the colour marks the edge; a stray pixel of another square's rim does not count.
            inside_x = (plan.x0[index] < x0 + SIDE) & (plan.x0[index] + plan.extent_px0 > x0)
            inside_y = (plan.y0[index] < y0 + SIDE) & (plan.y0[index] + plan.extent_px0 > y0)
            if not (inside_x and inside_y and near.any()):
                continue
            rows, cols = np.flatnonzero(near.any(1)), np.flatnonzero(near.any(0))
            begin = np.array([plan.x0[index] + cols[0] * per_px, plan.y0[index] + rows[0] * per_px])
            end = np.array([plan.x0[index] + (cols[-1] + 1) * per_px, plan.y0[index] + (rows[-1] + 1) * per_px])
            edges = np.concatenate([np.minimum(edges[:2], begin), np.maximum(edges[2:], end)])
        off = np.abs(edges - [x0, y0, x0 + SIDE, y0 + SIDE]) / per_px
        assert off.max() <= 1.0, (colour, edges, off)


@pytest.mark.parametrize(("mpp", "tile_px"), [(0.5, 100), (1.0, 64), (0.8, 96), (1.37, 64), (2.9, 32), (0.4, 128)])
def test_the_fast_path_equals_openslide_on_every_tile(textured: SlideEntry, mpp: float, tile_px: int) -> None:
    with open_slide(textured) as slide:
        plan = plan_tiles(slide, everything(mpp, tile_px, stride_px=tile_px - 7))
        reader = TileReader(slide, plan)
        assert (reader.path, reader.why) == ("vips", "")
        for index in range(len(plan)):
            assert np.array_equal(reader.read(index), reader._by_openslide(index)), plan.key(index)
        assert reader.fallbacks == 0


def test_fractional_levels_are_read_without_interpolation(landmarks: SlideEntry, tmp_path: Path) -> None:
    entry = write_slide(tmp_path / "a.tif", texture(1531, 1277))
    with open_slide(entry) as slide:
        assert slide.reader_downsamples[1] != 2.0 and slide.info.level_downsamples[1] == 2.0
        plan = plan_tiles(slide, everything(1.0, 64))
        reader = TileReader(slide, plan)
        assert reader.path == "vips"
        page = pyvips.Image.new_from_file(str(entry.path), page=1).numpy()
        differs = 0
        for index in range(len(plan)):
            x, y = plan.x0[index] // 2, plan.y0[index] // 2
            inside = page[y : y + 64, x : x + 64]
            tile = reader.read(index)
            assert np.array_equal(tile[: inside.shape[0], : inside.shape[1]], inside)
            differs += not np.array_equal(tile, reader._by_openslide(index))
        # The oracle itself interpolates here; were it exact, this level would need no tolerance.
        assert differs


def test_edge_tiles_are_white_outside(textured: SlideEntry) -> None:
    with open_slide(textured) as slide:
        plan = plan_tiles(slide, everything(0.5, 220))
        tile = TileReader(slide, plan).read(len(plan) - 1)
    inside = 1024 - int(plan.x0[-1])
    assert 110 <= inside < 220
    assert (tile[inside:] == 255).all() and (tile[:, inside:] == 255).all()
    assert (tile[:inside, :inside] != 255).any(axis=2).all()


@pytest.mark.parametrize("where", ["first", "last"])
def test_other_pixels_are_not_trusted(textured: SlideEntry, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read = VipsPage.read

    def altered(self: VipsPage, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        block = read(self, x, y, width, height).copy()
        if where == "first" or x > 700:
            block[5, 5, 2] ^= 4
        return block

    monkeypatch.setattr(VipsPage, "read", altered)
    with open_slide(textured) as slide:
        plan = plan_tiles(slide, everything(0.5, 128))
        reader = TileReader(slide, plan)
        assert reader.path == "openslide" and "up to 4 of 255" in reader.why
        expected = slide.read_region(int(plan.x0[3]), int(plan.y0[3]), 0, 128, 128)
        assert np.array_equal(reader.read(3), expected)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"compression": "none"}, "compression"),
        ({"compression": "deflate"}, "compression"),
    ],
)
def test_other_compressions_go_to_openslide(tmp_path: Path, options: dict[str, Any], why: str) -> None:
    entry = write_slide(tmp_path / "a.tif", texture(512, 512), **options)
    with open_slide(entry) as slide:
        reader = TileReader(slide, plan_tiles(slide, everything(0.5, 128)))
        assert reader.path == "openslide" and why in reader.why


def test_plain_pictures_are_read_from_memory(tmp_path: Path) -> None:
    pixels = texture(300, 260)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with open_slide(SlideEntry("a", tmp_path / "a.png", mpp=MPP)) as slide:
        plan = plan_tiles(slide, everything(0.5, 100))
        reader = TileReader(slide, plan)
        assert reader.path == "image" and reader.why
        assert np.array_equal(reader.read(4), pixels[100:200, 100:200])


def damage(file: Path, which: list[int], kind: str) -> None:
    """Destroy the data of some tiles of the first page."""
    with Image.open(file) as image:
        offsets, sizes = image.tag_v2[324], image.tag_v2[325]
    data = bytearray(file.read_bytes())
    for tile in which:
        begin, size = offsets[tile], sizes[tile]
        if kind == "zeros":
            data[begin : begin + size] = bytes(size)
        else:  # the header survives, so libjpeg decodes it to garbage and only warns
            data[begin + size // 2 : begin + size] = bytes(size - size // 2)
    file.write_bytes(data)


@pytest.mark.parametrize("kind", ["zeros", "half"])
def test_damaged_tiles_are_errors_and_the_others_are_right(
    tmp_path: Path, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    pixels = texture(1024, 1024)
    good, bad = write_slide(tmp_path / "good.tif", pixels), write_slide(tmp_path / "bad.tif", pixels)
    damage(bad.path, [19], kind)
    grid = everything(0.5, 64)
    with open_slide(good) as one, open_slide(bad) as other:
        plan, reader = plan_tiles(one, grid), TileReader(one, plan_tiles(one, grid))
        # No sample tile lies in the damage, so the fast path is taken and meets it later.
        damaged = TileReader(other, plan_tiles(other, grid))
        assert damaged.path == "vips"
        failed = set()
        for index in range(len(plan)):
            try:
                tile = damaged.read(index)
            except TileError as error:
                assert f"bad@{plan.x0[index]},{plan.y0[index]}" in error.message
                failed.add((int(plan.x0[index]) // 128, int(plan.y0[index]) // 128))
            else:
                assert np.array_equal(tile, reader.read(index)), plan.key(index)
        assert failed == {(3, 2)}
        assert damaged.fallbacks > 0 and damaged.why
        with pytest.raises(TileError):
            damaged.read_batch(range(len(plan)))
    assert capfd.readouterr().err == ""


def test_one_slides_damage_is_never_missed_for_anothers(tmp_path: Path) -> None:
    """libvips has one message buffer for all: whoever reads it, the damaged slide must hear of it."""
    pixels = texture(1024, 1024)
    good, bad = write_slide(tmp_path / "good.tif", pixels), write_slide(tmp_path / "bad.tif", pixels)
    damage(bad.path, [19, 20, 27, 28], "half")
    grid = everything(0.5, 64)
    with open_slide(good) as one, open_slide(bad) as other:
        plan = plan_tiles(one, grid)
        readers = [TileReader(one, plan), TileReader(other, plan_tiles(other, grid))]
        expected = [readers[0]._by_openslide(index) for index in range(len(plan))]

        def right(job: tuple[int, int]) -> bool:
            which, index = job
            try:
                return np.array_equal(readers[which].read(index), expected[index])
            except TileError:
                return which == 1 and 2 <= plan.y0[index] // 128 <= 3 and 3 <= plan.x0[index] // 128 <= 4

        jobs = [(which, index) for index in range(len(plan)) for which in (0, 1)]
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(right, jobs))


def test_a_slide_of_which_nothing_can_be_read_is_refused(tmp_path: Path) -> None:
    entry = write_slide(tmp_path / "a.tif", texture(512, 512))
    damage(entry.path, list(range(16)), "zeros")
    with open_slide(entry) as slide:
        # The coarse levels are whole, so the plan is made; the level of the tiles is not.
        plan = plan_tiles(slide, everything(0.5, 64))
        with pytest.raises(SlideError, match=r"none of .* sample tiles"):
            TileReader(slide, plan)


def test_threads_read_the_same_pixels(textured: SlideEntry) -> None:
    with open_slide(textured) as slide:
        plan = plan_tiles(slide, everything(0.7, 60))
        reader = TileReader(slide, plan)
        alone = [reader.read(index) for index in range(len(plan))]
        with ThreadPoolExecutor(6) as pool:
            together = list(pool.map(reader.read, range(len(plan))))
        assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


def test_a_known_path_is_not_checked_again(textured: SlideEntry, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_slide(textured) as slide:
        plan = plan_tiles(slide, everything(0.5, 64))
        expected = TileReader(slide, plan).read(7)
        monkeypatch.setattr(Slide, "read_level", lambda *_: pytest.fail("it was checked"))
        assert np.array_equal(TileReader(slide, plan, "vips").read(7), expected)
        assert TileReader(slide, plan, "openslide").path == "openslide"


def test_samples_reach_the_edges(textured: SlideEntry) -> None:
    with open_slide(textured) as slide:
        plan: TilePlan = plan_tiles(slide, everything(0.5, 64))
    samples = sample_tiles(plan)
    assert {0, len(plan) - 1} <= set(samples) and len(samples) >= 8
    assert plan.x0[samples].max() == plan.x0.max() and plan.y0[samples].max() == plan.y0.max()
    (x, y), side = tile_box(plan, 17)
    assert (x, y, side) == (plan.x0[17], plan.y0[17], 64.0)


def test_resampling_keeps_means_and_positions() -> None:
    ramp = np.broadcast_to(np.arange(200, dtype=np.uint8)[None, :, None], (200, 200, 3)).copy()
    out = resample(ramp, (10.5, 3.25), (150.0, 150.0), (60, 60))
    # Pixel i of the result shows the ramp at its centre, 2.5 pixels apart.
    expected = 10.5 + 2.5 * (np.arange(60) + 0.5) - 0.5
    assert np.abs(out[30, :, 0] - expected).max() <= 0.75
    halved = resample(ramp, (0.0, 0.0), (200.0, 200.0), (100, 100))
    assert np.array_equal(halved, np.asarray(Image.fromarray(ramp).reduce(2)))
    assert resample(ramp, (7.0, 9.0), (64.0, 64.0), (64, 64)).tobytes() == ramp[9:73, 7:71].tobytes()


def test_tiff_pages_are_read_from_the_directories(tmp_path: Path) -> None:
    for name, options in (("small", {}), ("big", {"bigtiff": True})):
        entry = write_slide(tmp_path / f"{name}.tif", texture(600, 300), **options)
        pages = tiff_pages(entry.path)
        assert [(p.width, p.height) for p in pages] == [(600, 300), (300, 150), (150, 75), (75, 37)]
        assert {(p.compression, p.samples, p.tile_width, p.missing_tiles) for p in pages} == {(7, 3, 128, 0)}
    (tmp_path / "text.tif").write_text("II is how a TIFF begins, but this is none")
    assert tiff_pages(tmp_path / "text.tif") == []
    (tmp_path / "cut.tif").write_bytes((tmp_path / "small.tif").read_bytes()[:500])
    assert tiff_pages(tmp_path / "cut.tif") == []


@pytest.mark.shared_data
def test_real_slides_take_the_expected_path_and_equal_openslide(shared_data: Path) -> None:
    paths = {}
    for entry in discover([shared_data / "slides"], shared_data / "slides/manifest.csv"):
        with open_slide(entry) as slide:
            for mpp in (slide.info.mpp, 1.0):
                plan = plan_tiles(slide, make_grid(mpp, 128))
                reader = TileReader(slide, plan)
                for index in np.linspace(0, len(plan) - 1, 20).astype(int):
                    assert np.array_equal(reader.read(index), reader._by_openslide(index)), plan.key(index)
                assert reader.fallbacks == 0
            paths[entry.slide_id] = reader.path
    assert paths.pop("tcga-cr-7395-01a-01-ts1") == "openslide"  # JPEG 2000
    assert set(paths.values()) == {"vips"}
