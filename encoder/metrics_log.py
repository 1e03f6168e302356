"""Metrics of a run: one JSON line each, and TensorBoard where it is wanted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from encoder.progress import Reporter


class MetricsLog:
    """Appends metrics; a context manager that closes its files.

    Args:
        path: the JSONL file; lines of steps after `step`, left by a run that was killed, are removed. None
            writes nothing at all, as processes beside the first do.
        tensorboard: folder for TensorBoard, or None.
        step: steps done so far.
        reporter: told where TensorBoard is asked for but not installed.
    """

    def __init__(self, path: Path | None, tensorboard: Path | None, step: int, reporter: Reporter) -> None:
        self._writer: Any = None
        self._stream: TextIO | None = None
        if path is None:
            return
        _keep_until(path, step)
        self._stream = path.open("a", encoding="utf-8")
        if tensorboard is not None:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                reporter.warn(f"TensorBoard is not installed; metrics are in {path} only.")
            else:
                self._writer = SummaryWriter(str(tensorboard), purge_step=step + 1)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream is not None:
            self._stream.close()
        if self._writer is not None:
            self._writer.close()

    def write(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Write figures of a kind, such as `train` or `monitor`, that belong to a step."""
        if self._stream is None:
            return
        self._stream.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        self._stream.flush()
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(f"{kind}/{name}", value, step)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a metrics file, oldest first; a line cut short by a kill ends it."""
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def _keep_until(path: Path, step: int) -> None:
    kept = [line for line in read_metrics(path) if line["step"] <= step]
    fresh = path.with_name(f"{path.name}.new")
    fresh.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    fresh.replace(path)
