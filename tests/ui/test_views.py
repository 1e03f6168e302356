"""The small parts of the explorer's pages: links, marks, windows, and what is said of a hit."""

from __future__ import annotations

import numpy as np
import pytest

from encoder.errors import QueryError
from query.queries import ExamplesQuery, ImageQuery, PointQuery, RegionQuery, TileQuery
from ui.views.asked import MAX_MARKS, Asked, query_of
from ui.views.hits import nearness, picture_of, told_columns
from ui.views.pictures import MAX_UPLOAD_PIXELS, check_size
from ui.views.viewer import Window


def test_a_text_asks_for_what_it_says() -> None:
    assert query_of(Asked("tile:a:b@c@5,7")) == TileQuery("a:b@c@5,7")  # ids may hold what separates
    assert query_of(Asked("at:s1@-5,7")) == PointQuery("s1", -5, 7)
    assert query_of(Asked("region:s1@1,2,30,40")) == RegionQuery("s1", ((1, 2), (30, 40)))
    marked = query_of(Asked("tile:s1@0,0", like=("s2@1,1",), unlike=("s3@2,2",)))
    assert marked == ExamplesQuery((TileQuery("s1@0,0"), TileQuery("s2@1,1")), (TileQuery("s3@2,2"),))
    assert query_of(Asked(like=("s2@1,1",))) == ExamplesQuery((TileQuery("s2@1,1"),))


@pytest.mark.parametrize(
    "text", ["tile:", "tile:@1,2", "tile:s1@1", "at:s1@1,2,3", "region:s1@1,2,3", "region:s1@1,2", "file:/etc@1,2"]
)
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(QueryError, match="no tile, point or region"):
        query_of(Asked(text))


def test_where_a_query_lies() -> None:
    assert Asked("at:s@1@5,7").slide_id == "s@1"
    assert Asked("picture:abc").slide_id is None and not Asked("picture:abc").on_slides
    assert Asked("picture:abc", like=("s1@0,0",)).on_slides


def test_marks_are_set_changed_and_taken_away() -> None:
    asked = Asked("tile:q@0,0").marked("a@0,0", like=True).marked("b@0,0", like=False)
    assert (asked.like, asked.unlike) == (("a@0,0",), ("b@0,0",))
    asked = asked.marked("a@0,0", like=False)
    assert (asked.like, asked.unlike) == ((), ("b@0,0", "a@0,0"))
    assert asked.marked("b@0,0", like=False).unlike == ("a@0,0",)
    for number in range(MAX_MARKS - 2):
        asked = asked.marked(f"m@{number},0", like=True)
    with pytest.raises(QueryError, match=f"At most {MAX_MARKS}"):
        asked.marked("one@more,0", like=True)
    assert len(asked.marked("b@0,0", like=True).like) == MAX_MARKS - 1  # one that is marked may change


def test_a_window_is_read_as_it_was_written() -> None:
    window = Window(-40, 1200, 900)
    assert Window.of_text(window.to_text()) == window
    for text in (None, "", "1,2", "1,2,0", "1,2,-5", "a,b,c", "1,2,3,4", "1,2,99999999999"):
        assert Window.of_text(text) is None


@pytest.mark.parametrize(
    ("percentile", "words"),
    [
        (None, "0.125"),
        (0.0, "0.125 · closer than 99.99 %"),
        (0.04, "0.125 · closer than 99.96 %"),
        (0.96, "0.125 · closer than 99.0 %"),
        (40.0, "0.125 · closer than 60.0 %"),
        (100.0, "0.125 · closer than 0.0 %"),
    ],
)
def test_how_near_a_hit_is_in_words(percentile: float | None, words: str) -> None:
    assert nearness(0.125, percentile) == words


def test_of_the_columns_short_and_usual_ones_are_told() -> None:
    rows = [
        {"rank": 1, "slide_id": "s", "patient_id": "p", "age": 61, "organ": "colon", "remark": "x" * 30, "label": None},
        {"rank": 2, "slide_id": "s", "patient_id": "p", "age": 61, "organ": None, "remark": "", "label": None},
    ]
    assert told_columns(rows) == ["organ", "age"]
    assert told_columns([]) == []


def test_a_tile_without_a_thumbnail_is_read_from_its_slide() -> None:
    row = {"slide_id": "s", "x0": 10, "y0": 20, "extent_px0": 448}
    assert picture_of(row, b"\xff\xd8", {"s": 3}).startswith("data:image/jpeg;base64,")
    assert picture_of(row, None, {"s": 3}) == "/hs/slides/3/region.jpg?x0=10&y0=20&side_px0=448&px=128"
    assert picture_of(row, None, {}) == ""


def test_a_picture_beyond_what_is_kept_is_refused() -> None:
    side = int(MAX_UPLOAD_PIXELS**0.5)
    pixels = np.zeros((1, 1, 3), np.uint8)
    largest = ImageQuery(np.broadcast_to(pixels, (side, side, 3)))
    assert check_size(largest) is largest
    with pytest.raises(QueryError, match="Crop it"):
        check_size(ImageQuery(np.broadcast_to(pixels, (side, side + 10, 3))))
