"""The explorer's page: its logic by AppTest, its clicks in a real browser."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

APP = Path(__file__).resolve().parents[2] / "ui" / "app.py"


def page(monkeypatch: pytest.MonkeyPatch, store: Path | str, **query: str) -> AppTest:
    monkeypatch.setattr(sys, "argv", ["app.py", str(store)])
    test = AppTest.from_file(str(APP), default_timeout=60)
    for name, value in query.items():
        test.query_params[name] = value
    return test.run()


def texts(test: AppTest) -> str:
    return " ".join(element.value for kind in (test.caption, test.info, test.error) for element in kind)


def test_it_opens_on_a_slide_and_asks_for_a_click(monkeypatch: pytest.MonkeyPatch, tiny_store: Path) -> None:
    test = page(monkeypatch, tiny_store)
    assert not test.exception
    assert len(test.selectbox(key="slide").options) == 3
    assert "Click on tissue" in texts(test)


def test_a_bookmarked_tile_is_searched(monkeypatch: pytest.MonkeyPatch, tiny_store: Path) -> None:
    from query import open_cohort

    key = open_cohort(str(tiny_store)).sql("SELECT tile_key FROM tiles ORDER BY tile_id DESC LIMIT 1")
    tile = key["tile_key"][0].as_py()
    test = page(monkeypatch, tiny_store, slide=tile.rpartition("@")[0], tile=tile)
    assert not test.exception
    assert test.selectbox(key="slide").value == tile.rpartition("@")[0]
    assert "20 most similar tiles" in texts(test)
    test.text_input(key="where").set_value("tisue > 0.5").run()
    assert not test.exception
    assert "tissue" in " ".join(element.value for element in test.error)


def test_a_filter_without_hits_says_so(monkeypatch: pytest.MonkeyPatch, tiny_store: Path) -> None:
    test = page(monkeypatch, tiny_store, at="700,700")
    test.text_input(key="where").set_value("tissue > 5").run()
    assert not test.exception
    assert "No tile matches" in texts(test)


def test_an_absent_store_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    test = page(monkeypatch, tmp_path / "absent")
    assert not test.exception
    assert "absent" in " ".join(element.value for element in test.error)


def test_two_grids_are_a_choice_on_the_page(
    monkeypatch: pytest.MonkeyPatch, store_copy: Path, tiny_encoder: Path
) -> None:
    from encoder.progress import SilentReporter
    from encoder.registry import load_encoder
    from indexer.index_request import IndexRequest
    from indexer.pipeline import index

    index(str(store_copy), IndexRequest([load_encoder(str(tiny_encoder))], mpp=2.0, tile_px=32), SilentReporter())
    test = page(monkeypatch, store_copy, at="700,700")
    assert not test.exception and not test.error
    assert sorted(test.selectbox(key="vectors").options) == ["tiny, 1 um/px", "tiny, 2 um/px"]
    test.selectbox(key="vectors").select_index(1).run()
    assert not test.exception and not test.error
    assert "most similar tiles" in texts(test)


def test_a_bookmark_of_an_unknown_slide_says_so(monkeypatch: pytest.MonkeyPatch, tiny_store: Path) -> None:
    test = page(monkeypatch, tiny_store, slide="elsewhere", at="\u00b2,5")
    assert not test.exception
    assert "elsewhere" in " ".join(element.value for element in test.warning)


@pytest.fixture
def server(tiny_store: Path) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-c", "from ui.cli.main import run; run()", "ui", "--store", str(tiny_store)]
    running = subprocess.Popen([*command, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(240):
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.25)
        yield f"http://127.0.0.1:{port}/"
    finally:
        running.terminate()
        running.wait(20)


@pytest.mark.browser
def test_click_gallery_jump_upload(server: str, tiny_store: Path, tmp_path: Path) -> None:
    browser_path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser_path is None:
        pytest.skip("no Chromium on this machine")
    from playwright.sync_api import sync_playwright

    from query import open_cohort

    quiet = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    quiet += ["--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=quiet)
        view = browser.new_page(viewport={"width": 1440, "height": 900})
        errors: list[str] = []
        view.on("pageerror", lambda error: errors.append(str(error)))
        view.goto(server)
        overview = view.locator(".hs-overview img")
        overview.wait_for(timeout=60_000)
        box = overview.bounding_box()
        assert box is not None and box["width"] > 100
        overview.click(position={"x": box["width"] * 0.5, "y": box["height"] * 0.5})
        cards = view.locator(".hs-card")
        cards.first.wait_for(timeout=60_000)
        first = open_cohort(str(tiny_store)).slides["slide_id"][0].as_py()
        names = [name.split(". ", 1)[1] for name in view.locator(".hs-name").all_inner_texts()]
        assert len(names) == 20 and first not in names  # other slides only, by default
        cards.first.click()
        view.wait_for_url("**tile=**", timeout=60_000)
        assert names[0] in view.url
        view.get_by_role("tab", name="From a picture").click()
        from PIL import Image

        Image.new("RGB", (80, 80), (190, 110, 170)).save(tmp_path / "pink.png")
        view.locator("input[type=file]").set_input_files(str(tmp_path / "pink.png"))
        view.get_by_text("the picture's scale is unknown").or_(view.get_by_text("scale is unknown")).first.wait_for(
            timeout=60_000
        )
        assert not errors
        browser.close()
