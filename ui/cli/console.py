"""How the command line speaks: progress on stderr, results on stdout, JSON where a program reads."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from encoder.progress import PlainReporter, Reporter

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


def make_reporter() -> Reporter:
    """Progress bars on a terminal, plain lines elsewhere; always on stderr."""
    if sys.stderr.isatty():
        return RichReporter()
    return PlainReporter(sys.stderr)


def say(text: str) -> None:
    """Write one line of result to stdout."""
    sys.stdout.write(text + "\n")


def say_json(document: Any) -> None:
    """Write the one JSON document of a `--json` command to stdout."""
    sys.stdout.write(json.dumps(document, indent=2, default=_jsonable, allow_nan=False) + "\n")


def say_table(headers: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write an aligned plain table to stdout; numbers to the right."""
    values = [list(row) for row in rows]
    texts = [[_cell(value) for value in row] for row in values]
    numeric = [
        bool(values) and all(isinstance(row[i], int | float | None) for row in values) for i in range(len(headers))
    ]
    widths = [max([len(head), *(len(row[i]) for row in texts)]) for i, head in enumerate(headers)]
    for row in [list(headers), ["-" * width for width in widths], *texts]:
        cells = [
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(row, widths, numeric, strict=True)
        ]
        say("  ".join(cells).rstrip())


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def _jsonable(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    if hasattr(value, "isoformat"):
        return value.isoformat()
    return str(value)


class RichReporter:
    """A live bar with rate and time left, drawn by rich on stderr."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def start(self, label: str, total: int | None, unit: str) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self.finish()
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(f"{unit} {{task.fields[rate]}} {{task.fields[detail]}}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._progress.start()
        self._task = self._progress.add_task(label, total=total, detail="", rate="")

    def advance(self, n: int = 1, detail: str = "") -> None:
        if self._progress is None or self._task is None:
            return
        task = self._progress.tasks[0]
        rate = f"({task.speed:.0f}/s)" if task.speed else ""
        self._progress.update(self._task, advance=n, detail=detail, rate=rate)

    def grow(self, n: int) -> None:
        if self._progress is None or self._task is None:
            return
        total = self._progress.tasks[0].total or 0
        self._progress.update(self._task, total=total + n)

    def note(self, text: str) -> None:
        self._line(text)

    def warn(self, text: str) -> None:
        self._line(f"warning: {text}")

    def finish(self) -> None:
        if self._progress is not None:
            self._progress.stop()
        self._progress = self._task = None

    def _line(self, text: str) -> None:
        if self._progress is not None:
            self._progress.console.print(text, markup=False, highlight=False)
        else:
            sys.stderr.write(text + "\n")
