"""The map: its command, its page by AppTest, its link, and the work beside the pages."""

from __future__ import annotations

import base64
import io
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from PIL import Image
from streamlit.testing.v1 import AppTest

from encoder.errors import QueryError
from indexer.grid import parse_tile_key, tile_key
from query import open_cohort
from query.cohort import Cohort
from query.collections import load_collection
from query.projection.lasso import inside
from query.projection.tile_map import TileMap
from query.projection.window import Window
from tests.ui.serving import served
from ui.server.opened import STORE_VARIABLE
from ui.views.density_map import View
from ui.views.map_shelf import MapShelf, map_shelf
from ui.views.map_tiles import evenly_spread
from ui.views.plain import plain
from ui.views.selection import MOST_CORNERS, Selection, parse_selection, select, selected_tiles

Histoseek = Callable[..., Any]


def half(tile_map: TileMap, share: float = 0.5) -> list[tuple[float, float]]:
    """A rectangle around the left part of a map."""
    extent = tile_map.extent
    middle = float(np.quantile(tile_map.xy[:, 0], share)) + 1e-4
    left, low, high = extent.left - 1, extent.bottom - 1, extent.top + 1
    return [(left, low), (middle, low), (middle, high), (left, high)]


# --- the command


def test_the_command_computes_once_draws_and_tells(histoseek: Histoseek, store_copy: Path, tmp_path: Path) -> None:
    picture = tmp_path / "new" / "map.png"
    first = histoseek("map", "--store", store_copy, "--colour", "slide_id", "--picture", picture)
    assert first.code == 0, first.err
    assert "in the store" in first.out and "of the variance" in first.out and str(picture) in first.out
    with Image.open(picture) as drawn:
        assert drawn.size == (1400, 1000)
        colours = {colour for _, colour in drawn.convert("RGB").getcolors(1 << 20)}
    assert {(255, 255, 255), (0, 114, 178)} <= colours
    assert "fit: " in first.err
    second = histoseek("map", "--store", store_copy, "--colour", "tissue", "--json")
    assert second.code == 0 and "fit: " not in second.err
    told = json.loads(second.out)
    cohort = open_cohort(str(store_copy))
    tiles = cohort.vectors(columns=("tissue",)).table.num_rows
    assert (told["tiles"], told["slides"], told["fitted_on"], told["stored"]) == (tiles, 3, tiles, True)
    assert told["colour"]["column"] == "tissue" and told["colour"]["low"] < told["colour"]["high"]
    assert told["notes"] == [] and 0 < told["variance"][1] <= told["variance"][0] <= 1
    again = histoseek("map", "--store", store_copy, "--refit", "--json", "--colour", "slide_id")
    assert "fit: " in again.err
    classes = json.loads(again.out)["colour"]["classes"]
    assert sum(line["count"] for line in classes) == tiles and len(classes) == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--method", "tsne"], "Choose from: pca, umap"),
        (["--colour", "tisue"], "Did you mean 'tissue'?"),
        (["--picture", "map.jpg"], "does not end in .png"),
        (["--encoder", "other"], "no vectors of encoder 'other'"),
    ],
)
def test_a_wrong_request_is_one_sentence(
    histoseek: Histoseek, store_copy: Path, arguments: list[str], words: str
) -> None:
    outcome = histoseek("map", "--store", store_copy, *arguments)
    assert outcome.code == 2 and words in outcome.err and "Traceback" not in outcome.err


# --- the link


def test_a_selection_is_the_same_after_its_link(tiny_store: Path) -> None:
    tile_map = open_cohort(str(tiny_store)).map(store=False)
    middle = tile_map.xy.mean(axis=0)
    angle = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    drawn = middle + 0.3 * tile_map.extent.width * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    selection = select(tile_map, drawn)
    assert len(selection.polygon) == MOST_CORNERS
    text = selection.to_text()
    assert parse_selection(text) == (selection, None)
    assert len(text) < 1500 and all(letter.isalnum() or letter in "_-." for letter in text)
    size = 0.6 * tile_map.extent.width
    rounded = np.asarray(selection.polygon)
    assert np.abs(rounded[:, None] - drawn[None]).max(axis=2).min(axis=1).max() <= size / 2000
    different = inside(tile_map.xy, drawn) != inside(tile_map.xy, selection.polygon)
    assert different.mean() < 0.02


