"""The write stage: collects whole slides and commits them by rows, bytes or age."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import monotonic, perf_counter
from typing import Any

from indexer.commits import Committer
from indexer.flow import JobBatch
from indexer.slide_job import FailedSlide, SlideJob
from indexer.slide_rows import FLUSH_BYTES, FLUSH_ROWS, FinishedSlide, SlideRows

FLUSH_SECONDS = 60.0


class WriteStage:
    """Takes batches and failures, and commits whole slides.

    Args:
        committer: writes them.
        run_id: of the run.
    """

    def __init__(self, committer: Committer, run_id: str, clock: Callable[[], float] = monotonic) -> None:
        self.seconds = 0.0
        self._committer = committer
        self._run_id = run_id
        self._clock = clock
        self._collecting: dict[SlideJob, SlideRows] = {}
        self._finished: list[FinishedSlide] = []
        self._failed: list[FailedSlide] = []
        self._overcome: list[dict[str, Any]] = []
        self._since = clock()

    def take(self, event: JobBatch) -> None:
        """Take a batch of a slide."""
        started = perf_counter()
        self._rows(event.job).add(event.batch)
        self.seconds += perf_counter() - started

    def finish(self, job: SlideJob) -> FinishedSlide | FailedSlide:
        """Take the end of a slide, and commit where enough has come together."""
        started = perf_counter()
        outcome = self._rows(job).finish(self._run_id)
        del self._collecting[job]
        self._note_age()
        if isinstance(outcome, FinishedSlide):
            self._finished.append(outcome)
        else:
            self._failed.append(outcome)
        self.seconds += perf_counter() - started
        if self._rows_waiting() >= FLUSH_ROWS or self._bytes_waiting() >= FLUSH_BYTES:
            self.flush()
        return outcome

    def fail(self, failure: FailedSlide) -> None:
        """Take a slide that could not be opened or planned."""
        self._note_age()
        self._failed.append(failure)

    def overcome(self, failures: Sequence[dict[str, Any]]) -> None:
        """Take open failures that are no more."""
        self._note_age()
        self._overcome += failures

    def flush_if_old(self) -> None:
        """Commit where the oldest whole slide has waited long enough."""
        if self._is_waiting and self._clock() - self._since >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Commit all whole slides."""
        if not self._is_waiting:
            return
        started = perf_counter()
        finished, failed, overcome = self._finished, self._failed, self._overcome
        # A commit that fails is not tried again: what it wrote is cleared by the next run.
        self._finished, self._failed, self._overcome = [], [], []
        try:
            self._committer.commit(finished, failed, overcome)
        finally:
            for slide in finished:
                slide.close()
        self.seconds += perf_counter() - started

    def close(self) -> None:
        """Let go of all that was not committed."""
        for rows in self._collecting.values():
            rows.close()
        for slide in self._finished:
            slide.close()
        self._collecting, self._finished, self._failed, self._overcome = {}, [], [], []

    @property
    def _is_waiting(self) -> bool:
        return bool(self._finished or self._failed or self._overcome)

    def _rows(self, job: SlideJob) -> SlideRows:
        if job not in self._collecting:
            self._collecting[job] = SlideRows(job)
        return self._collecting[job]

    def _note_age(self) -> None:
        if not self._is_waiting:
            self._since = self._clock()

    def _rows_waiting(self) -> int:
        return sum(slide.rows for slide in self._finished)

    def _bytes_waiting(self) -> int:
        return sum(slide.memory_bytes for slide in self._finished)
