"""The small parts of the explorer's pages: links, marks, windows, and what is said of a hit."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from encoder.errors import QueryError
from query.queries import ExamplesQuery, PointQuery, RegionQuery, TileQuery, read_picture
from ui.views.asked import MAX_MARKS, Asked, query_of
from ui.views.filters import word_for_unknown
from ui.views.hits import nearness, picture_of, told_columns
from ui.views.pictures import MAX_UPLOAD_PIXELS
from ui.views.places import asked_boxes, chosen_boxes, window_around
from ui.views.plain import plain
from ui.views.viewer import Box, Window


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
        {"rank": 1, "slide_id": "s", "patient_id": "p", "age": 61, "organ": "colon", "note": "x" * 30, "label": None},
        {"rank": 2, "slide_id": "s", "patient_id": "p", "age": 61, "organ": None, "note": "", "label": None},
    ]
    assert told_columns(rows) == ["organ", "age"]
    assert told_columns([]) == []


def test_a_tile_without_a_thumbnail_is_read_from_its_slide() -> None:
    row = {"slide_id": "s", "x0": 10, "y0": 20, "extent_px0": 448}
    assert picture_of(row, b"\xff\xd8", {"s": 3}).startswith("data:image/jpeg;base64,")
    assert picture_of(row, None, {"s": 3}) == "/hs/slides/3/region.jpg?x0=10&y0=20&side_px0=448&px=128"
    assert picture_of(row, None, {}) == ""


def test_a_picture_beyond_what_is_kept_is_not_decoded(tmp_path: Path) -> None:
    Image.new("RGB", (300, 200)).save(tmp_path / "a.png")
    assert read_picture(tmp_path / "a.png", max_pixels=60_000).pixels.shape == (200, 300, 3)
    with pytest.raises(QueryError, match="Crop it"):
        read_picture(tmp_path / "a.png", max_pixels=59_999)
    assert MAX_UPLOAD_PIXELS == 25_000_000


def test_text_of_others_is_shown_as_it_is() -> None:
    assert plain("![x](http://elsewhere/x.png)") == "!\\[x\\](http\\://elsewhere/x.png)"
    assert plain("_a_ **b** `c` <d> $e$ :f:") == "\\_a\\_ \\*\\*b\\*\\* \\`c\\` \\<d\\> \\$e\\$ \\:f\\:"
    assert plain("- item") == "\\- item" and plain("slide-1, 5.5 %") == "slide-1, 5.5 %"
    assert len(plain("x" * 100_000)) < 1000


def test_where_a_query_is_drawn() -> None:
    assert asked_boxes(Asked("region:s@10,20,110,70")) == [Box(10, 20, 100, 50, "query")]
    assert asked_boxes(Asked("at:s@-3,4")) == [Box(-3, 4, 0, 0, "query")]
    assert asked_boxes(Asked("at:s@x,4")) == asked_boxes(Asked("picture:ab")) == []
    assert chosen_boxes("s@10,20", 64) == [Box(10, 20, 64, 64, "chosen")] and chosen_boxes("nothing", 64) == []
    assert window_around("s@100,200", 64) == Window(132, 232, 576)


def test_the_word_for_no_value_is_no_value() -> None:
    assert word_for_unknown(["lung"]) == "(unknown)"
    assert word_for_unknown(["(unknown)", "lung"]) == "((unknown))"