def test_a_small_line_keeps_its_shape(tiny_store: Path) -> None:
    tile_map = open_cohort(str(tiny_store)).map(store=False)
    at = tile_map.xy[5].astype(float)
    around = at + 1e-7 * np.array([[-1, -1], [1, -1], [1.5, 0.5], [0, 2]])
    selection = select(tile_map, around)
    assert inside(tile_map.xy[5:6], selection.polygon).tolist() == [True]
    with pytest.raises(QueryError, match="around nothing"):
        select(tile_map, [at, at, at])
    with pytest.raises(QueryError, match="no line drawn by hand"):
        select(tile_map, np.zeros((4001, 2)))
    with pytest.raises(QueryError, match="no line around tiles"):
        select(tile_map, [[1, 2, 3]])


@pytest.mark.parametrize(
    "text",
    [
        "pca",
        "pca_e_g",
        "pca_e_g_1_2_3_4_5",
        "pca_e_g_1_2_3_4",
        "pca_e_g_1_2_3_4_5_x",
        "pca_e_g_1_2_3_4_5_nan",
        "pca_e_g_1_2_3_4_5_1e999",
        "tsne_e_g_1_2_3_4_5_6",
        "pca_E_g_1_2_3_4_5_6",
        "pca__g_1_2_3_4_5_6",
        "pca_e_g_" + "_".join("1" for _ in range(2 * MOST_CORNERS + 2)),
        "_" * 5000,
        "pca_e_g_1_2_3_4_5_6'; DROP",
    ],
)
def test_a_damaged_link_is_said_and_left_out(text: str) -> None:
    selection, problem = parse_selection(text)
    assert selection is None and problem is not None and "damaged" in problem


def test_no_selection_is_no_problem() -> None:
    assert parse_selection(None) == parse_selection("") == (None, None)
    sides = "pca_e-1_g-2_-1.5_2_0.25_-0_1e-3_4"
    assert parse_selection(sides) == (Selection("pca", "e-1", "g-2", ((-1.5, 2.0), (0.25, 0.0), (0.001, 4.0))), None)


def test_selected_tiles_are_those_inside_and_a_search_takes_them(store_copy: Path) -> None:
    cohort = open_cohort(str(store_copy))
    tile_map = cohort.map()
    selection = select(tile_map, half(tile_map))
    found = selected_tiles(cohort, selection)
    expected = tile_map.rows.tile_id[tile_map.xy[:, 0] < selection.polygon[1][0]]
    assert found.tolist() == expected.tolist() and 0 < found.size < len(tile_map)
    assert selected_tiles(cohort, selection) is found  # kept
    slide = tile_map.slides["slide_id"][int(tile_map.rows.slide_code[0])].as_py()
    key = tile_key(slide, int(tile_map.rows.x0[0]), int(tile_map.rows.y0[0]))
    hits = cohort.search(key, k=1000, apart=0, among=found)
    assert set(hits.tile_ids.tolist()) == set(found.tolist())
    with pytest.raises(QueryError, match=r"UMAP .* is not computed"):
        selected_tiles(cohort, Selection("umap", *selection.to_text().split("_")[1:3], selection.polygon))
    with pytest.raises(QueryError, match="no vectors"):
        selected_tiles(cohort, Selection("pca", "gone-00000000", selection.grid_id, selection.polygon))


# --- the page


def page(monkeypatch: pytest.MonkeyPatch, store: Path, **query: str) -> AppTest:
    monkeypatch.setenv(STORE_VARIABLE, str(store))

    def script() -> None:
        import os

        import streamlit as st

        from encoder.errors import HistoSeekError
        from ui.server.opened import opened_cohort
        from ui.views import map_page

        try:
            map_page.show(opened_cohort(os.environ["HISTOSEEK_STORE"]))
        except HistoSeekError as error:
            st.error(str(error))

    test = AppTest.from_function(script, default_timeout=60)
    for name, value in query.items():
        test.query_params[name] = value
    return test.run()


def texts(test: AppTest) -> str:
    kinds = (test.markdown, test.caption, test.info, test.warning, test.error)
    return " ".join(element.value for kind in kinds for element in kind)


@pytest.fixture
def mapped(store_copy: Path) -> tuple[Path, Cohort, TileMap]:
    cohort = open_cohort(str(store_copy))
    return store_copy, cohort, cohort.map()


