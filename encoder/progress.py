"""What long work tells its caller: a small Reporter protocol and its plain forms."""

from __future__ import annotations

import time
from typing import Protocol, TextIO


class Reporter(Protocol):
    """Receives progress; one task at a time, called from the driving thread only."""

    def start(self, label: str, total: int | None, unit: str) -> None:
        """Begin a task of `total` units (None where unknown)."""

    def advance(self, n: int = 1, detail: str = "") -> None:
        """Count `n` more units; `detail` is a short text shown beside the bar."""

    def grow(self, n: int) -> None:
        """Add `n` units to the total of the current task."""

    def note(self, text: str) -> None:
        """Say one line that stays."""

    def warn(self, text: str) -> None:
        """Say one line that stays and that the user should act on."""

    def finish(self) -> None:
        """End the task."""


class SilentReporter:
    """Says nothing; keeps the warnings for whoever asks."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def start(self, label: str, total: int | None, unit: str) -> None:
        pass

    def advance(self, n: int = 1, detail: str = "") -> None:
        pass

    def grow(self, n: int) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def finish(self) -> None:
        pass


class PlainReporter:
    """Writes plain lines, for logs and pipes.

    Args:
        stream: where the lines go.
        every_seconds: least time between two progress lines.
    """

    def __init__(self, stream: TextIO, every_seconds: float = 10.0) -> None:
        self._stream = stream
        self._every_seconds = every_seconds
        self._label, self._unit = "", ""
        self._total: int | None = None
        self._done = 0
        self._started = self._last = 0.0

    def start(self, label: str, total: int | None, unit: str) -> None:
        self._label, self._total, self._unit, self._done = label, total, unit, 0
        self._started = self._last = time.monotonic()
        self._line(f"{label}: {total if total is not None else '?'} {unit}")

    def advance(self, n: int = 1, detail: str = "") -> None:
        self._done += n
        now = time.monotonic()
        if now - self._last < self._every_seconds:
            return
        self._last = now
        rate = self._done / max(now - self._started, 1e-9)
        text = f"{self._label}: {self._done}/{self._total or '?'} {self._unit}, {rate:.1f} {self._unit}/s"
        if self._total:
            text += f", {format_seconds((self._total - self._done) / max(rate, 1e-9))} left"
        self._line(f"{text}{', ' + detail if detail else ''}")

    def grow(self, n: int) -> None:
        self._total = (self._total or 0) + n

    def note(self, text: str) -> None:
        self._line(text)

    def warn(self, text: str) -> None:
        self._line(f"warning: {text}")

    def finish(self) -> None:
        seconds = time.monotonic() - self._started
        self._line(f"{self._label}: {self._done} {self._unit} in {format_seconds(seconds)}")

    def _line(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()


def format_seconds(seconds: float) -> str:
    """Format a duration as a person says it: `8 s`, `2 min 05 s`, `3 h 10 min`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
