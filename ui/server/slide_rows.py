"""The slides of the served store by number, as they are now: what another process registers is seen."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ui.server.opened import opened_cohort

# Asking whether a store has changed costs microseconds on a disk and a request in an object store.
_LOOK_AGAIN_SECONDS = 1.0


@dataclass(frozen=True)
class SlideRow:
    """What the store knows of a slide's file.

    Attributes:
        fingerprint: of the file that was indexed; None where it was never opened.
        width0, height0, mpp: None where it was never opened.
    """

    slide_no: int
    slide_id: str
    path: Path
    fingerprint: str | None
    width0: int | None
    height0: int | None
    mpp: float | None


class SlideRows:
    """Looks slides up by their number. Safe to use from several threads.

    Args:
        uri: of the store.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._lock = threading.Lock()
        self._rows: dict[int, SlideRow] = {}
        self._stamp: tuple[Any, ...] | None = None
        self._looked = float("-inf")

    def get(self, slide_no: int) -> SlideRow | None:
        """The row of a slide; None where the store has no such number.

        Raises:
            StoreError: the store cannot be read.
        """
        with self._lock:
            if time.monotonic() - self._looked >= _LOOK_AGAIN_SECONDS:
                self._refresh()
            return self._rows.get(slide_no)

    def thumbnail(self, row: SlideRow) -> bytes | None:
        """Overview of a slide as JPEG; None where it was never opened."""
        return opened_cohort(self._uri).store.thumbnail(row.slide_id)

    def _refresh(self) -> None:
        cohort = opened_cohort(self._uri)
        # Not by the cohort's own refresh, which waits while a search reads vectors.
        stamp = (cohort.store.lance.mark("meta"), *cohort.store.lance.stamp(["slides"]))
        if stamp != self._stamp:
            self._rows = {row.slide_no: row for row in map(_row, cohort.slides.to_pylist())}
            self._stamp = stamp
        self._looked = time.monotonic()


def _row(row: dict[str, Any]) -> SlideRow:
    names = ("slide_no", "slide_id", "fingerprint", "width0", "height0", "mpp")
    # A slide without a file is said to be missing under its id.
    return SlideRow(path=Path(row["path"] or row["slide_id"]), **{name: row[name] for name in names})
