"""The explorer on a large store: the first page, a click until its gallery is seen, the server's memory over many."""

from __future__ import annotations

import argparse
import io
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from harness import Row, add_options, describe_machine, report
from large_store import clustered, write_store
from PIL import Image

from query import open_cohort
from query.queries import PointQuery
from ui.views.asked import Asked
from ui.views.hits import hit_cards

QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
QUIET += ["--disable-background-networking", "--disable-component-update"]
WARM_CLICKS = 5


def jpeg(width: int, height: int, seed: int) -> bytes:
    """A picture of soft noise: about as many bytes as one of tissue."""
    coarse = np.random.default_rng(seed).integers(90, 255, (height // 8, width // 8, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(out, "JPEG", quality=80)
    return out.getvalue()


def points(seed: int) -> Iterator[tuple[int, int]]:
    """Places of indexed tiles: those of large_store.py fill 50 x 40 squares of 256 px; buttons hide the first."""
    rng = np.random.default_rng(seed)
    while True:
        yield int(rng.integers(4_000, 12_500)), int(rng.integers(4_500, 10_000))


def on_the_server(uri: str, name: str, clicks: int) -> list[Row]:
    """What a click costs the server: the search, its pictures, its cards."""
    cohort = open_cohort(uri)
    numbers = {row["slide_id"]: int(row["slide_no"]) for row in cohort.slides.to_pylist()}
    spent: list[float] = []
    for number, (x0, y0) in enumerate(points(0)):
        begun = time.perf_counter()
        results = cohort.search(PointQuery("slide-00003", x0, y0), k=20, exclude=("slide",))
        hit_cards(results, numbers, Asked())
        if number >= WARM_CLICKS:
            spent.append(time.perf_counter() - begun)
        if len(spent) == clicks:
            break
    detail = f"median of {clicks}, slowest {1e3 * max(spent):.0f} ms; {results.plan.engine}"
    return [Row(f"{name}: a click on the server", 1e3 * statistics.median(spent), "ms", 300, False, detail)]


@contextmanager
def served(uri: str) -> Iterator[tuple[str, subprocess.Popen[str], float]]:
    """A server of its own process; its address, the process, and the seconds until it said the address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-c", "from ui.cli.main import run; run()", "ui", "--store", uri, "--port", str(port)]
    begun = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().split()[-1]
        yield f"{address}/", process, time.perf_counter() - begun
    finally:
        process.terminate()
        process.wait(20)


def resident_mib(process: subprocess.Popen[str]) -> float:
    """Memory of a process."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def in_the_browser(uri: str, name: str, clicks: int, soak: int) -> list[Row]:
    """What a person sees, in headless Chromium; and what so many clicks leave in the server's memory."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        print("no Chromium on this machine: what a person sees is not measured")
        return []
    rows = []
    with served(uri) as (address, process, start_seconds), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=QUIET)
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.set_default_timeout(120_000)
        rows.append(Row(f"{name}: from the command to its address", start_seconds, "s"))
        for words in ("first page of a server just started", "first page, again"):
            begun = time.perf_counter()
            page.goto(f"{address}?slide=slide-00003")
            page.locator(".hs-viewer[data-shown='slide-00003']").wait_for()
            seconds = time.perf_counter() - begun
            rows.append(Row(f"{name}: {words}, until a click is answered", seconds, "s", 3, False))
        box = page.locator(".hs-viewer").bounding_box()
        spent: list[float] = []
        start = 0.0
        begun_soak = time.perf_counter()
        for number, (x0, y0) in enumerate(points(1)):
            spent.append(click(page, box, x0, y0))
            if number + 1 == WARM_CLICKS + clicks:
                seen = spent[WARM_CLICKS:]
                detail = f"median of {clicks}, slowest {1e3 * max(seen):.0f} ms"
                rows.append(
                    Row(f"{name}: click to gallery, as seen", 1e3 * statistics.median(seen), "ms", 1000, False, detail)
                )
            if number + 1 == max(100, WARM_CLICKS + clicks):
                start = resident_mib(process)
            if number + 1 >= max(soak, WARM_CLICKS + clicks):
                break
        if soak > 100:
            grown = resident_mib(process) - start
            detail = f"from {start:,.0f} MiB, in {time.perf_counter() - begun_soak:.0f} s"
            rows.append(Row(f"{name}: growth of the server from click 100 to {soak}", grown, "MiB", 50, False, detail))
        browser.close()
    return rows


def click(page: Any, box: dict[str, float], x0: int, y0: int) -> float:
    """Click on a level-0 place of the slide that is shown whole; seconds until other cards are there."""
    before = page.evaluate(GALLERY)
    # The slide of 40,000 x 30,000 lies in the middle of the viewer, as wide or as high as that.
    scale = min(box["width"] / 40_000, box["height"] / 30_000)
    left = box["x"] + (box["width"] - scale * 40_000) / 2
    top = box["y"] + (box["height"] - scale * 30_000) / 2
    begun = time.perf_counter()
    page.mouse.click(left + scale * x0, top + scale * y0)
    page.wait_for_function(f"before => {{ const now = ({GALLERY})(); return now && now !== before; }}", arg=before)
    return time.perf_counter() - begun


# The parts of the page live in shadow roots.
GALLERY = """() => {
  for (const part of document.querySelectorAll("*")) {
    const gallery = part.shadowRoot && part.shadowRoot.querySelector(".hs-gallery");
    if (gallery) return [...gallery.querySelectorAll(".hs-picture")].map((card) => card.dataset.tileKey).join();
  }
  return "";
}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000])
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--clicks", type=int, default=20)
    parser.add_argument("--soak", type=int, default=0, help="clicks after which the server's memory is looked at")
    add_options(parser)
    asked = parser.parse_args()
    machine, rows = describe_machine(), []
    for count in asked.rows:
        with tempfile.TemporaryDirectory() as folder:
            uri, name = str(Path(folder) / "store"), f"{count:,} x {asked.dim}"
            write_store(uri, clustered(count, asked.dim, 0), overview=jpeg(1024, 768, 0), thumb=jpeg(128, 128, 1))
            rows += on_the_server(uri, name, asked.clicks)
            rows += in_the_browser(uri, name, asked.clicks, asked.soak)
    report("explorer", rows, asked.out, machine)


if __name__ == "__main__":
    main()
