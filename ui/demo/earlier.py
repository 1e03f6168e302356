"""An earlier demo in the same folder: gone on with where it is of the same slides, replaced where it is not."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from encoder.progress import Reporter

if TYPE_CHECKING:
    from indexer.manifest import SlideEntry

_RECORD = ".demo-slides"
_OWN = ("encoder", "store", "report.html", "similar-*.png")


def start_afresh_for_other_slides(
    out: Path, entries: Sequence[SlideEntry], train_seconds: float, reporter: Reporter
) -> None:
    """Remove what an earlier demo left in the folder where it was of other slides or of another length.

    Only a folder that bears the demo's own record is touched, and there only what the demo writes.
    """
    from indexer.slide_files import fingerprint

    digest = hashlib.sha256(f"{train_seconds:g}".encode())
    for entry in sorted(entries, key=lambda entry: entry.slide_id):
        digest.update(f"{entry.slide_id} {entry.mpp} {fingerprint(entry.path)}".encode())
    record = out / _RECORD
    if record.is_file() and record.read_text() != digest.hexdigest():
        reporter.note(f"the demo in {out} was another one; starting afresh")
        for pattern in _OWN:
            for path in out.glob(pattern):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    out.mkdir(parents=True, exist_ok=True)
    record.write_text(digest.hexdigest())
