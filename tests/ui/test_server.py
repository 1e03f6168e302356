"""The explorer's server: what it gives of a slide, what it refuses, and that it stays small."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.testclient import TestClient
from streamlit.runtime.secrets import secrets_singleton
from streamlit.web.server.starlette.starlette_app_utils import create_signed_value
from websockets.sync.client import connect

from encoder.errors import SlideError, TileError, UsageError
from indexer.manifest import SlideEntry
from indexer.slide import open_slide
from indexer.zoom import Zoom
from tests.ui.serving import free_port
from ui import doctor
from ui.server import open_slides, sign_in, slide_routes, slide_rows, viewer_files
from ui.server.open_slides import OpenSlides
from ui.server.opened import opened_cohort, served_store
from ui.server.serve import make_app, slide_view
from ui.server.slide_routes import SlideRoutes
from ui.server.slide_rows import SlideRows
from ui.server.tile_cache import TileCache

SIDE = 1536  # of the slides in `cohort_folder`


@pytest.fixture
def view(tiny_store: Path) -> Iterator[TestClient]:
    slides = SlideRoutes(str(tiny_store))
    yield TestClient(slide_view(slides))
    slides.close()


@pytest.fixture
def own_store(cohort_folder: Path, tiny_encoder: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A store of one slide that a test may change, and the slide."""
    slide = Path(shutil.copy(cohort_folder / "slide-001.tif", tmp_path / "mine.tif"))
    index_one(tmp_path / "store", slide, tiny_encoder)
    return tmp_path / "store", slide


def index_one(store: Path, slide: Path, encoder: Path) -> None:
    from encoder.progress import SilentReporter
    from encoder.registry import load_encoder
    from indexer.index_request import IndexRequest
    from indexer.pipeline import index

    request = IndexRequest([load_encoder(str(encoder))], entries=[SlideEntry("mine", slide)])
    assert index(str(store), request, SilentReporter()).exit_code == 0


def picture(content: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(content))
    assert image.format == "JPEG"
    return np.asarray(image).astype(int)


def test_the_facts_of_a_slide(view: TestClient) -> None:
    answer = view.get("/slides/1/info.json")
    assert answer.status_code == 200
    assert answer.json() == {
        "slide_id": "slide-002",
        "width0": SIDE,
        "height0": SIDE,
        "mpp": 0.5,
        "tile_px": 512,
        "max_level": 11,
        "bounds_px0": [0, 0, SIDE, SIDE],
        "readable": True,
        "reason": None,
    }
    assert "access-control-allow-origin" not in answer.headers


def test_tiles_and_squares_are_those_of_the_slide(view: TestClient, cohort_folder: Path) -> None:
    with open_slide(SlideEntry("a", cohort_folder / "slide-003.tif")) as slide:
        zoom = Zoom(slide)
        pairs = [
            ("tiles/11/2_1.jpg", zoom.read(11, 2, 1)),
            ("tiles/10/1_0.jpg", zoom.read(10, 1, 0)),
            ("tiles/0/0_0.jpg", zoom.read(0, 0, 0)),
            ("region.jpg?x0=-40&y0=700&side_px0=300&px=100", zoom.read_square(-40, 700, 300, 100)),
            ("region.jpg?x0=40&y0=700&side_px0=300", zoom.read_square(40, 700, 300, 256)),
        ]
    for address, expected in pairs:
        seen = picture(view.get(f"/slides/2/{address}").content)
        assert seen.shape == expected.shape
        assert np.abs(seen - expected).mean() < 4, address