def test_it_opens_with_the_plane_and_says_what_to_do(monkeypatch: pytest.MonkeyPatch, store_copy: Path) -> None:
    test = page(monkeypatch, store_copy)
    assert not test.exception and not test.error
    assert test.segmented_control(key="method").value == "PCA"
    assert "Draw around some" in texts(test) and "of the variance" in texts(test)
    options = test.selectbox(key="colour").options
    assert options[0] == "number of tiles" and {"slide_id", "tissue"} <= set(options)
    assert open_cohort(str(store_copy)).map().stored  # computed once, for all who come
    assert not [button for button in test.button if button.key in ("search_among", "clear_lasso")]
    drawn = test.session_state["map_drawn"][2]
    with Image.open(io.BytesIO(drawn)) as picture:
        assert picture.mode == "RGBA" and picture.size == (760, 560) and picture.getextrema()[3][1] > 200


def test_a_link_with_a_line_shows_what_is_inside(
    monkeypatch: pytest.MonkeyPatch, mapped: tuple[Path, Cohort, TileMap]
) -> None:
    path, _, tile_map = mapped
    selection = select(tile_map, half(tile_map, 0.8))
    rows = np.flatnonzero(inside(tile_map.xy, selection.polygon))
    slides = np.unique(tile_map.rows.slide_no[rows]).size
    assert rows.size > 60
    test = page(monkeypatch, path, lasso=selection.to_text(), colour="slide_id")
    assert not test.exception and not test.error
    assert f"{rows.size} tiles of {slides} slides inside" in texts(test)
    assert "60 of them, evenly spread" in texts(test)
    names = tile_map.slides["slide_id"].to_pylist()
    for code, count in zip(*np.unique(tile_map.rows.slide_code[rows], return_counts=True), strict=True):
        assert plain(f"{names[code]} {count}") in texts(test)
    test.button(key="clear_lasso").click().run()
    assert "lasso" not in test.query_params and "inside" not in texts(test)


def test_what_is_inside_becomes_a_collection(
    monkeypatch: pytest.MonkeyPatch, mapped: tuple[Path, Cohort, TileMap]
) -> None:
    path, cohort, tile_map = mapped
    selection = select(tile_map, half(tile_map, 0.8))
    rows = np.flatnonzero(inside(tile_map.xy, selection.polygon))
    test = page(monkeypatch, path, lasso=selection.to_text())
    assert test.radio(key="save_which").options == [f"The {rows.size} tiles inside the line"]
    test.text_input(key="save_name").set_value("left half")
    (save,) = [button for button in test.button if button.label == "Save"]
    save.click().run()
    assert not test.exception and [s.value for s in test.success] == [f"Saved {rows.size} tiles as “left half”."]
    saved = load_collection(cohort, "left half")
    assert saved.info.grid_id == selection.grid_id
    own = [parse_tile_key(key) for key in saved.tile_keys]
    names = tile_map.slides["slide_id"].to_pylist()
    kept = tile_map.rows
    assert own == [(names[kept.slide_code[row]], kept.x0[row], kept.y0[row]) for row in rows]


def test_a_link_of_another_time_or_hand_opens_all_the_same(
    monkeypatch: pytest.MonkeyPatch, mapped: tuple[Path, Cohort, TileMap]
) -> None:
    test = page(monkeypatch, mapped[0], method="tSNE", colour="no such column", vectors="gone", lasso="<b>")
    assert not test.exception and not test.error and "damaged" in texts(test)
    assert test.segmented_control(key="method").value == "PCA"
    assert test.selectbox(key="colour").value == "number of tiles"


def test_a_line_around_nothing_and_a_damaged_one(
    monkeypatch: pytest.MonkeyPatch, mapped: tuple[Path, Cohort, TileMap]
) -> None:
    path, _, tile_map = mapped
    far = select(tile_map, [(50, 50), (51, 50), (50, 51)])
    test = page(monkeypatch, path, lasso=far.to_text())
    assert "0 tiles of 0 slides inside" in texts(test) and "No tile lies inside" in texts(test)
    assert test.button(key="search_among").disabled
    damaged = page(monkeypatch, path, lasso="pca_x")
    assert not damaged.exception and "damaged" in texts(damaged)
    gone = page(monkeypatch, path, lasso=far.to_text().replace(tile_map.rows.encoder_id, "gone-00000000"))
    assert not gone.exception and "no vectors of encoder" in texts(gone)


