"""How long maps of a million tiles take: to compute, to read back, to draw, to pick from with a lasso."""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from harness import Row, add_options, describe_machine, peak_memory_gib, report
from large_store import clustered, write_store

from query.cohort import open_cohort
from query.projection.colouring import colour_by
from query.projection.drawing import draw_map, png_of
from query.projection.lasso import inside
from query.projection.models import SAMPLE_ROWS, SEED, NeighbourModel, estimated_seconds
from query.projection.sample import spread_sample
from query.projection.window import Window, whole_window

WIDTH_PX, HEIGHT_PX = 760, 600
CORNERS = 100
PLACED_ROWS = 20_000


def main() -> None:
    """Write a store, map it, and do with the map what the explorer does."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--no-umap", action="store_true", help="leave out UMAP, which takes a minute")
    options = parser.parse_args()
    machine = describe_machine()
    with tempfile.TemporaryDirectory() as folder:
        uri = str(Path(folder) / "store")
        write_store(uri, clustered(options.rows, options.dim, seed=0))
        rows = measure(uri, options.repeats) + ([] if options.no_umap else measure_umap(uri))
    report("map", rows, options.out, machine, peak_memory_gib=peak_memory_gib())


def measure(uri: str, repeats: int) -> list[Row]:
    """The plane: computing it over reading the vectors; then what a page does with it."""
    cohort = open_cohort(uri)
    room = cohort.room(cohort.choose())
    count = len(room.rows)
    passed, _ = timed(lambda: sum(float(block[0, 0]) for block in room.vectors.blocks()))
    passed, _ = timed(lambda: sum(float(block[0, 0]) for block in room.vectors.blocks()))
    computed, tile_map = timed(cohort.map)
    if not tile_map.stored:
        sys.exit(f"the map was not stored: {tile_map.notes}")
    name = f"{count:,} tiles"
    size = (cohort.store.lance.bytes_on_disk("projections") or 0) / 2**20
    reads = []
    for _ in range(repeats):
        fresh = open_cohort(uri)
        fresh.room(fresh.choose())
        seconds, again = timed(fresh.map)
        reads.append(seconds)
        if not np.array_equal(again.xy, tile_map.xy):
            sys.exit("the map was not read as it was written")
    window = whole_window(tile_map.extent, WIDTH_PX, HEIGHT_PX)
    middle_x, middle_y = (window.left + window.right) / 2, (window.bottom + window.top) / 2
    reach = window.width / 400
    near = Window(middle_x - reach, middle_y - reach, middle_x + reach, middle_y + reach)
    organ, tissue = (colour_by(cohort.store, tile_map, column) for column in ("organ", "tissue"))
    angle = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
    radius = (0.25 + 0.05 * np.sin(7 * angle))[:, None]
    line = (middle_x, middle_y) + window.width * radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    chosen = inside(tile_map.xy, line)
    size_px = f"{WIDTH_PX} x {HEIGHT_PX} px"
    drawn = draw_map(tile_map, window, WIDTH_PX, HEIGHT_PX, organ)
    picture = f"{len(png_of(drawn)) / 2**10:.0f} KiB"

    def draw(where: Window, *how: Any) -> Callable[[], Any]:
        return lambda: draw_map(tile_map, where, WIDTH_PX, HEIGHT_PX, *how)

    quick: list[tuple[str, Callable[[], Any], float | None, str]] = [
        (f"drawing it, {size_px}", draw(window), None, ""),
        ("the same, coloured by a class", draw(window, organ), None, ""),
        ("the same, coloured by a number", draw(window, tissue), None, ""),
        ("the same, with a selection", draw(window, organ, chosen), None, f"{int(chosen.sum()):,} tiles selected"),
        ("drawing a few tiles as discs", draw(near, organ), None, "a hundredth of its width"),
        ("its PNG", lambda: png_of(drawn), None, picture),
        (f"lasso of {CORNERS} corners", lambda: inside(tile_map.xy, line), 1.0, f"{int(chosen.sum()):,} tiles inside"),
    ]
    found = [
        Row(
            f"plane of {name} over two passes over the table", computed / (2 * passed), "x", detail=f"{computed:.1f} s"
        ),
        Row("reading it back", statistics.median(reads), "s", 1.0, at_least=False, detail=f"{size:.0f} MiB on disk"),
    ]
    for what, act, budget, detail in quick:
        seconds = statistics.median(timed(act)[0] for _ in range(repeats))
        found.append(Row(what, seconds, "s", budget, at_least=False, detail=detail))
    return found


def measure_umap(uri: str) -> list[Row]:
    """UMAP's own work on a sample, and what placing further tiles takes; beside what people are told beforehand."""
    cohort = open_cohort(uri, device="cpu")
    room = cohort.room(cohort.choose())
    rows = room.rows
    sample = spread_sample(rows.slide_no, SAMPLE_ROWS, SEED)
    vectors = room.take(sample)
    fitted, model = timed(lambda: NeighbourModel.fit(vectors, "cpu"))
    others = room.take(np.random.default_rng(0).choice(len(rows), min(PLACED_ROWS, len(rows)), replace=False))
    placed, _ = timed(lambda: model.place(others))
    per_tile = placed / len(others)
    told = estimated_seconds("umap", len(rows), rows.dim)
    return [
        Row(f"UMAP of {sample.size:,} tiles, first use", fitted, "s", detail="with loading and compiling it"),
        Row("placing a tile among them", 1e6 * per_tile, "us", detail=f"{per_tile * len(rows):.0f} s for all"),
        Row(
            "what people are told it takes, over that",
            told / (fitted + per_tile * len(rows)),
            "x",
            detail=f"{told:.0f} s",
        ),
    ]


def timed(act: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of a call, and what it gave."""
    started = time.perf_counter()
    given = act()
    return time.perf_counter() - started, given


if __name__ == "__main__":
    main()
