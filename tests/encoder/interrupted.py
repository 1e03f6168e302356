"""Training runs that are told to stop, and what they leave behind."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from encoder.progress import SilentReporter


class StopAfter(SilentReporter):
    """Sends Ctrl-C to the process at a step, and keeps what it is told; a resumed run counts one step more."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self._left = step
        self.notes: list[str] = []

    def advance(self, n: int = 1, detail: str = "") -> None:
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGINT)

    def note(self, text: str) -> None:
        self.notes.append(text)


def weights(run: Path) -> bytes:
    """The weights of the encoder that a finished run kept."""
    return (run / "checkpoint" / "encoder.safetensors").read_bytes()