def test_gestures_become_link_and_view(monkeypatch: pytest.MonkeyPatch, mapped: tuple[Path, Cohort, TileMap]) -> None:
    from ui.views import map_page

    path, _, tile_map = mapped
    test = page(monkeypatch, path)
    extent = tile_map.extent
    token = f"{tile_map.rows.encoder_id} {tile_map.rows.grid_id} pca"
    told = {"token": token, "left": extent.left, "bottom": extent.bottom, "right": extent.right, "top": extent.top}
    view = View.told(told | {"width_px": 300, "height_px": 9000, "pixel_ratio": 2})
    assert view is not None and (view.width_px, view.height_px, view.pixel_ratio) == (300, 2048, 2)
    assert View.told(told) is None and View.told(None) is None and View.told({**told, "left": "x"}) is None
    small = View(token, Window(*extent.__dict__.values()), 300, 200, 1.0)
    test.session_state["map_view"] = small
    test.run()
    with Image.open(io.BytesIO(test.session_state["map_drawn"][2])) as picture:
        assert picture.size == (300, 200)
    state: dict[str, Any] = {}
    monkeypatch.setattr(map_page.st, "session_state", state)
    x, y = tile_map.xy[7].tolist()
    map_page._clicked(tile_map, x, y, small)
    nearest = ((tile_map.xy - tile_map.xy[7]) ** 2).sum(axis=1).argmin()
    assert state["map_picked"] == tile_map.rows.tile_id[nearest] and state["map_whole_page"]
    map_page._clicked(tile_map, extent.right + 5, y, small)
    assert state["map_picked"] is None
    links: dict[str, Any] = {}
    monkeypatch.setattr(map_page, "put", links.update)
    map_page._lassoed(tile_map, half(tile_map))
    assert parse_selection(links["lasso"])[0] == select(tile_map, half(tile_map))
    map_page._lassoed(tile_map, [(0, 0), (0, 0), (0, 0)])
    assert "around nothing" in state["map_problem"]


def test_a_clicked_tile_is_shown(monkeypatch: pytest.MonkeyPatch, mapped: tuple[Path, Cohort, TileMap]) -> None:
    path, _, tile_map = mapped
    test = page(monkeypatch, path)
    test.session_state["map_picked"] = int(tile_map.rows.tile_id[3])
    test.run()
    assert not test.exception and "The tile that was clicked" in texts(test)
    test.session_state["map_picked"] = 1 << 50  # of a slide that is gone by now
    test.run()
    assert not test.exception and "The tile that was clicked" not in texts(test)


def test_another_map_is_offered_and_never_computed_unasked(
    monkeypatch: pytest.MonkeyPatch, mapped: tuple[Path, Cohort, TileMap]
) -> None:
    path, cohort, tile_map = mapped
    begun = threading.Event()
    go_on = threading.Event()
    fitted = Cohort.map

    def slow(self: Cohort, method: str = "pca", *rest: Any, **named: Any) -> TileMap:
        if method != "umap":
            return fitted(self, method, *rest, **named)
        named["reporter"].start("UMAP of some tiles", 4, "tiles")
        named["reporter"].advance(1)
        begun.set()
        assert go_on.wait(60)
        raise QueryError("UMAP needs at least 16 different tiles.", "Use the method pca.")

    monkeypatch.setattr(Cohort, "map", slow)
    test = page(monkeypatch, path, method="UMAP")
    assert not test.exception and "is not computed yet" in texts(test) and not begun.is_set()
    assert "takes about 20 s" in texts(test)
    test.button(key="compute").click().run()
    assert begun.wait(60)
    test.run()
    assert "Computing UMAP" in texts(test) and not [button for button in test.button if button.key == "compute"]
    beside = page(monkeypatch, path)  # the plane, meanwhile
    assert not beside.exception and "Draw around some" in texts(beside)
    go_on.set()
    table = cohort.choose()
    deadline = time.monotonic() + 60
    from ui.server.opened import opened_cohort

    while not (work := map_shelf().work(opened_cohort(str(path)), table, "umap")).ended:  # type: ignore[union-attr]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert work is not None and work.problem is not None
    test.run()
    assert not test.exception and "needs at least 16" in " ".join(element.value for element in test.error)
    assert [button for button in test.button if button.key == "compute"]
    selection = select(tile_map, half(tile_map))
    lost = Selection("umap", selection.encoder_id, selection.grid_id, selection.polygon)
    shown = page(monkeypatch, path, method="PCA", lasso=lost.to_text())
    assert not shown.exception and "is not computed" in texts(shown)


