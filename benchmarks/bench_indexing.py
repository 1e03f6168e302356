"""The rate of `index` from end to end against what its stages, each run alone, would allow on these cores."""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from harness import Row, Stopwatch, add_options, cores, describe_machine, peak_memory_gib, report

from encoder.progress import SilentReporter
from encoder.registry import load_encoder
from indexer.commits import Committer
from indexer.embedding import EmbeddedBatch, embed_batch
from indexer.index_request import IndexReport, IndexRequest, make_targets
from indexer.manifest import SlideEntry, discover
from indexer.pipeline import index
from indexer.planning import plan_slide
from indexer.reading import read_chunk
from indexer.registration import register
from indexer.slide_job import SlideJob
from indexer.slide_rows import FinishedSlide, SlideRows
from indexer.store import create_store
from indexer.synthetic import draw_cohort
from indexer.work import WorkBook, group_by_grid

CHUNK = 16  # tiles per reading task
PER_CALL = 4  # chunks per embedding call


def stages_alone(uri: str, request: IndexRequest) -> tuple[dict[str, float], int]:
    """Run one stage after the other, slide by slide.

    Returns:
        core-seconds per stage, which is the CPU time of all its threads; tiles.
    """
    spent = dict.fromkeys(("plan", "read", "embed", "write"), 0.0)
    targets, store = make_targets(request), create_store(uri)
    slides = register(store, request.entries, None)
    book = WorkBook(store, None, False)
    finished, tiles = [], 0
    # On one thread: threads that wait for each other spin, and what they spin away is no work.
    torch.set_num_threads(1)
    with ThreadPoolExecutor(cores()) as pool:
        for slide in slides:
            with charged(spent, "plan"):
                planned = list(plan_slide(slide, group_by_grid(targets), book, store, request))
            for job in (item for item in planned if isinstance(item, SlideJob)):
                tiles += len(job.tiles)
                with charged(spent, "read"):
                    chunks = list(pool.map(partial(read_chunk, job), parts_of(job)))
                with charged(spent, "embed"):
                    batches = [embed_batch(job, chunks[at : at + PER_CALL]) for at in range(0, len(chunks), PER_CALL)]
                with charged(spent, "write"):
                    finished.append(rows_of(job, batches))
                job.close()
    torch.set_num_threads(cores())
    with charged(spent, "write"):
        Committer(store, "stages", book).commit(finished, [])
    return spent, tiles


@contextmanager
def charged(spent: dict[str, float], stage: str) -> Iterator[None]:
    """Charge the CPU time of a block to a stage."""
    watch = Stopwatch()
    yield
    spent[stage] += watch.core_seconds


def rows_of(job: SlideJob, batches: Sequence[EmbeddedBatch]) -> FinishedSlide:
    """Collect the rows of a slide, as the write stage does."""
    rows = SlideRows(job)
    for batch in batches:
        rows.add(batch)
    outcome = rows.finish("stages")
    if not isinstance(outcome, FinishedSlide):
        raise SystemExit(f"{job.slide.slide_id} cannot be indexed: {outcome.message}")
    return outcome


def parts_of(job: SlideJob) -> list[np.ndarray]:
    """Positions of the tiles, a few per reading task."""
    return np.array_split(np.arange(len(job.tiles)), range(CHUNK, len(job.tiles), CHUNK))


def measure(entries: Sequence[SlideEntry], name: str, mpp: float, tile_px: int | None, repeats: int) -> Row:
    """Compare both with one encoder, in turn, each on a fresh store."""
    encoder = load_encoder(name, "cpu")
    request = IndexRequest(encoders=[encoder], entries=entries, mpp=mpp, tile_px=tile_px)
    ratios, rates, frees, alone, last = [], [], [], [], None
    for turn in range(repeats + 1):
        with tempfile.TemporaryDirectory() as folder:
            core_seconds, tiles = stages_alone(str(Path(folder) / "alone"), request)
            watch = Stopwatch()
            last = index(str(Path(folder) / "whole"), request, SilentReporter())
            seconds, free = watch.seconds, watch.free_cores
        if last.tiles != tiles or last.exit_code:
            raise SystemExit(f"{name}: index embedded {last.tiles} of {tiles} tiles")
        if turn:  # the first round warms up
            # What other programs took was not there to be used.
            ratios.append((tiles / seconds) / (free * tiles / sum(core_seconds.values())))
            frees.append(free)
            rates.append(tiles / seconds)
            alone.append({stage: 1e3 * value / tiles for stage, value in core_seconds.items()})
    middle = {stage: statistics.median(turn[stage] for turn in alone) for stage in alone[0]}
    detail = (
        f"{statistics.median(rates):.0f} tiles/s over {tiles} tiles with {statistics.median(frees):.2f} cores free; "
    )
    detail += "core-ms per tile: "
    detail += ", ".join(f"{stage} {value:.2f}" for stage, value in middle.items()) + _limits(last)
    return Row(
        f"{name}, {tile_px or encoder.spec.tile_px} px at {mpp:g} um/px",
        statistics.median(ratios),
        "x",
        0.9,
        detail=detail,
    )


def _limits(last: IndexReport | None) -> str:
    if last is None or last.limited_by is None:
        return ""
    paths = ", ".join(f"{count} by {path}" for path, count in last.reader_tiles.items())
    return f"; limited by {last.limited_by}; {paths}"


def main() -> None:
    """Index a synthetic cohort with a network, which embedding limits, and with one that costs little."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    parser.set_defaults(repeats=3)
    parser.add_argument("--slides", type=Path, help="folder of slides in place of the synthetic ones")
    parser.add_argument("--count", type=int, default=3, help="synthetic slides")
    parser.add_argument("--side", type=int, default=4096, help="of a synthetic slide, in pixels")
    parser.add_argument("--encoder", default="random:resnet18@0")
    options = parser.parse_args()
    machine = describe_machine()
    torch.set_num_threads(cores())
    with tempfile.TemporaryDirectory() as folder:
        if options.slides is None:
            draw_cohort(Path(folder), options.count, 1, width0=options.side, height0=options.side)
        manifest = (options.slides or Path(folder)) / "manifest.csv"
        entries = discover([options.slides or Path(folder)], manifest if manifest.exists() else None)
        rows = [
            measure(entries, options.encoder, 0.5, None, options.repeats),
            measure(entries, "colour", 0.5, None, options.repeats),
        ]
    rows.append(Row("peak memory, stages alone and index", peak_memory_gib(), "GiB", 3.0, at_least=False))
    report("indexing", rows, options.out, machine)


if __name__ == "__main__":
    main()
