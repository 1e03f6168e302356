"""Tiles for training from slides and from a store's images."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from encoder.errors import TileError, UsageError
from indexer.grid import make_grid, parse_tile_key
from indexer.manifest import SlideEntry
from indexer.slide import open_slide
from indexer.synthetic import draw_slide
from indexer.tile_source import SlideTileSource, StoreTileSource, _equal_shares

GRID = make_grid(0.5, 64)


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory) -> list[SlideEntry]:
    folder = tmp_path_factory.mktemp("slides")
    found = []
    for number, side in enumerate((1024, 768)):
        draw_slide(folder / f"s{number}.tif", seed=number, width0=side, height0=side, pen=False)
        found.append(SlideEntry(f"s{number}", folder / f"s{number}.tif", patient_id="P" if number else None))
    (folder / "bad.svs").write_text("no slide")
    return [*found, SlideEntry("bad", folder / "bad.svs")]


def test_tiles_are_the_slides_pixels(entries: list[SlideEntry]) -> None:
    source = SlideTileSource(entries, GRID)
    assert source.in_memory and source.tile_px == 64
    assert len(source.names) == len(source) == len(source.slide_ids) == len(source.groups)
    assert source.positions_px0.shape == (len(source), 2) and set(source.extents_px0) == {64}
    assert set(zip(source.slide_ids, source.groups, strict=True)) == {("s0", "s0"), ("s1", "P")}
    assert len(source.failures) == 1 and source.failures[0].startswith("bad:")
    picked = np.array([0, len(source) - 1, 5, 5])
    images = source.images(picked)
    assert images.dtype == np.uint8 and images.shape == (4, 64, 64, 3)
    for image, index in zip(images, picked, strict=True):
        slide_id, x0, y0 = parse_tile_key(source.names[index])
        assert [x0, y0] == source.positions_px0[index].tolist() and slide_id == source.slide_ids[index]
        with open_slide(next(entry for entry in entries if entry.slide_id == slide_id)) as slide:
            assert np.array_equal(image, slide.read_region(x0, y0, 0, 64, 64))


def test_without_memory_the_same_tiles_are_read_when_asked(
    entries: list[SlideEntry], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indexer.tile_source._OPEN_SLIDES", 1)
    kept, lean = SlideTileSource(entries, GRID), SlideTileSource(entries, GRID, budget_bytes=1000)
    assert not lean.in_memory and lean.names == kept.names
    order = np.random.default_rng(0).permutation(len(kept))[:50]
    for _ in range(2):
        assert np.array_equal(lean.images(order), kept.images(order))
    lean.close()
    assert np.array_equal(lean.images(order[:3]), kept.images(order[:3]))
    lean.close()


def test_max_tiles_shares_equally_and_by_seed(entries: list[SlideEntry]) -> None:
    source = SlideTileSource(entries, GRID, max_tiles=40, seed=1)
    assert len(source) == 40 and len(set(source.names)) == 40
    assert [source.slide_ids.count(slide_id) for slide_id in ("s0", "s1")] == [20, 20]
    assert SlideTileSource(entries, GRID, max_tiles=40, seed=1).names == source.names
    assert SlideTileSource(entries, GRID, max_tiles=40, seed=2).names != source.names


@pytest.mark.parametrize(
    ("counts", "total", "shares"),
    [
        ([10, 10], 10, [5, 5]),
        ([2, 10], 10, [2, 8]),
        ([1, 2, 100], 50, [1, 2, 47]),
        ([3, 3], 100, [3, 3]),
        ([5, 5, 5], 7, [3, 2, 2]),
        ([0, 4], 2, [0, 2]),
    ],
)
def test_equal_shares(counts: list[int], total: int, shares: list[int]) -> None:
    assert _equal_shares(np.array(counts), total).tolist() == shares


def test_damaged_tiles_are_dropped_or_named(entries: list[SlideEntry], tmp_path: Path) -> None:
    with Image.open(entries[0].path) as image:
        offsets, sizes = image.tag_v2[324], image.tag_v2[325]
    data = bytearray(entries[0].path.read_bytes())
    data[offsets[5] : offsets[5] + sizes[5]] = bytes(sizes[5])
    (tmp_path / "s0.tif").write_bytes(data)
    damaged = [SlideEntry("s0", tmp_path / "s0.tif")]
    whole = SlideTileSource(entries[:1], GRID)
    source = SlideTileSource(damaged, GRID)
    lost = set(whole.names) - set(source.names)
    # Native tile 5 covers columns 256..511 and rows 256..511.
    assert lost and all(parse_tile_key(name)[1] // 256 == 1 == parse_tile_key(name)[2] // 256 for name in lost)
    assert len(source.failures) == len(lost) and len(source.images(np.arange(len(source)))) == len(source)
    lean = SlideTileSource(damaged, GRID, budget_bytes=0)
    bad = [index for index, name in enumerate(lean.names) if name in lost]
    with pytest.raises(TileError, match="s0@"):
        lean.images(np.array([0, bad[0]]))
    lean.close()


def test_no_tile_at_all_is_an_error(entries: list[SlideEntry]) -> None:
    with pytest.raises(UsageError, match="None of 1 slides"):
        SlideTileSource(entries[2:], GRID)


class FakeStore:
    """What StoreTileSource asks of a store."""

    uri = "memory"

    def __init__(self, tile_px: int = 32, images: bool = True) -> None:
        self.grid = make_grid(1.0, tile_px)
        rng = np.random.default_rng(0)
        self.pixels = {number << 32 | 7: rng.integers(0, 255, 3) for number in (1, 0)}
        self.kept = images

    def tables(self) -> list[str]:
        return ["slides", "tiles_" + self.grid.grid_id]

    def grids(self) -> pa.Table:
        return pa.table({"grid_id": [self.grid.grid_id], "tile_px": [self.grid.tile_px]})

    def count(self, name: str, where: str | None = None) -> int:
        return len(self.pixels) if self.kept else 0

    def slides(self) -> pa.Table:
        return pa.table({"slide_no": [0, 1], "slide_id": ["a", "b"], "patient_id": [None, "P"]})

    def read(self, name: str, columns: list[str], where: str | None = None) -> pa.Table:
        ids = list(self.pixels)
        values: dict[str, Any] = {
            "tile_id": ids,
            "slide_no": [tile >> 32 for tile in ids],
            "x0": [448] * 2,
            "y0": [0] * 2,
            "extent_px0": [64] * 2,
        }
        return pa.table({name: values[name] for name in columns})

    def tile_images(self, grid_id: str, tile_ids: list[int]) -> dict[int, bytes]:
        found = {}
        for tile in tile_ids:
            if tile in self.pixels:
                picture = io.BytesIO()
                flat = np.broadcast_to(self.pixels[tile], (self.grid.tile_px, self.grid.tile_px, 3))
                Image.fromarray(flat.astype(np.uint8)).save(picture, "JPEG", quality=95)
                found[tile] = picture.getvalue()
        return found


def test_tiles_of_a_store() -> None:
    store: Any = FakeStore()
    source = StoreTileSource(store, tile_px=24)
    assert (len(source), source.tile_px) == (2, 24)
    assert (source.slide_ids, source.groups) == (["a", "b"], ["a", "P"])
    assert source.names == ["a@448,0", "b@448,0"]
    images = source.images(np.array([1, 0, 1]))
    assert images.shape == (3, 24, 24, 3)
    for image, number in zip(images, (1, 0, 1), strict=True):
        assert np.abs(image.astype(int) - store.pixels[number << 32 | 7]).max() <= 4
    del store.pixels[7]
    with pytest.raises(TileError, match="a@448,0"):
        source.images(np.array([0, 1]))


def test_a_store_without_images_is_refused() -> None:
    empty: Any = FakeStore(images=False)
    with pytest.raises(UsageError, match="keeps no tile images"):
        StoreTileSource(empty)
    store: Any = FakeStore()
    with pytest.raises(UsageError, match="no grid other"):
        StoreTileSource(store, "other")
