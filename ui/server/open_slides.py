"""Slides kept open between requests: a few, the latest used, each seen to be the file that was indexed."""

from __future__ import annotations

import io
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from encoder.errors import HistoSeekError, SlideError
from indexer.manifest import SlideEntry
from indexer.slide import Slide, open_slide
from indexer.slide_files import companions
from indexer.zoom import Zoom
from ui.server.slide_rows import SlideRow, SlideRows

_MOST_SLIDES = 8
# A plain picture is in memory as a whole: up to 240 MB.
_MOST_PICTURE_BYTES = 512 << 20
_LOOK_AGAIN_SECONDS = 1.0
_RETRY_SECONDS = 5.0

FileState = tuple[tuple[int, int, int], ...]


@dataclass
class OpenSlide:
    """A slide that is open, or the reason why it is not.

    Attributes:
        row: of the store that it was opened by.
        state: size, time of change and inode of its files when it was opened.
        looked: when the files were last looked at, by the monotonic clock.
        users: requests that read from it now.
        dropped: whether the last of them closes it.
    """

    row: SlideRow
    files: list[Path]
    state: FileState
    slide: Slide | None
    zoom: Zoom | None
    failure: SlideError | None
    looked: float = field(default_factory=time.monotonic)
    users: int = 0
    dropped: bool = False

    @property
    def picture_bytes(self) -> int:
        """Memory that a plain picture takes; none for a slide that is read from its file."""
        if self.slide is None or self.slide.info.vendor != "image":
            return 0
        return 3 * self.slide.info.width0 * self.slide.info.height0


class OpenSlides:
    """Lends open slides to requests. Safe to use from several threads.

    Args:
        rows: of the served store.
        most: slides that stay open.
    """

    def __init__(self, rows: SlideRows, most: int = _MOST_SLIDES) -> None:
        self._rows, self._most = rows, most
        self._lock = threading.Lock()
        self._opening = [threading.Lock() for _ in range(16)]  # by number: a file that hangs delays few others
        self._kept: OrderedDict[int, OpenSlide] = OrderedDict()

    @contextmanager
    def use(self, row: SlideRow) -> Iterator[tuple[Slide, Zoom, FileState]]:
        """Lend an open slide with its pyramid, and a state that differs whenever its files do.

        Raises:
            SlideError: the file is missing, is not the one that was indexed, or cannot be read.
        """
        kept = self._borrow(row)
        try:
            if kept.failure is not None:
                raise kept.failure
            assert kept.slide is not None and kept.zoom is not None
            yield kept.slide, kept.zoom, kept.state
        finally:
            with self._lock:
                kept.users -= 1
                close = kept.dropped and not kept.users
            if close:
                _close(kept)

    def close(self) -> None:
        """Close all slides; those in use once their requests are done."""
        with self._lock:
            idle = [kept for number in list(self._kept) if (kept := self._drop(number)) is not None]
        for kept in idle:
            _close(kept)

    def _borrow(self, row: SlideRow) -> OpenSlide:
        with self._opening[row.slide_no % len(self._opening)]:
            found = self._current(row)
            if found is not None:
                return found
            opened = self._opened(row)
            with self._lock:
                idle = [self._drop(row.slide_no)]
                self._kept[row.slide_no] = opened
                opened.users += 1
                while len(self._kept) > 1 and self._is_too_much():
                    idle.append(self._drop(next(iter(self._kept))))
            for kept in idle:
                if kept is not None:
                    _close(kept)
            return opened

    def _current(self, row: SlideRow) -> OpenSlide | None:
        """The kept slide, where the row and the files are still those that it was opened by; now in use."""
        with self._lock:
            found = self._kept.get(row.slide_no)
            if found is None or found.row != row:
                return None
            self._kept.move_to_end(row.slide_no)
            age = time.monotonic() - found.looked
            if age < _LOOK_AGAIN_SECONDS:
                found.users += 1
                return found
        if found.failure is not None and age >= _RETRY_SECONDS:
            return None
        if _state(found.files) != found.state:
            return None
        with self._lock:
            if found.dropped:
                return None
            if found.failure is None:
                found.looked = time.monotonic()
            found.users += 1
            return found

    def _opened(self, row: SlideRow) -> OpenSlide:
        files = [row.path]
        state = _state(files)
        try:
            if not row.path.is_file():
                raise SlideError(f"{row.path} is no longer there.", "Bring the file back, or index it where it is now.")
            files += companions(row.path)
            state = _state(files)  # before opening: a change after it shows
            slide = open_slide(SlideEntry(row.slide_id, row.path, mpp=row.mpp))
        except (SlideError, OSError) as error:
            return OpenSlide(row, files, state, None, None, _plainly(error, row))
        if row.fingerprint not in (None, slide.info.fingerprint):
            slide.close()
            changed = SlideError(
                f"{row.path} is not the file that was indexed.", "Index it again, or bring the file back."
            )
            return OpenSlide(row, files, state, None, None, _plainly(changed, row))
        return OpenSlide(row, files, state, slide, Zoom(slide, lambda: _picture(self._rows.thumbnail(row))), None)

    def _is_too_much(self) -> bool:
        if len(self._kept) > self._most:
            return True
        return sum(kept.picture_bytes for kept in self._kept.values()) > _MOST_PICTURE_BYTES

    def _drop(self, slide_no: int) -> OpenSlide | None:
        """Forget a slide; it is returned where nobody uses it, to be closed outside the lock."""
        kept = self._kept.pop(slide_no, None)
        if kept is None:
            return None
        kept.dropped = True
        return None if kept.users else kept


def _close(kept: OpenSlide) -> None:
    if kept.slide is not None:
        kept.slide.close()


def _state(files: list[Path]) -> FileState:
    states = []
    for file in files:
        try:
            found = file.stat()
            states.append((found.st_size, found.st_mtime_ns, found.st_ino))
        except OSError:
            states.append((-1, -1, -1))
    return tuple(states)


def _picture(jpeg: bytes | None) -> NDArray[np.uint8] | None:
    return None if jpeg is None else np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))


def _plainly(error: HistoSeekError | OSError, row: SlideRow) -> SlideError:
    """The error with the file's name in the place of its path: clients need not know the server's folders."""
    if isinstance(error, OSError):
        return SlideError(f"{row.path.name} cannot be read: {error.strerror or error}.", "Check the file.")
    return SlideError(*(text.replace(str(row.path), row.path.name) for text in (error.message, error.fix)))