def test_a_store_of_few_tiles_offers_no_umap(monkeypatch: pytest.MonkeyPatch, store_copy: Path) -> None:
    monkeypatch.setattr("ui.views.map_page.LEAST_ROWS", 10_000)
    test = page(monkeypatch, store_copy, method="UMAP")
    assert not test.exception and "needs at least 10000 tiles" in texts(test)
    assert not [button for button in test.button if button.key == "compute"]


def test_two_sets_of_vectors_are_a_choice(
    monkeypatch: pytest.MonkeyPatch, store_copy: Path, tiny_encoder: Path
) -> None:
    from encoder.progress import SilentReporter
    from encoder.registry import load_encoder
    from indexer.index_request import IndexRequest
    from indexer.pipeline import index

    index(str(store_copy), IndexRequest([load_encoder(str(tiny_encoder))], mpp=2.0, tile_px=32), SilentReporter())
    cohort = open_cohort(str(store_copy))
    first, second = cohort.vector_tables
    tile_map = cohort.map("pca", first.encoder_id, first.grid_id)
    selection = select(tile_map, half(tile_map))
    test = page(monkeypatch, store_copy, lasso=selection.to_text())
    assert not test.exception and not test.error
    count = selected_tiles(cohort, selection).size
    assert f"{count} tiles of 3 slides inside" in texts(test)
    test.selectbox(key="vectors").select_index(1).run()
    assert not test.exception and not test.error
    assert f"{count} tiles of 0 slides inside" in texts(test) and "have no place on this map" in texts(test)
    assert cohort.map("pca", second.encoder_id, second.grid_id).stored  # both maps are kept
    assert cohort.map("pca", first.encoder_id, first.grid_id).xy.tolist() == tile_map.xy.tolist()


# --- the shelf