def test_a_browser_keeps_what_its_address_names(view: TestClient, tiny_store: Path) -> None:
    fingerprint = opened_cohort(str(tiny_store)).slides["fingerprint"][0].as_py()
    address = "/slides/0/tiles/11/0_0.jpg"
    first = view.get(f"{address}?v={fingerprint[:12]}")
    assert first.headers["cache-control"] == "private, max-age=86400, immutable"
    assert view.get(address).headers["cache-control"] == "private, no-cache"
    assert view.get(f"{address}?v=00000000").headers["cache-control"] == "private, no-cache"
    again = view.get(address, headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    other = view.get("/slides/0/tiles/11/1_0.jpg", headers={"If-None-Match": first.headers["etag"]})
    assert other.status_code == 200
    head = view.head(address)
    assert head.status_code == 200 and int(head.headers["content-length"]) == len(first.content)


def test_the_stored_overview(view: TestClient, tiny_store: Path) -> None:
    answer = view.get("/slides/0/overview.jpg")
    assert answer.content == opened_cohort(str(tiny_store)).store.thumbnail("slide-001")
    assert view.get("/slides/0/overview.jpg", headers={"If-None-Match": answer.headers["etag"]}).status_code == 304


@pytest.mark.parametrize(
    ("address", "status", "words"),
    [
        ("/slides/3/info.json", 404, "no slide"),
        ("/slides/-1/info.json", 404, "no slide"),
        ("/slides/slide-001/info.json", 404, "whole number"),
        ("/slides/0/tiles/12/0_0.jpg", 404, "zoom level 12"),
        ("/slides/0/tiles/11/3_0.jpg", 404, "3 x 3"),
        ("/slides/0/tiles/11/0_-1.jpg", 404, "3 x 3"),
        ("/slides/0/tiles/" + "9" * 5000 + "/0_0.jpg", 404, "ten digits"),
        ("/slides/0/tiles/\u0661\u0661/0_0.jpg", 404, "ten digits"),
        ("/slides/0/tiles/11/0.jpg", 404, "nothing here"),
        ("/slides/0/region.jpg?x0=0&y0=0", 400, "side_px0 is missing"),
        ("/slides/0/region.jpg?x0=0&y0=0&side_px0=100&px=513", 400, "1 to 512"),
        ("/slides/0/region.jpg?x0=0&y0=0&side_px0=100&px=0", 400, "1 to 512"),
        ("/slides/0/region.jpg?x0=1536&y0=0&side_px0=100", 400, "no part"),
        ("/slides/0/region.jpg?x0=0&y0=0&side_px0=9999999999", 400, "no part"),
        ("/slides/0/region.jpg?x0=1.5&y0=0&side_px0=100", 400, "whole number"),
        ("/slides/0/region.jpg?x0=nan&y0=0&side_px0=100", 400, "whole number"),
        ("/slides/0/../../etc/passwd", 404, "nothing here"),
        ("/assets/openseadragon/%2e%2e/%2e%2e/package.json", 404, "nothing here"),
        ("/assets/openseadragon/..%2f..%2fpackage.json", 404, "nothing here"),
        ("/assets/", 404, "nothing here"),
    ],
)
def test_what_is_not_there_is_one_sentence(view: TestClient, address: str, status: int, words: str) -> None:
    answer = view.get(address)
    assert answer.status_code == status
    assert list(answer.json()) == ["error"] and words in answer.json()["error"]
    assert "/" not in answer.json()["error"]  # no path of the server's


def test_only_reading_is_answered(view: TestClient) -> None:
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH"):
        answer = view.request(method, "/slides/0/info.json", headers={"Origin": "http://elsewhere"})
        assert answer.status_code == 405 and "GET" in answer.json()["error"]
        assert "access-control-allow-origin" not in answer.headers


def test_a_failure_leaves_no_traceback_with_the_client(
    view: TestClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr(Zoom, "read", broken)
    answer = view.get("/slides/0/tiles/11/0_1.jpg")
    assert answer.status_code == 500
    assert answer.json() == {"error": "the server failed here; its log says why."}
    assert "a secret" in caplog.text


def test_openseadragon_is_served_and_nothing_beside_it(view: TestClient) -> None:
    if viewer_files.openseadragon_folder() is None:
        pytest.skip("OpenSeadragon is not installed")
    answer = view.get("/assets/openseadragon/openseadragon.min.js")
    assert answer.status_code == 200 and "javascript" in answer.headers["content-type"]
    assert f"openseadragon {viewer_files.openseadragon_version()}" in answer.text[:400].lower()
    assert view.get("/assets/openseadragon/images/home_rest.png").status_code == 200
    assert view.get("/assets/openseadragon/package.json").status_code == 404


def test_a_slide_that_goes_changes_and_comes_back(
    own_store: tuple[Path, Path], cohort_folder: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (open_slides, slide_rows):
        monkeypatch.setattr(module, "_LOOK_AGAIN_SECONDS", 0.0)
    store, slide = own_store
    slides = SlideRoutes(str(store))
    view = TestClient(slide_view(slides))
    tile = "/slides/0/tiles/11/1_1.jpg"
    first = view.get(tile)
    assert first.status_code == 200

    away = slide.rename(slide.with_name("away.tif"))
    answer = view.get(tile)
    assert answer.status_code == 404 and "mine.tif is no longer there" in answer.json()["error"]
    facts = view.get("/slides/0/info.json").json()
    assert (facts["readable"], facts["width0"], facts["max_level"]) == (False, SIDE, 11)
    assert "mine.tif" in facts["reason"] and str(slide.parent) not in facts["reason"]
    assert view.get("/slides/0/overview.jpg").status_code == 200

    shutil.copy(cohort_folder / "slide-002.tif", slide)
    answer = view.get(tile)
    assert answer.status_code == 404 and "not the file that was indexed" in answer.json()["error"]
    index_one(store, slide, tiny_encoder)  # now it is
    second = view.get(tile)
    assert second.status_code == 200 and second.headers["etag"] != first.headers["etag"]
    assert np.abs(picture(second.content) - picture(first.content)).mean() > 2

    slide.write_bytes(b"II*\0 no slide")
    assert "not the file" in view.get(tile).json()["error"] or "mine.tif" in view.get(tile).json()["error"]
    away.rename(slide)
    index_one(store, slide, tiny_encoder)
    assert view.get(tile).content == first.content
    slides.close()


def test_a_slide_in_use_is_closed_by_its_last_reader(tiny_store: Path) -> None:
    rows = SlideRows(str(tiny_store))
    a, b, c = (rows.get(number) for number in range(3))
    assert a is not None and b is not None and c is not None
    kept = OpenSlides(rows, most=2)
    with kept.use(a) as (slide_a, _, _):
        with kept.use(b) as (slide_b, _, _), kept.use(a) as (again, _, _):
            assert again is slide_a
        with kept.use(c):
            pass
        with pytest.raises(TileError, match="closed"):
            slide_b.read_region(0, 0, 0, 8, 8)  # used by nobody, and not for longest
        with kept.use(b), kept.use(c):
            pass
        assert slide_a.read_region(0, 0, 0, 8, 8).shape == (8, 8, 3)
        kept.close()
        assert slide_a.read_region(0, 0, 0, 8, 8).shape == (8, 8, 3)
    with pytest.raises(TileError, match="closed"):
        slide_a.read_region(0, 0, 0, 8, 8)


def test_a_missing_file_is_not_looked_for_at_every_request(
    own_store: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, slide = own_store
    slide.unlink()
    rows = SlideRows(str(store))
    row = rows.get(0)
    assert row is not None
    kept = OpenSlides(rows)
    looks: list[Path] = []
    look = Path.is_file
    monkeypatch.setattr(Path, "is_file", lambda path: looks.append(path) or look(path))
    for _ in range(20):
        with pytest.raises(SlideError, match="no longer there"), kept.use(row):
            pass
    assert looks.count(slide) == 1


def test_the_tile_cache_forgets_what_was_not_used_for_longest() -> None:
    cache = TileCache(100)
    for name in "abc":
        cache.put(name, b"x" * 30)
    assert cache.get("a") is not None
    cache.put("d", b"x" * 30)
    assert cache.get("b") is None and cache.get("a") is not None and cache.held_bytes == 90
    cache.put("a", b"x" * 40)
    assert cache.held_bytes == 100
    cache.put("big", b"x" * 101)
    assert cache.held_bytes == 0 and cache.get("big") is None


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@contextmanager
def serving(app: Starlette) -> Iterator[str]:
    """The slide view on a port of its own, in this process, whose memory can then be looked at."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(20)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_many_requests_by_many_threads_leave_memory_flat(
    tiny_store: Path, cohort_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slide_routes, "MOST_CACHED_BYTES", 200_000)  # every tile is read again and again
    monkeypatch.setattr(open_slides.OpenSlides.__init__, "__defaults__", (2,))  # and slides are opened and closed
    slides = SlideRoutes(str(tiny_store))
    choose = random.Random(3)
    numbers, levels, places = range(3), range(9, 12), range(3)
    asked = [tuple(map(choose.choice, (numbers, levels, places, places))) for _ in range(600)]

    with serving(slide_view(slides)) as here, ThreadPoolExecutor(16) as pool:

        def read(place: tuple[int, ...]) -> int:
            number, level, column, row = place
            status, _, content = ask(f"{here}/slides/{number}/tiles/{level}/{column}_{row}.jpg")
            inside = max(column, row) * 512 < SIDE >> (11 - level)
            assert status == (200 if inside else 404), content
            return len(content)

        first = list(pool.map(read, asked[:200]))
        before = resident_mb()
        rest = list(pool.map(read, asked[200:]))
        growth = resident_mb() - before
    sizes: dict[Any, int] = {}
    for place, size in zip(asked, first + rest, strict=True):
        assert sizes.setdefault(place, size) == size  # the same tile, whoever asks and whenever
    assert growth < 40, growth
    slides.close()


def test_what_waits_is_refused_when_the_server_leaves(tiny_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slides = SlideRoutes(str(tiny_store))
    begun, go_on = threading.Event(), threading.Event()
    read = Zoom.read

    def slow(self: Zoom, *at: int) -> Any:
        begun.set()
        assert go_on.wait(20)
        return read(self, *at)

    monkeypatch.setattr(Zoom, "read", slow)
    monkeypatch.setattr(slides, "_decoding", threading.BoundedSemaphore(1))
    with serving(slide_view(slides)) as here, ThreadPoolExecutor(4) as pool:
        running = pool.submit(ask, f"{here}/slides/0/tiles/11/0_0.jpg")
        assert begun.wait(20)
        waiting = [pool.submit(ask, f"{here}/slides/0/tiles/11/{column}_1.jpg") for column in range(3)]
        while slides._turns.borrowed_tokens < 4:
            time.sleep(0.01)
        slides.leave()
        go_on.set()
        assert running.result()[0] == 200
        assert [answer.result()[0] for answer in waiting] == [503] * 3
    slides.close()


def test_one_cohort_for_all_threads(store_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Barrier(8)

    def ask(_: int) -> object:
        gate.wait()
        return opened_cohort(str(store_copy))

    with ThreadPoolExecutor(8) as pool:
        assert len({id(cohort) for cohort in pool.map(ask, range(8))}) == 1
    monkeypatch.delenv("HISTOSEEK_STORE", raising=False)
    assert served_store() is None
    monkeypatch.setenv("HISTOSEEK_STORE", str(store_copy))
    assert served_store() == str(store_copy)


@pytest.fixture
def secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Writes Streamlit's secrets for this test."""
    (tmp_path / "run" / ".streamlit").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "run")

    def write(text: str) -> None:
        (tmp_path / "run" / ".streamlit" / "secrets.toml").write_text(text)
        forget()

    def forget() -> None:
        secrets_singleton._reset()
        sign_in.sign_in_needed.cache_clear()

    forget()
    yield write
    forget()


AUTH = '[auth]\nredirect_uri = "https://slides.example/oauth2callback"\ncookie_secret = "of these tests"\n'


def cookie(secret: str = "of these tests", **changes: object) -> dict[str, str]:
    identity = {"origin": "https://slides.example", "is_logged_in": True, "email": "a@b.example"} | changes
    return {"_streamlit_user": create_signed_value(secret, "_streamlit_user", json.dumps(identity)).decode()}


def test_a_configured_sign_in_guards_the_slides(
    view: TestClient, secrets: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets(AUTH)
    monkeypatch.setattr(sign_in, "is_authlib_installed", lambda: True)
    assert sign_in.sign_in_host() == ["slides.example"]
    for address in ("/slides/0/info.json", "/slides/0/tiles/11/0_0.jpg", "/slides/0/overview.jpg"):
        assert view.get(address).status_code == 401
        assert "sign in" in view.get(address).json()["error"]
        good = "; ".join(f"{name}={value}" for name, value in cookie().items())
        assert view.get(address, headers={"Cookie": good}).status_code == 200
        for bad in (cookie("of others"), cookie(origin="https://elsewhere"), cookie(is_logged_in=False), {}):
            text = "; ".join(f"{name}={value}" for name, value in bad.items())
            assert view.get(address, headers={"Cookie": text}).status_code == 401
        foreign = "_streamlit_user=\u00e9\u00e8".encode("latin-1")
        assert view.get(address, headers={b"Cookie": foreign}).status_code == 401
    # Secrets that are damaged later do not open the door.
    Path(".streamlit/secrets.toml").write_text("[auth")
    secrets_singleton._reset()
    assert view.get("/slides/0/info.json").status_code == 401


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[auth", "cannot be read"),
        ("[auth]\n", "redirect_uri"),
        ('[auth]\nredirect_uri = "https://slides.example/oauth2callback"\n', "cookie_secret"),
        (AUTH, "Authlib"),
    ],
)
def test_a_sign_in_that_cannot_work_is_said_at_the_start(
    tiny_store: Path, secrets: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, text: str, words: str
) -> None:
    secrets(text)
    monkeypatch.setattr(sign_in, "is_authlib_installed", lambda: False)
    with pytest.raises(UsageError, match=words):
        make_app(str(tiny_store))


def test_a_taken_port_and_a_wrong_address_are_one_sentence(histoseek: Callable, tiny_store: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        outcome = histoseek("ui", "--store", tiny_store, "--port", port)
    assert outcome.code == 2 and f"port {port} is taken" in outcome.err and "--port" in outcome.err
    outcome = histoseek("ui", "--store", tiny_store, "--port", port, "--address", "300.1.2.3")
    assert outcome.code == 2 and "300.1.2.3" in outcome.err and "Traceback" not in outcome.err


def test_the_command_says_where_it_is_and_what_is_missing(
    histoseek: Callable, tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[str] = []
    monkeypatch.setattr("ui.server.serve.serve", lambda store, listener: served.append(store))
    port = free_port()
    outcome = histoseek("ui", "--store", tiny_store, "--port", port)
    assert (outcome.code, outcome.out) == (0, f"explorer: http://127.0.0.1:{port}\n")
    assert served == [str(tiny_store)]
    monkeypatch.setattr(viewer_files, "_PACKAGE", tmp_path / "absent")
    outcome = histoseek("ui", "--store", tiny_store, "--port", port, "--address", "0.0.0.0")
    assert "anybody" in outcome.out and "docs/sharing.md" in outcome.out
    assert "OpenSeadragon" in outcome.err and "make viewer" in outcome.err
    finding = doctor._viewer()
    assert (finding.verdict, finding.subject) == ("WARN", "slide viewer") and "make viewer" in finding.fix


def ask(address: str, **headers: str) -> tuple[int, str, bytes]:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=60) as answer:
            return answer.status, answer.headers["content-type"], answer.read()
    except urllib.error.HTTPError as refused:
        return refused.code, refused.headers["content-type"], refused.read()


def shake_hands(port: int, host: str) -> int:
    """Ask for the page's websocket under a host name; the status of the answer."""
    with socket.create_connection(("127.0.0.1", port), 20) as link:
        lines = ["GET /_stcore/stream HTTP/1.1", f"Host: {host}", "Upgrade: websocket", "Connection: Upgrade"]
        lines += ["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13", "", ""]
        link.sendall("\r\n".join(lines).encode())
        return int(link.recv(100).split()[1])


def test_one_process_serves_pages_and_slides(tiny_store: Path, tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-c", "from ui.cli.main import run; run()", "ui", "--store", str(tiny_store)]
    running = subprocess.Popen(
        [*command, "--port", str(port)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    try:
        assert running.stdout is not None and running.stderr is not None
        assert running.stdout.readline() == f"explorer: http://127.0.0.1:{port}\n"
        here = f"http://127.0.0.1:{port}"
        status, kind, page = ask(f"{here}/")  # waits until the server is ready
        assert (status, kind) == (200, "text/html; charset=utf-8") and b"<title>" in page
        assert ask(f"{here}/hs/slides/0/tiles/11/1_1.jpg")[:2] == (200, "image/jpeg")
        assert ask(f"{here}/hs/nothing")[0] == 404
        for name in ("localhost", f"localhost:{port}", f"[::1]:{port}"):
            assert ask(f"{here}/hs/slides/0/info.json", Host=name)[0] == 200
        for address in (f"{here}/", f"{here}/hs/slides/0/info.json"):
            assert ask(address, Host="rebound.example")[0] == 400

        stream = f"ws://127.0.0.1:{port}/_stcore/stream"
        assert shake_hands(port, "rebound.example") == 403
        assert shake_hands(port, f"127.0.0.1:{port}") == 101
        with connect(stream, subprotocols=["streamlit"], origin=here, max_size=None) as page_open:  # type: ignore
            assert page_open.subprotocol == "streamlit"
            running.send_signal(signal.SIGINT)
            started = time.monotonic()
            assert running.wait(20) == 0
            assert time.monotonic() - started < 8
        assert running.stdout.read() == "" and running.stderr.read() == ""
    finally:
        running.kill()
        running.wait(20)
