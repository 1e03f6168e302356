"""Exact search in memory against one pass over the same bytes, which no exact search can beat."""

from __future__ import annotations

import argparse
import statistics

import numpy as np
import torch
from harness import (
    Row,
    add_options,
    cores,
    describe_machine,
    interleave,
    median_ratio,
    memory_gib,
    peak_memory_gib,
    report,
)
from numpy.typing import NDArray

from query.engines.resident import ResidentExact

TILES_PER_SLIDE = 1000


def clustered(rows: int, dim: int, seed: int, clusters: int = 3000) -> NDArray[np.float32]:
    """Unit vectors [rows, dim] around centres whose coordinates fall off by a power law, as embeddings' do."""
    rng = np.random.default_rng(seed)
    scale = (np.arange(1, dim + 1) ** -0.5).astype(np.float32)
    centres = rng.standard_normal((clusters, dim), dtype=np.float32) * scale
    matrix = np.empty((rows, dim), np.float32)
    for start in range(0, rows, 50_000):
        part = matrix[start : start + 50_000]
        part[:] = rng.standard_normal(part.shape, dtype=np.float32)
        part *= 0.5 * scale
        part += centres[rng.integers(0, clusters, len(part))]
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return matrix


def measure(rows: int, dim: int, repeats: int) -> list[Row]:
    """Time one query, and a pass over the bytes with all threads, in turn."""
    matrix = clustered(rows, dim, seed=rows)
    number = np.arange(rows, dtype=np.int32)
    place = (number % TILES_PER_SLIDE) * 256
    engine = ResidentExact(matrix, number // TILES_PER_SLIDE, place, place)
    whole = torch.from_numpy(matrix)
    queries = iter(matrix[np.random.default_rng(1).integers(0, rows, 3 * repeats + 9)])
    half = np.zeros(rows, bool)
    half[::2] = True
    seconds = interleave(
        {
            "query": lambda: engine.top(next(queries), 20),
            "pass": lambda: whole.sum(),
            "half": lambda: engine.top(next(queries), 20, allowed=half),
            "three per slide": lambda: engine.top(next(queries), 20, per_slide=3),
        },
        repeats,
    )
    ms = {name: 1e3 * statistics.median(values) for name, values in seconds.items()}
    gib = matrix.nbytes / 2**30
    name = f"{rows:,} x {dim}"
    rate = matrix.nbytes / 1e9 / (ms["pass"] / 1e3)
    detail = f"query {ms['query']:.1f} ms, pass {ms['pass']:.1f} ms ({rate:.0f} GB/s), vectors {gib:.2f} GiB"
    return [
        Row(
            f"{name}: one query / pass",
            median_ratio(seconds["query"], seconds["pass"]),
            "x",
            1.3,
            at_least=False,
            detail=detail,
        ),
        Row(f"{name}: half the rows allowed", ms["half"], "ms"),
        Row(f"{name}: three per slide", ms["three per slide"], "ms"),
    ]


def main() -> None:
    """Measure 200,000 and 1,000,000 vectors."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    parser.set_defaults(repeats=15)
    parser.add_argument("--rows", type=int, nargs="+", default=[200_000, 1_000_000])
    parser.add_argument("--dim", type=int, default=384)
    options = parser.parse_args()
    machine = describe_machine()
    torch.set_num_threads(cores())
    rows: list[Row] = []
    for count in options.rows:
        if count * options.dim * 4 / 2**30 > 0.5 * memory_gib():
            print(f"left out {count:,} rows: they do not fit half of this machine's memory")
            continue
        rows += measure(count, options.dim, options.repeats)
    if not rows:
        raise SystemExit("nothing was measured; give fewer --rows")
    rows.append(Row("peak memory of the process", peak_memory_gib(), "GiB"))
    report("search", rows, options.out, machine)


if __name__ == "__main__":
    main()