def test_a_map_is_at_hand_until_something_changes(store_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cohort, shelf = open_cohort(str(store_copy)), MapShelf()
    table = cohort.choose()
    assert shelf.wait_seconds(cohort, table, "pca") > 0
    first = shelf.ready(cohort, table, "pca")
    assert first is not None and shelf.ready(cohort, table, "pca") is first
    assert shelf.wait_seconds(cohort, table, "pca") == 0 and shelf.ready(cohort, table, "umap") is None
    open_cohort(str(store_copy)).map(refit=True)
    again = shelf.ready(cohort, table, "pca")
    assert again is not None and again is not first
    calls: list[int] = []
    for _ in range(2):
        assert shelf.remembered(again, "question", lambda: calls.append(1) or 42) == 42
    assert shelf.remembered(first, "question", lambda: 43) == 43 and calls == [1]
    assert shelf.remembered(again, "question", lambda: 44) == 42


def test_a_map_that_could_not_be_stored_is_at_hand_all_the_same(
    store_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from encoder.errors import StoreError
    from indexer.tables import Tables

    def refuse(*_: object) -> None:
        raise StoreError("The table projections could not be written: read-only file system.")

    monkeypatch.setattr(Tables, "append", refuse)
    cohort, shelf = open_cohort(str(store_copy)), MapShelf()
    first = shelf.ready(cohort, cohort.choose(), "pca")
    assert first is not None and not first.stored and shelf.ready(cohort, cohort.choose(), "pca") is first
    test = page(monkeypatch, store_copy)
    assert not test.exception and "not in the store" in texts(test) and "read-only" in texts(test)


def test_a_sample_of_the_inside_is_evenly_spread() -> None:
    rows = np.arange(100, 1100)
    shown = evenly_spread(rows, 60)
    assert shown.size == 60 and shown[0] == 100 and shown[-1] == 1099
    assert set(np.diff(shown).tolist()) <= {16, 17, 18}
    assert evenly_spread(rows[:60], 60).tolist() == rows[:60].tolist()


# --- a real browser


@pytest.fixture
def server(mapped: tuple[Path, Cohort, TileMap]) -> Iterator[str]:
    with served(mapped[0]) as address:
        yield f"{address}map"


def lassoed(view: Any, before: str = "") -> str:
    """Wait until the link has another line than before; that line."""

    def line(url: str) -> str:
        return parse_qs(urlsplit(url).query).get("lasso", [""])[0]

    view.wait_for_url(lambda url: line(url) not in ("", before))
    return line(view.url)


@pytest.mark.browser
def test_move_draw_around_click_and_clear(server: str, mapped: tuple[Path, Cohort, TileMap]) -> None:
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium on this machine")
    from playwright.sync_api import sync_playwright

    tile_map = mapped[2]
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    quiet += ["--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=quiet)
        view = browser.new_page(viewport={"width": 1440, "height": 900})
        view.set_default_timeout(60_000)
        wrong: list[str] = []
        view.on("pageerror", lambda error: wrong.append(str(error)))
        view.goto(server)
        picture = view.locator(".hs-map-image")
        picture.wait_for()
        box = view.locator(".hs-map-stage").bounding_box()
        assert box is not None

        def redrawn(before: str) -> str:
            for _ in range(600):
                now = str(picture.get_attribute("src"))
                if now != before:
                    return now
                view.wait_for_timeout(100)
            raise AssertionError("the map was not drawn anew")

        view.wait_for_timeout(3000)  # until it is drawn for the size that it has here
        whole = str(picture.get_attribute("src"))
        with Image.open(io.BytesIO(base64.b64decode(whole.partition(",")[2]))) as drawn:
            assert drawn.width == pytest.approx(box["width"], abs=4)
        left, top, width, height = box["x"], box["y"], box["width"], box["height"]

        def draw(corners: list[tuple[float, float]]) -> None:
            for number, (x, y) in enumerate(corners):
                view.mouse.move(left + x * width, top + y * height, steps=4)
                if not number:
                    view.mouse.down()
            view.mouse.up()

        # All of it, with the lasso button.
        view.get_by_role("button", name="Draw around tiles").click()
        draw([(0.005, 0.005), (0.995, 0.005), (0.995, 0.995), (0.005, 0.995)])
        first = lassoed(view)
        view.get_by_text(f"{len(tile_map)} tiles of 3 slides inside").wait_for()
        # Near the middle, drawn with Shift: the tiles that lie there and no others.
        view.keyboard.down("Shift")
        draw([(0.4, 0.3), (0.7, 0.3), (0.7, 0.6), (0.4, 0.6)])
        view.keyboard.up("Shift")
        selection, _ = parse_selection(lassoed(view, first))
        assert selection is not None
        within = np.flatnonzero(inside(tile_map.xy, selection.polygon))
        view.get_by_text(f"{within.size} tiles of").wait_for()
        corners = np.asarray(selection.polygon)
        assert np.ptp(corners[:, 0]) / np.ptp(corners[:, 1]) == pytest.approx(width / height, rel=0.05)
        # A click on a tile shows that one. Where it lies on the screen follows from the corners that were drawn.
        row = int(within[0])
        across = 0.4 + 0.3 * (tile_map.xy[row, 0] - corners[:, 0].min()) / np.ptp(corners[:, 0])
        down = 0.3 + 0.3 * (corners[:, 1].max() - tile_map.xy[row, 1]) / np.ptp(corners[:, 1])
        view.mouse.click(left + across * width, top + down * height)
        view.get_by_text("The tile that was clicked").wait_for()
        view.locator(".hs-map-ring.above").wait_for()
        # Closer, by the wheel; then all of it, by the button.
        before = str(picture.get_attribute("src"))
        view.mouse.wheel(0, -400)
        closer = redrawn(before)
        view.get_by_role("button", name="Show the whole map").click()
        redrawn(closer)
        view.get_by_role("button", name="Clear").click()
        view.wait_for_url(lambda url: "lasso=" not in url)
        view.locator(".hs-map-line").first.wait_for(state="detached")
        # And the line goes along to the search.
        view.goto(f"{server}?lasso={first}")
        view.get_by_role("button", name="Search only among these").click()
        view.wait_for_url(lambda url: urlsplit(url).path == "/" and first in url)
        browser.close()
    assert not wrong
