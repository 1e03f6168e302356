"""Indexing: slides in, rows out; what a run does from its first check to its report."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from time import perf_counter
from types import FrameType
from typing import Any

from encoder.embed import TileEncoder
from encoder.errors import StoreError
from encoder.progress import Reporter
from indexer.commits import Committer
from indexer.flow import Event, Flow, JobBatch, JobEnd
from indexer.index_request import (
    IndexReport,
    IndexRequest,
    SlideFailure,
    StageTime,
    Target,
    describe,
    make_targets,
)
from indexer.planning import plan_slide
from indexer.recovery import recover
from indexer.registration import RegisteredSlide, check_entries, register
from indexer.run_lock import RunLock
from indexer.slide_job import Checked, FailedSlide, Planned, SlideJob, StillQuarantined
from indexer.store import Store, create_store, open_store
from indexer.work import WorkBook, group_by_grid
from indexer.writing import WriteStage

_BATCH_CPU, _BATCH_ACCELERATOR = 64, 256
_RATE_WINDOW_SECONDS = 10.0


def index(
    store_uri: str, request: IndexRequest, reporter: Reporter, on_commit: Callable[[str], None] | None = None
) -> IndexReport:
    """Bring a store up to date with a request: only what is missing or has changed is done.

    A slide that cannot be indexed goes to quarantine and the others go on. The first Ctrl-C commits the
    slides that are whole and ends the run; a second one ends it at once. What a killed run left
    unfinished is done again by the next.

    Args:
        store_uri: local directory or object-store URI; made where nothing is yet.
        request: slides, encoders and settings.
        reporter: told about progress, from the calling thread.
        on_commit: called with a commit's name after each commit.

    Raises:
        UsageError: the request is wrong; nothing was written.
        StoreError: the place is no store, or another driver is at work on it.
        EncoderError: an encoder does not fit the tiles, or fails as a whole.
        KeyboardInterrupt: the user ended the run.
    """
    targets = make_targets(request)
    store = _open(store_uri, request, on_commit)
    device = ", ".join(sorted({str(encoder.device) for encoder in request.encoders}))
    config = describe(request, targets)
    with RunLock(store, request.command, config, device, request.shard) as run, _Interrupts() as interrupts:
        started = perf_counter()
        undone = recover(store, request.shard, run.run_id)
        if undone:
            reporter.note(f"{undone} slides of an earlier run were not finished; their rows were removed.")
        slides = register(store, request.entries, request.shard)
        book = WorkBook(store, request.cohort_mpp, request.retry)
        write = WriteStage(Committer(store, run, book), run.run_id)
        tally = _Tally(reporter, len(slides), request.encoders)
        readers = request.readers or os.cpu_count() or 1
        flow = Flow(_planned(slides, targets, book, store, request), readers, _batch(request))

        def report() -> IndexReport:
            return tally.report(run.run_id, flow.plan_seconds, write.seconds, readers, perf_counter() - started)

        try:
            reporter.start("index", None, "tiles")
            _drive(flow, write, tally, interrupts, reporter)
            reporter.finish()
            write.flush()
        finally:
            write.close()
        if interrupts.asked:
            _finish(run, "interrupted", report())
            raise KeyboardInterrupt
        final = report()
        _finish(run, "finished", final)
    return final


def _open(store_uri: str, request: IndexRequest, on_commit: Callable[[str], None] | None) -> Store:
    """Open the store, or make it once the request is known to be sound."""
    try:
        existing = open_store(store_uri, read_only=True)
    except StoreError:
        if request.entries is None:
            raise
        existing = None  # `create_store` says so where something else is there
    check_entries(existing, request.entries)
    return create_store(store_uri, on_commit)


def _planned(
    slides: Sequence[RegisteredSlide], targets: Sequence[Target], book: WorkBook, store: Store, request: IndexRequest
) -> Iterator[Planned]:
    groups = group_by_grid(targets)
    for slide in slides:
        yield from plan_slide(slide, groups, book, store, request)


def _drive(flow: Flow, write: WriteStage, tally: _Tally, interrupts: _Interrupts, reporter: Reporter) -> None:
    try:
        with flow:
            for event in flow.events():
                if interrupts.asked:
                    reporter.note(
                        "Interrupted: the slides that are whole are being written; once more ends it at once."
                    )
                    break
                if event is not None:
                    _handle(event, write, tally)
                write.flush_if_old()
    except StoreError:
        raise
    except Exception:
        write.flush()  # slides that are whole are not lost to what went wrong later
        raise


def _handle(event: Event, write: WriteStage, tally: _Tally) -> None:
    match event:
        case SlideJob():
            tally.planned(event)
        case FailedSlide():
            write.fail(event)
            tally.failed(event)
        case StillQuarantined():
            tally.still(event)
        case Checked():
            write.overcome(event.overcome)
            tally.checked(event.slide)
        case JobBatch():
            write.take(event)
            tally.batch(event)
        case JobEnd():
            outcome = write.finish(event.job)
            tally.ended(event.job)
            if isinstance(outcome, FailedSlide):
                tally.failed(outcome)
            else:
                for failure in outcome.failed:
                    tally.failed(failure)
                tally.stored(event.job, outcome.done)


class _Tally:
    """Counts what happens to slides and tiles, and tells the reporter."""

    def __init__(self, reporter: Reporter, slides: int, encoders: Sequence[TileEncoder]) -> None:
        self._reporter = reporter
        self._encoders = [(encoder, encoder.stain_outcomes.copy()) for encoder in encoders]
        self._slides = slides
        self._checked: set[str] = set()
        self._touched: set[str] = set()
        self._running: Counter[str] = Counter()
        self._through = 0
        self._indexed: set[str] = set()
        self._empty: set[str] = set()
        self._failures: dict[tuple[str, str, str], SlideFailure] = {}
        self._tiles = self._bad_tiles = 0
        self._read_seconds = self._embed_seconds = 0.0
        self._reader_tiles: dict[str, int] = {}
        self._recent: deque[tuple[float, int]] = deque([(perf_counter(), 0)])

    def planned(self, job: SlideJob) -> None:
        self._touched.add(job.slide.slide_id)
        self._running[job.slide.slide_id] += 1
        self._reporter.grow(len(job.tiles))
        for warning in job.warnings:
            self._reporter.warn(f"{job.slide.slide_id}: {warning}")
        for name in job.obsolete:
            self._reporter.warn(
                f"{job.slide.slide_id} has changed: its former vectors in {name} are removed; "
                "index it with that encoder again."
            )

    def batch(self, event: JobBatch) -> None:
        batch, path = event.batch, event.job.reader_path
        self._tiles += len(batch.positions)
        self._read_seconds += batch.read_seconds
        self._embed_seconds += batch.embed_seconds
        self._reader_tiles[path] = self._reader_tiles.get(path, 0) + len(batch.positions)
        now = perf_counter()
        self._recent.append((now, self._tiles))
        while len(self._recent) > 2 and now - self._recent[0][0] > _RATE_WINDOW_SECONDS:
            self._recent.popleft()
        then, before = self._recent[0]
        rate = (self._tiles - before) / max(now - then, 1e-9)
        slides = f"{self._through} of {self._slides} slides"
        self._reporter.advance(batch.planned, f"now {rate:.0f} tiles/s, {slides}")

    def checked(self, slide: RegisteredSlide) -> None:
        self._checked.add(slide.slide_id)
        self._through += not self._running[slide.slide_id]

    def ended(self, job: SlideJob) -> None:
        slide_id = job.slide.slide_id
        self._running[slide_id] -= 1
        self._through += slide_id in self._checked and not self._running[slide_id]
        if job.fallbacks:
            self._reader_tiles[job.reader_path] = self._reader_tiles.get(job.reader_path, 0) - job.fallbacks
            self._reader_tiles["openslide"] = self._reader_tiles.get("openslide", 0) + job.fallbacks

    def stored(self, job: SlideJob, done: Sequence[dict[str, Any]]) -> None:
        if done:
            self._bad_tiles += max(row["bad_tiles"] for row in done)
            (self._indexed if any(row["rows"] for row in done) else self._empty).add(job.slide.slide_id)

    def failed(self, failure: FailedSlide) -> None:
        self._reporter.warn(f"{failure.slide.slide_id} is quarantined ({failure.phase}): {failure.message}")
        self._keep(failure.slide.slide_id, failure.phase, failure.message)

    def still(self, failure: StillQuarantined) -> None:
        self._keep(failure.slide.slide_id, failure.phase, failure.message)

    def _keep(self, slide_id: str, phase: str, message: str) -> None:
        self._failures[slide_id, phase, message] = SlideFailure(slide_id, phase, message)

    def report(
        self, run_id: str, plan_seconds: float, write_seconds: float, readers: int, seconds: float
    ) -> IndexReport:
        busy = {
            "plan": (plan_seconds, 1),
            "read": (self._read_seconds, readers),
            "embed": (self._embed_seconds, 1),
            "write": (write_seconds, 1),
        }
        stages = {
            name: StageTime(total, min(1.0, total / threads / max(seconds, 1e-9)))
            for name, (total, threads) in busy.items()
        }
        failed = {failure.slide_id for failure in self._failures.values()}
        return IndexReport(
            run_id=run_id,
            slides=self._slides,
            indexed=len(self._indexed),
            already=len(self._checked - self._touched - failed),
            empty=len(self._empty - self._indexed),
            quarantined=tuple(self._failures.values()),
            tiles=self._tiles,
            bad_tiles=self._bad_tiles,
            seconds=seconds,
            stages=stages,
            limited_by=max(stages, key=lambda name: stages[name].share) if self._tiles else None,
            reader_tiles=self._reader_tiles,
            stain_left=self._stain_left(),
        )

    def _stain_left(self) -> dict[str, dict[str, int]]:
        left = {}
        for encoder, before in self._encoders:
            grown = encoder.stain_outcomes - before
            reasons = {outcome.reason: grown[outcome] for outcome in sorted(grown) if outcome}
            if reasons:
                left[encoder.spec.encoder_id] = reasons
        return left


class _Interrupts:
    """Turns the first Ctrl-C into a wish that is looked at between commits; a second one acts at once."""

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None

    def __enter__(self) -> _Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


def _batch(request: IndexRequest) -> int:
    on_cpu = all(encoder.device.type == "cpu" for encoder in request.encoders)
    return request.batch or (_BATCH_CPU if on_cpu else _BATCH_ACCELERATOR)


def _finish(run: RunLock, status: str, report: IndexReport) -> None:
    counts = {
        "slides": report.slides,
        "indexed": report.indexed,
        "already": report.already,
        "empty": report.empty,
        "quarantined": len({failure.slide_id for failure in report.quarantined}),
        "tiles": report.tiles,
        "bad_tiles": report.bad_tiles,
        "readers": report.reader_tiles,
        "stain_left": report.stain_left,
    }
    stages = {name: asdict(time) for name, time in report.stages.items()}
    run.finish(status, counts, {"seconds": report.seconds, "limited_by": report.limited_by, **stages})
