"""How long `where` takes on a million tiles: new expressions of each kind, and one that was asked before."""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable

import numpy as np
import pyarrow as pa
from harness import Row, add_options, describe_machine, interleave, peak_memory_gib, report

from query.filters import RowFilter

ORGANS = ("liver", "colon", "breast", "lung", "skin")
# Each time another number: what was asked before is remembered.
EXPRESSIONS = {
    "slides: organ = and age >": "organ = 'liver' AND age > {n}",
    "slides: 1 in 10,000": "patient_id IN ('p{i}', 'p5')",
    "slides: slide_no <": "slide_no < {i}",
    "tiles: tissue >": "tissue > {n} / 100",
    "tiles: 1 in 10,000": "tissue > 0.9999 + {n} / 1e7",
    "tiles: all of them": "x0 >= 0 - {i}",
    "both: tissue > 0.9 AND organ =": "tissue > 0.9 + {n} / 1e5 AND organ = 'liver'",
    "both: one slide AND tissue >": "slide_no = {i} AND tissue > 0.9",
    "both: organ = OR tissue >": "organ = 'liver' OR tissue > 0.9 + {n} / 1e5",
}
BUDGETS = {"slides": 3.0, "tiles": 40.0, "both": 40.0}


def cohort(slides: int, tiles_per_slide: int) -> tuple[pa.Table, pa.Table, np.ndarray]:
    """Slides with a few columns of a manifest, their tiles, and each tile's slide."""
    rng = np.random.default_rng(0)
    number = np.arange(slides, dtype=np.int32)
    table = pa.table(
        {
            "slide_id": [f"slide-{n:06d}" for n in number],
            "slide_no": rng.permutation(number),
            "path": [f"/slides/slide-{n:06d}.svs" for n in number],
            "mpp": np.full(slides, 0.5),
            "patient_id": [f"p{n // 2}" for n in number],
            "organ": rng.choice(ORGANS, slides),
            "age": rng.uniform(20, 90, slides),
            "status": ["indexed"] * slides,
        }
    )
    code = np.repeat(number, tiles_per_slide)
    place = np.tile(np.arange(tiles_per_slide, dtype=np.int32) * 256, slides)
    tiles = pa.table(
        {
            "tile_id": np.arange(code.size),
            "slide_no": table["slide_no"].to_numpy()[code],
            "x0": place,
            "y0": place,
            "extent_px0": np.full(code.size, 256, np.int32),
            "tissue": rng.random(code.size, dtype=np.float32),
        }
    )
    return table, tiles, code


def main() -> None:
    """Time new expressions in turn; the first one of the process apart."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    parser.set_defaults(repeats=15)
    parser.add_argument("--slides", type=int, default=20_000)
    parser.add_argument("--tiles-per-slide", type=int, default=50)
    options = parser.parse_args()
    machine = describe_machine()
    slides, tiles, code = cohort(options.slides, options.tiles_per_slide)
    rows = RowFilter(slides, tiles, code)
    numbers = itertools.count(1)

    def ask(expression: str) -> Callable[[], object]:
        def run() -> None:
            i = next(numbers)
            rows.mask(expression.format(i=i, n=i / 100))

        return run

    started = time.perf_counter()
    rows.mask("age > 1")
    first = 1e3 * (time.perf_counter() - started)
    runs = {name: ask(text) for name, text in EXPRESSIONS.items()}
    runs["slides(): organ = and age >"] = lambda: rows.slides(f"organ = 'colon' AND age > {next(numbers) / 100}")
    seconds = interleave(runs, options.repeats)
    rows.mask(again := "tissue > 0.5 AND organ = 'liver'")
    started = time.perf_counter()
    for _ in range(1000):
        rows.mask(again)
    repeated = (time.perf_counter() - started) / 1000
    shown = []
    for name, values in seconds.items():
        budget = BUDGETS[name.split(":")[0].removesuffix("()")]
        detail = f"fastest {1e3 * min(values):.2f} ms"
        shown.append(Row(name, 1e3 * statistics.median(values), "ms", budget, at_least=False, detail=detail))
    shown += [
        Row("one that was asked before", 1e3 * repeated, "ms", 0.1, at_least=False),
        Row("the first of the process", first, "ms", detail="opens DuckDB"),
        Row("peak memory of the process", peak_memory_gib(), "GiB"),
    ]
    print(f"{options.slides:,} slides, {code.size:,} tiles")
    report("filters", shown, options.out, machine)


if __name__ == "__main__":
    main()
