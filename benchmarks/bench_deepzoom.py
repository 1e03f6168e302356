"""Milliseconds per deep-zoom tile, JPEG included, of every level; OpenSlide's own generator in the same run."""

from __future__ import annotations

import argparse
import io
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openslide
from harness import Row, add_options, describe_machine, report
from openslide.deepzoom import DeepZoomGenerator
from PIL import Image

from indexer.manifest import SlideEntry
from indexer.slide import open_slide
from indexer.synthetic import draw_slide
from indexer.zoom import TILE_PX, Zoom

BUDGET_MS = 50.0
QUALITY = 85  # as the explorer's server sends them


def encoded(picture: Image.Image) -> bytes:
    """The tile as it is sent."""
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=QUALITY)
    return stream.getvalue()


def milliseconds(make: Callable[[], bytes]) -> float:
    """Time one tile."""
    started = time.perf_counter()
    make()
    return (time.perf_counter() - started) * 1000


def percentile_95(values: list[float]) -> float:
    """The value that one in twenty passes."""
    return float(np.percentile(values, 95))


def measure(path: Path, most: int) -> list[Row]:
    """Time random tiles of every level of a slide; each tile is read once by both, in turn the first."""
    rows: list[Row] = []
    slowest = 0.0
    with open_slide(SlideEntry(path.stem, path, mpp=0.5)) as slide, openslide.OpenSlide(path) as theirs:
        zoom, generator = Zoom(slide), DeepZoomGenerator(theirs, tile_size=TILE_PX, overlap=0)
        choose = random.Random(1)
        for level in range(zoom.geometry.max_level, -1, -1):
            columns, lines = zoom.geometry.tiles(level)
            places = [(column, line) for column in range(columns) for line in range(lines)]
            ours_ms: list[float] = []
            theirs_ms: list[float] = []
            for turn, (column, line) in enumerate(choose.sample(places, min(most, len(places)))):

                def ours(at: tuple[int, int, int] = (level, column, line)) -> bytes:
                    return encoded(Image.fromarray(zoom.read(*at)))

                def plain(at: tuple[int, int, int] = (level, column, line)) -> bytes:
                    return encoded(generator.get_tile(at[0], at[1:]))

                if turn % 2:
                    theirs_ms.append(milliseconds(plain))
                    ours_ms.append(milliseconds(ours))
                else:
                    ours_ms.append(milliseconds(ours))
                    theirs_ms.append(milliseconds(plain))
            middle = statistics.median(ours_ms)
            slowest = max(slowest, middle)
            detail = (
                f"p95 {percentile_95(ours_ms):.1f} ms; DeepZoomGenerator {statistics.median(theirs_ms):.1f} ms, "
                f"p95 {percentile_95(theirs_ms):.1f} ms; {len(ours_ms)} of {len(places)} tiles"
            )
            rows.append(Row(f"{path.stem}, level {level}", middle, "ms", detail=detail))
    return [Row(f"{path.stem}, median of the slowest level", slowest, "ms", BUDGET_MS, at_least=False), *rows]


def main() -> None:
    """Measure the slides that are named, or a synthetic one."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    parser.add_argument("slides", nargs="*", type=Path, help="slide files; a synthetic one by default")
    parser.add_argument("--side", type=int, default=6144, help="of the synthetic slide, in pixels")
    parser.add_argument("--tiles", type=int, default=60, help="most tiles per level")
    options = parser.parse_args()
    machine = describe_machine()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        slides = options.slides
        if not slides:
            slides = [Path(folder) / "synthetic.tif"]
            draw_slide(slides[0], 1, options.side, options.side)
        for path in slides:
            rows += measure(path, options.tiles)
    report("deepzoom", rows, options.out, machine, quality=QUALITY, tile_px=TILE_PX)


if __name__ == "__main__":
    main()
