"""The table of a tile folder: what is known of each picture, read from `tiles.csv` or `labels.csv`."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from encoder.errors import UsageError

TABLE_NAMES = ("tiles.csv", "labels.csv")


@dataclass(frozen=True)
class TileTable:
    """Columns of a tile table, one entry per row; None where a column is absent or wholly blank.

    Attributes:
        files: picture of each row, as the table writes it.
        labels: class.
        groups: patient, or the group column where there is no patient.
        slide_ids: slide.
        site_ids: site.
        splits: part of a data set.
        positions_px0: top left corner [N, 2] in level-0 pixels.
        extents_px0: side [N] in level-0 pixels.
        mpps: micrometres per pixel [N], NaN where blank.
    """

    files: list[str] = field(default_factory=list)
    labels: list[str] | None = None
    groups: list[str] | None = None
    slide_ids: list[str] | None = None
    site_ids: list[str] | None = None
    splits: list[str] | None = None
    positions_px0: NDArray[np.int64] | None = None
    extents_px0: NDArray[np.int64] | None = None
    mpps: NDArray[np.float64] | None = None


def find_table(folder: Path) -> Path | None:
    """Find the table of a tile folder; `tiles.csv` comes before `labels.csv`."""
    return next((folder / name for name in TABLE_NAMES if (folder / name).is_file()), None)


def read_table(path: Path) -> TileTable:
    """Read a tile table.

    Raises:
        UsageError: it has no `file` column, no row, a repeated file, or a number that is none; names the line.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.DictReader(stream))
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text.", fix="Save it as CSV in UTF-8.") from error
    if not rows or "file" not in rows[0]:
        what = "has no rows" if not rows else "has no column named file"
        raise UsageError(f"{path} {what}.", fix="Its first line must be: file[,label][,patient_id]...")
    files = [(row["file"] or "").strip() for row in rows]
    first_line: dict[str, int] = {}
    for line, name in enumerate(files, start=2):
        if not name:
            raise UsageError(f"{path}, line {line}: the file is blank.", fix="Name a picture or remove the line.")
        if name in first_line:
            raise UsageError(
                f"{path}, line {line}: {name} is already on line {first_line[name]}.", fix="Remove one of them."
            )
        first_line[name] = line
    columns = {key: _texts(rows, key) for key in rows[0] if key is not None}
    x0, y0 = _integers(path, columns.get("x0"), "x0"), _integers(path, columns.get("y0"), "y0")
    if (x0 is None) != (y0 is None):
        present, absent = ("x0", "y0") if y0 is None else ("y0", "x0")
        raise UsageError(f"{path} has {present} but no {absent}.", fix="Give both, or neither.")
    patients = columns.get("patient_id")
    return TileTable(
        files=files,
        labels=columns.get("label"),
        groups=patients if patients is not None else columns.get("group"),
        slide_ids=columns.get("slide_id"),
        site_ids=columns.get("site_id"),
        splits=columns.get("split"),
        positions_px0=np.stack([x0, y0], axis=1) if x0 is not None and y0 is not None else None,
        extents_px0=_integers(path, columns.get("extent_px0"), "extent_px0"),
        mpps=_positive_or_nan(path, columns.get("mpp"), "mpp"),
    )


def _texts(rows: list[dict[str, str]], key: str) -> list[str] | None:
    values = [(row.get(key) or "").strip() for row in rows]
    return values if any(values) else None


def _integers(path: Path, texts: list[str] | None, name: str) -> NDArray[np.int64] | None:
    if texts is None:
        return None
    values = np.empty(len(texts), dtype=np.int64)
    for i, text in enumerate(texts):
        number = _number(path, text, name, i)
        if number != int(number):
            raise UsageError(f"{path}, line {i + 2}: {name} is {text}, not a whole number.", fix="Give level-0 pixels.")
        values[i] = int(number)
    return values


def _positive_or_nan(path: Path, texts: list[str] | None, name: str) -> NDArray[np.float64] | None:
    if texts is None:
        return None
    values = np.array([_number(path, t, name, i) if t else np.nan for i, t in enumerate(texts)])
    for i in np.flatnonzero(values <= 0):
        raise UsageError(f"{path}, line {i + 2}: {name} is {texts[i]}, not above zero.", fix="Correct it.")
    return values


def _number(path: Path, text: str, name: str, row: int) -> float:
    try:
        number = float(text)
    except ValueError:
        number = np.nan
    if not np.isfinite(number):
        raise UsageError(
            f"{path}, line {row + 2}: {name} is {text!r}, not a number.", fix="Correct it or empty the column."
        )
    return number
