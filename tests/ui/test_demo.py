"""The demo: which slides it takes, which tile it searches from, and the whole of it on toy sizes."""

from __future__ import annotations

import hashlib
import http.server
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from encoder.errors import UsageError
from encoder.progress import SilentReporter
from ui.demo import slides as demo_slides
from ui.demo.choice import typical_row

CONTENT = b"a slide, more or less"


@pytest.fixture
def server() -> Iterator[str]:
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(CONTENT)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/sample.svs"
        running.shutdown()


def test_the_sample_is_kept_only_with_the_right_hash(server: str, tmp_path: Path) -> None:
    target = tmp_path / "sample" / "s.svs"
    with pytest.raises(OSError, match="other bytes"):
        demo_slides.fetch_sample(target, server, "0" * 64, 5)
    assert not target.exists()
    demo_slides.fetch_sample(target, server, hashlib.sha256(CONTENT).hexdigest(), 5)
    assert target.read_bytes() == CONTENT


def test_a_silent_server_is_given_up(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/s.svs"
        with pytest.raises(OSError):
            demo_slides.fetch_sample(tmp_path / "s.svs", url, "0" * 64, 0.3)


def test_without_network_slides_are_drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        url = f"http://127.0.0.1:{gone.getsockname()[1]}/s.svs"
    monkeypatch.setattr(demo_slides, "SAMPLE_URL", url)
    drawn: list[dict] = []

    def draw(folder: Path, **size: int) -> None:
        drawn.append(size)
        folder.mkdir(parents=True)
        (folder / "manifest.csv").write_text("slide_id\n")

    monkeypatch.setattr("indexer.synthetic.draw_cohort", draw)
    chosen = demo_slides.choose_slides(None, tmp_path, SilentReporter())
    assert chosen.synthetic and "synthetic" in chosen.origin
    assert drawn and chosen.manifest == tmp_path / "synthetic" / "manifest.csv"
    demo_slides.choose_slides(None, tmp_path, SilentReporter())
    assert len(drawn) == 1


def test_a_given_folder_must_exist_and_its_manifest_is_used(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere"):
        demo_slides.choose_slides(tmp_path / "nowhere", tmp_path, SilentReporter())
    assert demo_slides.choose_slides(tmp_path, tmp_path, SilentReporter()).manifest is None
    (tmp_path / "manifest.csv").write_text("slide_id\n")
    assert demo_slides.choose_slides(tmp_path, tmp_path, SilentReporter()).manifest == tmp_path / "manifest.csv"


def test_the_query_stands_out_but_is_no_stray_tile() -> None:
    rng = np.random.default_rng(3)
    common = np.tile([1.0, 0.0, 0.0], (70, 1))
    special = np.tile([0.0, 1.0, 0.0], (28, 1))
    stray = np.tile([0.0, 0.0, -1.0], (2, 1))
    vectors = np.concatenate([common, special, stray]) + rng.normal(0, 0.02, (100, 3))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    assert 70 <= typical_row(vectors, np.ones(100, dtype=np.float32)) < 98
    assert typical_row(vectors[:1], np.ones(1, dtype=np.float32)) == 0


def test_the_query_is_full_of_tissue() -> None:
    rng = np.random.default_rng(4)
    vectors = rng.normal(size=(40, 8)).astype(np.float32)
    tissue = np.where(np.arange(40) % 2, 1.0, 0.5).astype(np.float32)
    assert typical_row(vectors, tissue) % 2 == 1


def test_an_earlier_demo_of_other_slides_is_replaced(cohort_folder: Path, tmp_path: Path) -> None:
    from indexer.manifest import discover
    from ui.demo.earlier import start_afresh_for_other_slides

    entries = discover([cohort_folder], cohort_folder / "manifest.csv")
    (tmp_path / "encoder").mkdir()
    (tmp_path / "similar-1.png").write_text("")
    (tmp_path / "notes.txt").write_text("mine")
    start_afresh_for_other_slides(tmp_path, entries, 3.0, SilentReporter())
    assert (tmp_path / "encoder").exists()  # not known to be a demo's
    start_afresh_for_other_slides(tmp_path, entries, 3.0, SilentReporter())
    assert (tmp_path / "similar-1.png").exists()
    start_afresh_for_other_slides(tmp_path, entries[:2], 3.0, SilentReporter())
    assert not (tmp_path / "encoder").exists() and not (tmp_path / "similar-1.png").exists()
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.slow
def test_the_demo_from_slides_to_page(cohort_folder: Path, tmp_path: Path) -> None:
    from ui.demo.steps import run_demo

    outcome = run_demo(cohort_folder, tmp_path, 3.0, SilentReporter())
    assert outcome.exit_code == 0 and not outcome.smoke
    assert len(outcome.montages) == 3 and all(path.stat().st_size > 5000 for path in outcome.montages)
    page = outcome.report.read_text()
    assert page.count("data:image/png") == 3 and page.count("data:image/jpeg") == 3
    # A picture's base64 may spell http by chance, but never a colon.
    assert "http:" not in page and "https:" not in page
    again = run_demo(cohort_folder, tmp_path, 3.0, SilentReporter())
    assert again.exit_code == 0


@pytest.mark.slow
def test_one_small_slide_is_called_a_smoke_run(cohort_folder: Path, tmp_path: Path) -> None:
    from ui.demo.steps import run_demo

    folder = tmp_path / "one"
    folder.mkdir()
    slide = sorted(cohort_folder.glob("*.tif*"))[0]
    (folder / slide.name).symlink_to(slide)
    outcome = run_demo(folder, tmp_path / "out", 2.0, SilentReporter())
    assert outcome.smoke
    assert "smoke run" in outcome.report.read_text()
