"""What may be asked, and how pictures become tiles."""

from __future__ import annotations

import io
import tracemalloc

import numpy as np
import pytest
from PIL import Image, ImageFile

from encoder.errors import QueryError
from query import queries
from query.queries import ImageQuery, PointQuery, TileQuery, VectorQuery, as_query, check_vector, read_picture
from query.resolve import mean_direction, picture_tiles


def png(image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_plain_objects_become_queries(tmp_path):
    picture = Image.new("RGB", (30, 20), (200, 100, 150))
    file = tmp_path / "a@1,2.png"
    picture.save(file)
    assert as_query("slide one@10,20") == TileQuery("slide one@10,20")
    assert isinstance(as_query(str(file)), ImageQuery)
    for given in (file, png(picture), picture, np.asarray(picture)):
        query = as_query(given, mpp=0.5)
        assert isinstance(query, ImageQuery) and query.mpp == 0.5
        np.testing.assert_array_equal(query.pixels, np.asarray(picture))
    assert isinstance(as_query([1.0, 2.0]), VectorQuery)
    point = PointQuery("s", 1, 2)
    assert as_query(point) is point


def test_transparent_pixels_are_white():
    image = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    image.putpixel((1, 1), (10, 20, 30, 255))
    pixels = read_picture(png(image)).pixels
    assert pixels[0, 0].tolist() == [255, 255, 255] and pixels[1, 1].tolist() == [10, 20, 30]


def test_what_is_no_query_is_refused(tmp_path, monkeypatch):
    text = tmp_path / "slide.png"
    text.write_text("not a picture")
    broken = png(Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)))[:2000]
    deep = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(deep, "PNG")
    for given, says in [
        (text, "cannot be read as a picture"),
        (tmp_path / "absent.png", "cannot be read as a picture"),
        (broken, "cannot be read as a picture"),
        (deep.getvalue(), "pixels of type"),
        (np.zeros((4, 4, 4), np.uint8), r"uint8 \[height, width, 3\]"),
        (np.zeros((0, 4, 3), np.uint8), r"uint8 \[height, width, 3\]"),
        ([[1.0], [1.0, 2.0]], "no vector"),
        ("words", "neither a tile key"),
        (None, "cannot be NoneType"),
        ({"a": 1}, "cannot be dict"),
    ]:
        with pytest.raises(QueryError, match=says):
            as_query(given)
    with pytest.raises(QueryError, match="mpp"):
        as_query(Image.new("RGB", (4, 4)), mpp=0.0)
    monkeypatch.setattr(queries, "MAX_PIXELS", 1000)
    for given in (Image.new("RGB", (40, 40)), png(Image.new("RGB", (40, 40))), np.zeros((40, 40, 3), np.uint8)):
        with pytest.raises(QueryError, match="million pixels"):
            as_query(given)


def test_vectors_are_checked():
    assert check_vector(np.array([1, 2], np.int64), 2).dtype == np.float64
    for vector, says in [([1.0], "2 numbers"), ([np.inf, 1], "not finite"), ([0.0, 0.0], "all zeros")]:
        with pytest.raises(QueryError, match=says):
            check_vector(np.asarray(vector), 2)


def test_picture_of_one_tile_is_taken_as_it_is():
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    tiles, notes = picture_tiles(pixels, 1.0, 1.0, 64)
    np.testing.assert_array_equal(tiles, pixels[None])
    assert notes == ()


def test_picture_is_cut_at_the_grids_scale():
    """128 px at 0.5 um/px are two tiles of 32 px at 1 um/px on each side."""
    pixels = np.zeros((128, 140, 3), np.uint8)
    for number, (top, left) in enumerate([(0, 6), (0, 70), (64, 6), (64, 70)]):
        pixels[top : top + 64, left : left + 64] = 50 * (number + 1)
    tiles, notes = picture_tiles(pixels, 0.5, 1.0, 32)
    assert tiles.shape == (4, 32, 32, 3)
    assert [int(tile[16, 16, 0]) for tile in tiles] == [50, 100, 150, 200]
    assert notes == ("The query is the mean of 4 tiles that cover the picture.",)


def test_picture_without_scale_too_small_or_very_large_is_said():
    small = np.zeros((40, 80, 3), np.uint8)
    tiles, notes = picture_tiles(small, None, 1.0, 64)
    assert tiles.shape == (2, 64, 64, 3)
    assert "taken to be the grid's 1 um/px" in notes[0] and "less than one tile (40 of 64 px)" in notes[1]
    assert "enlarged 1.60x" in notes[2]
    tiles, notes = picture_tiles(np.zeros((800, 800, 3), np.uint8), 1.0, 1.0, 64)
    assert len(tiles) == 64 and "64 of the picture's 144 tiles" in notes[0]


@pytest.mark.parametrize(
    ("side", "mpp", "warned"),
    [(64, 1.0, False), (64, 1.2, False), (100, 1.3, True), (200, 2.0, True), (52, 1.0, False)],
)
def test_an_enlarged_picture_is_warned_of(side, mpp, warned):
    _, notes = picture_tiles(np.zeros((side, side, 3), np.uint8), mpp, 1.0, 64)
    assert any("less detail than the tiles" in note for note in notes) == warned


@pytest.mark.parametrize(("side", "mpp"), [(200, 2.1), (31, 1.0), (100, 0.25), (10_000, 50.0)])
def test_a_picture_that_would_be_enlarged_too_far_is_refused(side, mpp):
    with pytest.raises(QueryError, match="would have to be enlarged"):
        picture_tiles(np.zeros((side, side, 3), np.uint8), mpp, 1.0, 64)


def test_tiles_of_a_large_picture_are_evenly_spread():
    """A grid of 2 px tiles: 4 million of them, of which 64 are cut and shown to be where they should be."""
    pixels = np.zeros((4000, 4000, 3), np.uint8)
    pixels[..., 0] = (np.arange(4000) // 16)[:, None]
    tracemalloc.start()
    tiles, notes = picture_tiles(pixels, 1.0, 1.0, 2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 << 20
    assert "64 of the picture's 4000000 tiles" in notes[0]
    expected = np.linspace(0, 3_999_999, 64).round().astype(int) // 2000 * 2 // 16
    np.testing.assert_array_equal(tiles[:, 0, 0, 0], expected)


def test_only_plain_picture_formats_are_opened():
    for kind in ("GIF", "BMP", "EPS"):
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8)).save(buffer, kind)
        with pytest.raises(QueryError, match="PNG, JPEG or TIFF"):
            read_picture(buffer.getvalue())


def test_a_photograph_is_turned_upright():
    upright = np.zeros((8, 16, 3), np.uint8)
    upright[:, :8] = 255
    lying = Image.fromarray(np.rot90(upright))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    buffer = io.BytesIO()
    lying.save(buffer, "PNG", exif=exif)
    np.testing.assert_array_equal(read_picture(buffer.getvalue()).pixels, upright)


@pytest.mark.parametrize("raised", [KeyError("tag"), RuntimeError("codec"), MemoryError(), ZeroDivisionError()])
def test_whatever_a_decoder_raises_is_a_query_error(monkeypatch, raised):
    def fail(self):
        raise raised

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    with pytest.raises(QueryError, match="cannot be read as a picture"):
        read_picture(png(Image.new("RGB", (8, 8))))


def test_mean_direction_ignores_lengths():
    vectors = np.array([[10.0, 0.0], [0.0, 0.1]], np.float32)
    np.testing.assert_allclose(mean_direction(vectors), [0.5, 0.5], atol=1e-7)
