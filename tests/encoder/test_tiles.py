"""Tile folders, joined sources and the cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from encoder.errors import TileError, UsageError
from encoder.progress import SilentReporter
from encoder.tiles import CachedTiles, TileFolder, concat_sources, decode_tile, open_for_training


def paint(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (32, 32)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(4):
        paint(tmp_path / "a" / f"{i}.png", (10 * i, 20, 30))
    return tmp_path


def test_pictures_anywhere_below_the_folder_in_order_of_name(folder: Path) -> None:
    tiles = TileFolder(folder)
    assert tiles.names == [f"a/{i}.png" for i in range(4)]
    assert (tiles.tile_px, tiles.native_px, len(tiles)) == (32, 32, 4)
    read = tiles.images(np.array([2, 0]))
    assert read.shape == (2, 32, 32, 3)
    assert read[:, 0, 0].tolist() == [[20, 20, 30], [0, 20, 30]]
    assert tiles.labels is None and tiles.groups is None and tiles.positions_px0 is None


def test_beside_images_nothing_else_is_read(tmp_path: Path) -> None:
    paint(tmp_path / "images" / "x.png", (1, 2, 3))
    paint(tmp_path / "masks" / "x.png", (0, 0, 0))
    paint(tmp_path / "other.png", (0, 0, 0))
    assert TileFolder(tmp_path).names == ["images/x.png"]


def test_table_gives_order_and_columns(folder: Path) -> None:
    (folder / "labels.csv").write_text(
        "file,label,patient_id,slide_id,x0,y0,extent_px0,split,site_id,mpp\n"
        "a/3.png,tumour,p1,s1,512,0,256,test,,0.5\n"
        "a/1.png,,p2,s1,0,256,256,train,,\n"
    )
    tiles = TileFolder(folder)
    assert tiles.names == ["a/3.png", "a/1.png"]
    assert tiles.labels == ["tumour", ""]
    assert tiles.groups == ["p1", "p2"]
    assert tiles.splits == ["test", "train"]
    assert tiles.site_ids is None
    assert tiles.positions_px0 is not None and tiles.positions_px0.tolist() == [[512, 0], [0, 256]]
    assert tiles.extents_px0 is not None and tiles.extents_px0.tolist() == [256, 256]
    assert tiles.mpps is not None and tiles.mpps[0] == 0.5 and np.isnan(tiles.mpps[1])
    assert tiles.unlisted == 2
    assert tiles.images(np.array([0]))[0, 0, 0].tolist() == [30, 20, 30]


def test_tiles_csv_comes_before_labels_csv_and_names_may_be_relative_to_images(tmp_path: Path) -> None:
    paint(tmp_path / "images" / "x.png", (1, 2, 3))
    (tmp_path / "tiles.csv").write_text("file,group\nx.png,g\n")
    (tmp_path / "labels.csv").write_text("file,label\nabsent.png,l\n")
    tiles = TileFolder(tmp_path)
    assert tiles.names == ["images/x.png"] and tiles.groups == ["g"] and tiles.labels is None


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("name,label\na/0.png,x\n", "no column named file"),
        ("file,label\n", "has no rows"),
        ("file\na/9.png\n", "a/9.png"),
        ("file\na/0.png\na/0.png\n", "line 3: a/0.png is already on line 2"),
        ('file\n""\na/0.png\n', "line 2: the file is blank"),
        ("file,x0,y0\na/0.png,1,two\n", "line 2: y0 is 'two'"),
        ("file,x0,y0\na/0.png,1.5,2\n", "line 2: x0 is 1.5"),
        ("file,x0\na/0.png,1\n", "x0 but no y0"),
        ("file,mpp\na/0.png,-1\n", "line 2: mpp is -1"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(folder: Path, table: str, said: str) -> None:
    (folder / "tiles.csv").write_text(table)
    with pytest.raises(UsageError, match=said.replace("(", r"\(")):
        TileFolder(folder)


def test_missing_and_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        TileFolder(tmp_path / "absent")
    with pytest.raises(UsageError, match="holds no picture"):
        TileFolder(tmp_path)


def test_broken_pictures_are_named_and_the_others_still_read(folder: Path) -> None:
    whole = (folder / "a" / "1.png").read_bytes()
    (folder / "a" / "1.png").write_bytes(whole[: len(whole) // 2])
    (folder / "a" / "2.png").write_text("no picture")
    tiles = TileFolder(folder)
    assert tiles.broken == []
    with pytest.raises(TileError, match=r"a/1\.png.*a/2\.png"):
        tiles.images(np.arange(4))
    assert [name for name, _ in tiles.broken] == ["a/1.png", "a/2.png"]
    assert tiles.images(np.array([0, 3])).shape == (2, 32, 32, 3)


def test_sixteen_bit_pictures_are_broken_not_clipped(tmp_path: Path) -> None:
    paint(tmp_path / "a.png", (1, 2, 3))
    Image.fromarray(np.full((32, 32), 40000, dtype=np.uint16)).save(tmp_path / "b.png")
    with pytest.raises(TileError, match="not 8-bit"):
        TileFolder(tmp_path).images(np.array([1]))


def test_non_squares_are_cropped_before_they_are_resized(tmp_path: Path) -> None:
    wide = np.zeros((20, 60, 3), dtype=np.uint8)
    wide[:, 20:40] = (200, 100, 50)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    tile = decode_tile(tmp_path / "wide.png", 10)
    assert tile.shape == (10, 10, 3)
    assert (tile == np.array([200, 100, 50])).all()


def test_transparency_becomes_white(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8, 4), dtype=np.uint8)
    pixels[:, 4:] = (10, 20, 30, 255)
    Image.fromarray(pixels).save(tmp_path / "t.png")
    tile = decode_tile(tmp_path / "t.png", 8)
    assert tile[0, 0].tolist() == [255, 255, 255] and tile[0, 7].tolist() == [10, 20, 30]


class Counting:
    """Tiles whose every pixel is their number; counts what is read."""

    tile_px = 4
    slide_ids = labels = groups = splits = None
    positions_px0 = extents_px0 = None

    def __init__(self, count: int) -> None:
        self.names = [str(i) for i in range(count)]
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self.names)

    def images(self, indices: np.ndarray) -> np.ndarray:
        self.read += [int(i) for i in indices]
        return np.broadcast_to(np.asarray(indices, np.uint8)[:, None, None, None], (len(indices), 4, 4, 3)).copy()


def test_cache_keeps_what_its_budget_allows_and_returns_the_same_pixels() -> None:
    source = Counting(10)
    cached = CachedTiles(source, budget_bytes=6 * 48)
    rng = np.random.default_rng(0)
    for _ in range(20):
        wanted = rng.integers(0, 10, size=5)
        assert cached.images(wanted)[:, 0, 0, 0].tolist() == wanted.tolist()
    assert cached.cached == 6
    kept = [i for i in range(10) if source.read.count(i) == 1]
    assert len(kept) >= 6


def test_joined_sources_read_like_one_and_say_what_each_knows(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("other")
    paint(other / "z.png", (99, 0, 0))
    (other / "labels.csv").write_text("file,label\nz.png,tumour\n")
    joined = concat_sources([TileFolder(folder), TileFolder(other)])
    assert len(joined) == 5
    assert joined.labels == ["", "", "", "", "tumour"]
    assert joined.groups is None
    assert joined.images(np.array([4, 1, 4]))[:, 0, 0, 0].tolist() == [99, 10, 99]
    with pytest.raises(UsageError, match="different sides"):
        concat_sources([TileFolder(folder), TileFolder(other, 16)])
    doubled = concat_sources([TileFolder(folder), TileFolder(folder)])
    assert doubled.names[0] == "0/a/0.png" and doubled.names[4] == "1/a/0.png"


def test_training_refuses_small_pictures_and_warns_of_another_scale(folder: Path) -> None:
    (folder / "tiles.csv").write_text("file,mpp\na/0.png,0.5\na/1.png,0.5\na/2.png,\n")
    reporter = SilentReporter()
    assert open_for_training([folder], 16, 1.0, reporter).tile_px == 16
    assert [text.split(" ")[0] for text in reporter.warnings] == ["1"]
    open_for_training([folder], 32, 1.0, reporter)
    assert "have 0.5 um/px by its table; the config says 1" in reporter.warnings[-1]
    with pytest.raises(UsageError, match="32 px, smaller than the 64 px"):
        open_for_training([folder], 64, None, reporter)
