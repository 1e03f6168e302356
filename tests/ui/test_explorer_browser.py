"""The explorer in a real browser: what a pathologist does with it, and how every page looks."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from PIL import Image

from indexer.grid import parse_tile_key
from query import open_cohort
from query.cohort import Cohort
from query.collections import save_collection
from query.projection.lasso import inside
from tests.ui.serving import served
from ui.views.selection import parse_selection

pytestmark = pytest.mark.browser

SCREENSHOTS = Path(__file__).resolve().parents[2] / "screenshots"
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
QUIET += ["--disable-background-networking", "--disable-component-update"]
WAIT_MS = 60_000


@pytest.fixture(scope="module")
def store(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(tiny_store, tmp_path_factory.mktemp("explored") / "store"))


@pytest.fixture(scope="module")
def server(store: Path) -> Iterator[str]:
    with served(store) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium on this machine")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=QUIET)
        yield opened
        opened.close()


@pytest.fixture
def view(browser: Any) -> Iterator[Any]:
    """A page; at its end nothing may have failed in it, and nothing may have been fetched from elsewhere."""
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "request",
        lambda request: (
            wrong.append(request.url)
            if urlsplit(request.url).scheme in ("http", "https", "ws") and urlsplit(request.url).hostname != "127.0.0.1"
            else None
        ),
    )
    page.set_default_timeout(WAIT_MS)
    yield page
    page.close()
    assert not wrong


def shown(view: Any, slide_id: str) -> dict[str, float]:
    """Wait until a slide is open in the viewer; its box on the screen."""
    viewer = view.locator(f".hs-viewer[data-shown='{slide_id}']")
    viewer.wait_for()
    return dict(viewer.bounding_box())


def keys_of(view: Any) -> list[str]:
    return list(view.locator(".hs-picture").evaluate_all("cards => cards.map((card) => card.dataset.tileKey)"))


def asked_by(view: Any, name: str, *, holds: str = "") -> str:
    """Wait until the link has a parameter that holds a text."""
    view.wait_for_url(lambda url: holds in parse_qs(urlsplit(url).query).get(name, [""])[0] and f"{name}=" in url)
    return parse_qs(urlsplit(view.url).query)[name][0]


def changed(view: Any, before: list[str]) -> list[str]:
    """Wait until the gallery shows other tiles than before."""
    for _ in range(600):
        view.wait_for_timeout(100)
        now = keys_of(view)
        if now and now != before:
            return now
    raise AssertionError("the gallery did not change")


def test_look_click_filter_jump_and_come_back(server: str, store: Path, view: Any) -> None:
    cohort = open_cohort(str(store))
    ids = cohort.slides["slide_id"].to_pylist()
    view.goto(server)
    box = shown(view, ids[0])

    view.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    view.mouse.wheel(0, -400)
    window = [int(part) for part in asked_by(view, "view").split(",")]
    assert window[2] < cohort.slides["width0"][0].as_py()  # closer than the whole slide

    view.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    query = asked_by(view, "q", holds="at:")
    hits = changed(view, [])
    slide_id, x0, y0 = parse_tile_key(query.removeprefix("at:"))
    assert slide_id == ids[0] and abs(x0 - window[0]) < 40 and abs(y0 - window[1]) < 40
    from query.queries import PointQuery

    expected = cohort.search(PointQuery(slide_id, x0, y0), k=20, exclude=("slide",))
    assert hits == expected.table["tile_key"].to_pylist()

    rarest = min(ids[1:], key=[key.rpartition("@")[0] for key in hits].count)
    where = f"slide_id = '{rarest}'"
    view.get_by_role("textbox", name="Condition").fill(where)
    view.get_by_role("textbox", name="Condition").press("Enter")
    filtered = changed(view, hits)
    expected = cohort.search(PointQuery(slide_id, x0, y0), k=20, exclude=("slide",), where=where)
    assert filtered == expected.table["tile_key"].to_pylist()

    view.locator(".hs-picture").nth(2).click()
    assert asked_by(view, "chosen") == filtered[2]
    shown(view, filtered[2].rpartition("@")[0])
    window = [int(part) for part in asked_by(view, "view").split(",")]
    _, x0, y0 = parse_tile_key(filtered[2])
    assert 0 <= window[0] - x0 < 300 and 0 <= window[1] - y0 < 300  # the tile is in the middle

    view.get_by_role("button", name="Back to the query").click()
    shown(view, ids[0])
    assert keys_of(view) == filtered  # looking elsewhere asks nothing new

    view.locator("button[data-action=like]").nth(1).click()
    more = changed(view, filtered)
    assert asked_by(view, "like") == filtered[1] and filtered[1] not in more
    link = view.url
    view.goto("about:blank")
    view.goto(link)
    assert changed(view, []) == more  # the link alone brings the view back


def test_region_picture_and_collection(server: str, store: Path, view: Any, tmp_path: Path) -> None:
    cohort = open_cohort(str(store))
    ids = cohort.slides["slide_id"].to_pylist()
    view.goto(f"{server}?slide={ids[1]}")
    box = shown(view, ids[1])
    view.get_by_label("Draw a region").click()
    view.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + box["height"] * 0.4)
    view.mouse.down()
    view.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] * 0.6, steps=6)
    view.mouse.up()
    corners = [int(part) for part in asked_by(view, "q", holds="region:").rpartition("@")[2].split(",")]
    assert corners[0] < corners[2] and corners[1] < corners[3]
    hits = changed(view, [])
    assert len(hits) == 20 and not any(key.startswith(ids[1] + "@") for key in hits)

    view.locator("button[data-action=keep]").nth(0).click()
    view.locator("button[data-action=keep][aria-pressed=true]").wait_for()
    view.get_by_role("button", name="Save as collection").click()
    view.get_by_label("Name", exact=True).fill("Stroma")
    view.get_by_role("button", name="Save", exact=True).click()
    view.get_by_text("Saved 1 tile as").wait_for()

    Image.new("RGB", (90, 90), (190, 110, 170)).save(tmp_path / "pink.png")
    view.get_by_text("Search with a picture").click()
    view.locator("input[type=file]").set_input_files(str(tmp_path / "pink.png"))
    view.get_by_text("pink.png").wait_for()
    view.wait_for_timeout(1000)
    view.get_by_role("button", name="Search", exact=True).click()
    asked_by(view, "q", holds="picture:")
    assert changed(view, hits)
    (tmp_path / "no.png").write_text("no picture")
    view.locator("input[type=file]").set_input_files(str(tmp_path / "no.png"))
    view.get_by_text("10.0B").wait_for()
    view.wait_for_timeout(1000)
    view.get_by_role("button", name="Search", exact=True).click()
    view.get_by_text("cannot be read as a picture").wait_for()

    view.goto(f"{server}collections")
    view.get_by_text("Stroma").first.wait_for()
    assert keys_of(view) or changed(view, [])
    assert keys_of(view) == hits[:1]


def test_lasso_to_gallery_and_search(server: str, store: Path, view: Any) -> None:
    cohort = open_cohort(str(store))
    view.goto(f"{server}map")
    stage = view.get_by_role("group", name="Map of tiles")
    stage.wait_for()
    view.get_by_label("Draw around tiles").click()
    box = stage.bounding_box()
    left, top, wide, high = box["x"], box["y"], box["width"], box["height"]
    view.mouse.move(left + wide * 0.52, top + high * 0.05)
    view.mouse.down()
    for x, y in ((0.97, 0.05), (0.97, 0.95), (0.52, 0.95), (0.52, 0.5)):
        view.mouse.move(left + wide * x, top + high * y, steps=8)
    view.mouse.up()
    text = asked_by(view, "lasso")
    selection, problem = parse_selection(text)
    assert problem is None and selection is not None
    tile_map = cohort.map("pca")
    ids = tile_map.rows.tile_id[inside(tile_map.xy, selection.polygon)]
    assert 0 < len(ids) < len(tile_map)
    shown_tiles = changed(view, [])
    known = {str(key): int(tile) for key, tile in zip(*tiles_of(cohort), strict=True)}
    assert {known[key] for key in shown_tiles} <= set(ids.tolist())
    assert view.get_by_text(f"{len(ids):,} tiles").count()

    view.get_by_role("button", name="Search only among these").click()
    view.get_by_text(f"Only among {len(ids):,} tiles").wait_for()
    first = cohort.slides["slide_id"][0].as_py()
    view.goto(f"{view.url}&q=at:{first}@700,700&leave_out=Nothing")
    hits = changed(view, [])
    assert {known[key] for key in hits} <= set(ids.tolist())
    view.get_by_role("button", name="Search everywhere").click()
    everywhere = changed(view, hits)
    assert not {known[key] for key in everywhere} <= set(ids.tolist())


def tiles_of(cohort: Cohort) -> tuple[list[str], list[int]]:
    """Keys and ids of all tiles."""
    rows = cohort.sql("SELECT tile_key, tile_id FROM tiles")
    return rows["tile_key"].to_pylist(), rows["tile_id"].to_pylist()


@pytest.mark.parametrize("size", [(1440, 900), (1024, 768)])
def test_every_page_is_seen(server: str, store: Path, view: Any, size: tuple[int, int]) -> None:
    cohort = open_cohort(str(store))
    ids = cohort.slides["slide_id"].to_pylist()
    key = str(cohort.sql("SELECT tile_key FROM tiles LIMIT 1")["tile_key"][0].as_py())
    keys = cohort.sql("SELECT tile_key FROM tiles ORDER BY tissue LIMIT 9")["tile_key"].to_pylist()
    save_collection(cohort, f"Edges {size[0]}", keys, author="A. Reader", note="Tiles at the edge of the tissue.")
    view.set_viewport_size({"width": size[0], "height": size[1]})
    SCREENSHOTS.mkdir(exist_ok=True)
    pages = {
        "open": "",
        "search": f"?q=tile:{key}&layer=Similarity",
        "tissue": f"?slide={ids[0]}&layer=Tissue",
        "tiles": f"?slide={ids[0]}&layer=Tiles",
        "map": "map",
        "encoders": f"encoders?q=tile:{key}",
        "collections": "collections",
        "cohort": "cohort",
    }
    for name, path in pages.items():
        view.goto(server + path)
        view.get_by_test_id("stStatusWidget").wait_for(state="detached")
        view.wait_for_load_state("networkidle")
        view.wait_for_timeout(1500)
        view.screenshot(path=str(SCREENSHOTS / f"{name}-{size[0]}.png"))
        assert view.get_by_test_id("stException").count() == 0, name
        wide = view.evaluate("document.documentElement.scrollWidth")
        assert wide <= size[0], f"{name} is {wide} px wide"


def test_a_question_goes_along_from_page_to_page(server: str, store: Path, view: Any) -> None:
    key = str(open_cohort(str(store)).sql("SELECT tile_key FROM tiles LIMIT 1")["tile_key"][0].as_py())
    view.goto(f"{server}encoders?q=tile:{key}")
    hit = changed(view, [])[0]
    slide_id = hit.rpartition("@")[0]
    view.locator(".hs-picture").first.click()
    assert asked_by(view, "chosen") == hit
    shown(view, slide_id)
    view.wait_for_timeout(2500)  # the viewer of the page that was left may still say what it showed
    assert asked_by(view, "slide") == slide_id and asked_by(view, "q") == f"tile:{key}"
    x0, y0 = parse_tile_key(hit)[1:]
    window = [int(part) for part in asked_by(view, "view").split(",")]
    assert abs(window[0] - x0) < 400 and abs(window[1] - y0) < 400 and window[2] < 2000

    view.get_by_role("textbox", name="Condition").fill("tissue > 0.2")
    view.get_by_role("textbox", name="Condition").press("Enter")
    assert asked_by(view, "where") == "tissue > 0.2"
    view.get_by_role("link", name="Cohort").click()
    view.get_by_text("Quarantine").first.wait_for()
    view.get_by_role("link", name="Search").click()
    assert asked_by(view, "q") == f"tile:{key}"
    assert changed(view, []) and view.get_by_role("textbox", name="Condition").input_value() == "tissue > 0.2"


def test_two_people_do_not_see_each_other(server: str, store: Path, browser: Any) -> None:
    ids = open_cohort(str(store)).slides["slide_id"].to_pylist()
    one, other = (browser.new_context(viewport={"width": 1440, "height": 900}).new_page() for _ in range(2))
    for page, slide_id in ((one, ids[0]), (other, ids[2])):
        page.set_default_timeout(WAIT_MS)
        page.goto(f"{server}?slide={slide_id}")
    for page, slide_id in ((one, ids[0]), (other, ids[2])):
        box = shown(page, slide_id)
        page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    for page, slide_id in ((one, ids[0]), (other, ids[2])):
        assert slide_id in asked_by(page, "q")
        assert not any(key.startswith(slide_id + "@") for key in changed(page, []))
        page.context.close()


def test_a_store_that_is_served_elsewhere_stays_unread(server: str) -> None:
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    with pytest.raises(HTTPError) as refused:
        urlopen(Request(server + "hs/slides/0/info.json", headers={"Host": "evil.example"}))
    assert refused.value.code in (400, 403)
