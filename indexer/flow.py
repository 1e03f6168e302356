"""Threads joined by bounded queues: plan, read and embed run beside the thread that writes."""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter
from types import TracebackType
from typing import TypeVar

import numpy as np

from indexer.embedding import EmbeddedBatch, embed_batch
from indexer.reading import ReadChunk, read_chunk
from indexer.slide_job import Planned, SlideJob

# One slide is embedded, one read, one waits, one is planned: the device never waits for a slide to open.
_OPEN_SLIDES = 4
_PIXEL_BYTES = 256 << 20
_BATCH_BYTES = 64 << 20
_CHUNK_TILES = 16
_EVENTS_AHEAD = 8
_POLL_SECONDS = 0.2

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class JobBatch:
    """A batch of a job that was embedded."""

    job: SlideJob
    batch: EmbeddedBatch


@dataclass(frozen=True)
class JobEnd:
    """All batches of a job have been handed out."""

    job: SlideJob


Event = Planned | JobBatch | JobEnd


class _Stopped(Exception):  # noqa: N818 - ends a thread, is no error
    """The run is being ended."""


@dataclass(frozen=True)
class _Batch:
    job: SlideJob
    chunks: tuple[Future[ReadChunk], ...]
    pixel_bytes: int


class Flow:
    """Runs the stages in threads and hands what they make to the thread that iterates `events`.

    Args:
        planned: yields what the plan stage makes; runs in a thread of its own.
        readers: threads that read tiles.
        batch: tiles per embedding call, at most; a batch never mixes slides.
    """

    def __init__(self, planned: Iterator[Planned], readers: int, batch: int) -> None:
        self.plan_seconds = 0.0
        self._planned = planned
        self._batch = batch
        self._stop = threading.Event()
        self._errors: list[BaseException] = []
        self._slots = threading.Semaphore(_OPEN_SLIDES)
        self._pixels = _ByteBudget(_PIXEL_BYTES, self._stop)
        self._jobs: queue.Queue[Planned | None] = queue.Queue()
        self._batches: queue.Queue[_Batch | JobEnd | None] = queue.Queue()
        self._events: queue.Queue[Event | None] = queue.Queue(_EVENTS_AHEAD)
        self._pool = ThreadPoolExecutor(readers, thread_name_prefix="read")
        self._threads = [
            threading.Thread(target=self._guarded, args=(stage,), name=name, daemon=True)
            for name, stage in (("plan", self._plan), ("feed", self._feed), ("embed", self._embed))
        ]
        self._open: list[SlideJob] = []

    def __enter__(self) -> Flow:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
        for thread in self._threads:
            thread.join()
        for job in self._open:
            job.close()

    def events(self) -> Iterator[Event | None]:
        """What the stages make, in the order of the slides; None now and then while nothing comes.

        Raises:
            BaseException: whatever ended one of the threads, once what was made before it is handed out.
        """
        while True:
            if self._errors and self._events.empty():
                raise self._errors[0]
            try:
                event = self._events.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                yield None
                continue
            if event is not None:
                yield event
            elif not self._errors:
                return

    def _plan(self) -> None:
        while True:
            self._wait(lambda: self._slots.acquire(timeout=_POLL_SECONDS))
            started = perf_counter()
            item = next(self._planned, None)
            self.plan_seconds += perf_counter() - started
            if isinstance(item, SlideJob):
                self._open.append(item)
            else:
                self._slots.release()
            self._jobs.put(item)
            if item is None:
                return

    def _feed(self) -> None:
        while (item := self._get(self._jobs)) is not None:
            self._emit(item)
            if isinstance(item, SlideJob):
                for batch in self._submitted(item):
                    self._batches.put(batch)
                self._batches.put(JobEnd(item))
        self._batches.put(None)

    def _submitted(self, job: SlideJob) -> Iterator[_Batch]:
        tile_bytes = 3 * job.grid.tile_px**2
        size, chunk = batch_sizes(self._batch, tile_bytes)
        for start in range(0, len(job.tiles), size):
            positions = np.arange(start, min(start + size, len(job.tiles)))
            pixel_bytes = len(positions) * tile_bytes
            self._pixels.take(pixel_bytes)
            parts = [positions[at : at + chunk] for at in range(0, len(positions), chunk)]
            try:
                yield _Batch(job, tuple(self._pool.submit(read_chunk, job, part) for part in parts), pixel_bytes)
            except RuntimeError as error:  # the pool was shut down
                raise _Stopped from error

    def _embed(self) -> None:
        while self._embed_next():  # a call of its own, so that the pixels are let go before the next wait
            pass
        self._emit(None)

    def _embed_next(self) -> bool:
        item = self._get(self._batches)
        if isinstance(item, JobEnd):
            self._open.remove(item.job)
            item.job.close()
            self._slots.release()
            self._emit(item)
        elif item is not None:
            try:
                chunks = [chunk.result() for chunk in item.chunks]
            except CancelledError as error:
                raise _Stopped from error
            event = JobBatch(item.job, embed_batch(item.job, chunks))
            self._pixels.give_back(item.pixel_bytes)
            self._emit(event)
        return item is not None

    def _guarded(self, stage: Callable[[], None]) -> None:
        try:
            stage()
        except _Stopped:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again in the driving thread
            self._errors.append(error)
            self._stop.set()

    def _get(self, source: queue.Queue[_Item]) -> _Item:
        while True:
            if self._stop.is_set():
                raise _Stopped
            try:
                return source.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                continue

    def _emit(self, event: Event | None) -> None:
        while True:
            if self._stop.is_set():
                raise _Stopped
            try:
                self._events.put(event, timeout=_POLL_SECONDS)
                return
            except queue.Full:
                continue

    def _wait(self, attempt: Callable[[], bool]) -> None:
        while not attempt():
            if self._stop.is_set():
                raise _Stopped


class _ByteBudget:
    """Bytes of pixels between the read and the embed stage; one batch may pass whatever its size."""

    def __init__(self, limit: int, stop: threading.Event) -> None:
        self._limit = limit
        self._used = 0
        self._stop = stop
        self._changed = threading.Condition()

    def take(self, amount: int) -> None:
        with self._changed:
            while self._used and self._used + amount > self._limit:
                if self._stop.is_set():
                    raise _Stopped
                self._changed.wait(_POLL_SECONDS)
            self._used += amount

    def give_back(self, amount: int) -> None:
        with self._changed:
            self._used -= amount
            self._changed.notify()


def batch_sizes(batch: int, tile_bytes: int) -> tuple[int, int]:
    """Tiles per embedding call, and tiles per reading task, which divide it."""
    most = max(1, _BATCH_BYTES // tile_bytes)
    if batch > most:
        batch = most if most < _CHUNK_TILES else most - most % _CHUNK_TILES
    return batch, math.gcd(batch, _CHUNK_TILES)
