"""Which slides a command is asked about: files, folders, and the manifest that describes them."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from encoder.errors import UsageError
from indexer.slide_files import PLAIN_SUFFIXES, SLIDE_SUFFIXES, dicom_series, first_file, series_name

RESERVED_COLUMNS = ("path", "slide_id", "mpp", "patient_id", "site_id", "cohort", "mask")
_BLANK = {"", "NA", "NaN", "nan"}
# A number as people write one; `007` and `12E45` are identifiers and stay text.
_NUMBER = re.compile(r"[+-]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)")


@dataclass(frozen=True)
class SlideEntry:
    """One slide as the user names it.

    Attributes:
        slide_id: from the manifest, else the file's stem.
        path: the file to open; of a DICOM series its first file.
        mpp: micrometres per pixel of level 0 as the manifest gives it.
        mask: GeoJSON with the tissue to use, in level-0 pixels.
        extra: the manifest's other columns; numbers where the whole column is numeric.
    """

    slide_id: str
    path: Path
    mpp: float | None = None
    patient_id: str | None = None
    site_id: str | None = None
    cohort: str | None = None
    mask: Path | None = None
    extra: dict[str, str | float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class ManifestRow:
    """A line of the manifest; `path` or `slide_id` says which slide it describes."""

    line: int
    path: Path | None
    slide_id: str | None
    mpp: float | None
    patient_id: str | None
    site_id: str | None
    cohort: str | None
    mask: Path | None
    extra: dict[str, str | float | None]


@dataclass(frozen=True)
class Manifest:
    """A table that describes slides, one per row."""

    file: Path
    rows: tuple[ManifestRow, ...]


def read_manifest(file: Path) -> Manifest:
    """Read a manifest: CSV with a header; paths are relative to the manifest's folder.

    Raises:
        UsageError: the file is absent or no table, a column or a value does not fit, a slide is named twice.
    """
    header, records = _read_csv(file)
    user_columns = [name for name in header if name not in RESERVED_COLUMNS]
    numeric = {name for name in user_columns if _is_numeric(record[name] for _, record in records)}
    rows = []
    for line, record in records:
        path, mask = _text(record.get("path")), _text(record.get("mask"))
        slide_id = _text(record.get("slide_id"))
        if path is None and slide_id is None:
            raise UsageError(f"{file}, line {line}: neither path nor slide_id is given.", "Fill in one of them.")
        rows.append(
            ManifestRow(
                line=line,
                path=None if path is None else file.parent / path,
                slide_id=None if slide_id is None else _checked_id(slide_id, f"{file}, line {line}"),
                mpp=_mpp(record.get("mpp"), f"{file}, line {line}"),
                patient_id=_text(record.get("patient_id")),
                site_id=_text(record.get("site_id")),
                cohort=_text(record.get("cohort")),
                mask=None if mask is None else _existing(file.parent / mask, f"{file}, line {line}: mask"),
                extra={name: _value(record[name], name in numeric) for name in user_columns},
            )
        )
    manifest = Manifest(file, tuple(rows))
    _refuse_repeats(manifest)
    return manifest


def discover(paths: Sequence[Path], manifest: Path | None = None) -> list[SlideEntry]:
    """List the slides that files and folders hold, described by the manifest's rows.

    Folders are searched with everything below them. Companion folders and the files of one DICOM series
    are one slide. PNG and JPEG files found in a folder are slides only where the manifest gives their mpp.
    Without `paths`, the slides are those that the manifest names by path. A manifest is used only
    when it is passed.

    Args:
        paths: slide files and folders.
        manifest: CSV file; see `read_manifest`.

    Raises:
        UsageError: a path is absent, a folder has no slides, a manifest row has no file, two slides share an id.
    """
    rows = read_manifest(manifest) if manifest is not None else None
    if rows is not None:
        for row in rows.rows:
            if row.path is not None:
                _existing(row.path, f"{rows.file}, line {row.line}: slide")
    if not paths:
        if rows is None:
            raise UsageError("No slides are named.", "Give slide files, folders, or a manifest.")
        nameless = [row for row in rows.rows if row.path is None]
        if nameless:
            raise UsageError(
                f"{rows.file}, line {nameless[0].line}: slide {nameless[0].slide_id} has no path.",
                "Give the folder with the slides, or fill in the path column.",
            )
        entries = [_entry(row.path, row) for row in rows.rows if row.path is not None]
    else:
        entries = _described(_slide_files(paths, rows), rows, folders=any(path.is_dir() for path in paths))
    _refuse_shared_ids(entries)
    return entries


def _read_csv(file: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UsageError(f"The manifest {file} does not exist.", "Check the path.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"The manifest {file} cannot be read: {error}.", "Save it as UTF-8 CSV.") from None
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    lines = _lines(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), file)
    header = [name.strip() for name in next(lines, (1, []))[1]]
    if "path" not in header and "slide_id" not in header:
        raise UsageError(
            f"The manifest {file} has neither a path nor a slide_id column (it has: {', '.join(header) or 'none'}).",
            "Name one of its columns path (relative to the manifest) or slide_id.",
        )
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated or "" in header:
        raise UsageError(
            f"The manifest {file} has {'a column without a name' if '' in header else f'two columns {repeated[0]}'}.",
            "Give each column a name of its own.",
        )
    records = []
    for line, fields in lines:
        if not any(value.strip() for value in fields):
            continue
        if len(fields) != len(header):
            raise UsageError(
                f"{file}, line {line}: {len(fields)} values for {len(header)} columns.",
                "Quote values that contain the separator.",
            )
        records.append((line, dict(zip(header, (value.strip() for value in fields), strict=True))))
    if not records:
        raise UsageError(f"The manifest {file} has no rows.", "Add a row per slide.")
    return header, records


def _lines(reader: Any, file: Path) -> Iterator[tuple[int, list[str]]]:
    try:
        for fields in reader:
            yield reader.line_num, fields
    except csv.Error as error:
        raise UsageError(
            f"{file}, line {reader.line_num}: this is no CSV: {error}.", "Look for a quote that is not closed."
        ) from None


def _text(value: str | None) -> str | None:
    return None if value is None or value in _BLANK else value


def _is_numeric(values: Iterable[str]) -> bool:
    filled = [value for value in values if value not in _BLANK]
    return bool(filled) and all(_NUMBER.fullmatch(value) and math.isfinite(float(value)) for value in filled)


def _value(value: str, numeric: bool) -> str | float | None:
    if value in _BLANK:
        return None
    return float(value) if numeric else value


def _mpp(value: str | None, where: str) -> float | None:
    text = _text(value)
    if text is None:
        return None
    try:
        mpp = float(text)
    except ValueError:
        mpp = math.nan
    if not (math.isfinite(mpp) and mpp > 0):
        raise UsageError(f"{where}: mpp `{text}` is no positive number.", "Give um per pixel, such as 0.25.")
    return mpp


def _checked_id(slide_id: str, where: str) -> str:
    if any(character in "/\\" or not character.isprintable() for character in slide_id):
        raise UsageError(
            f"{where}: the slide id {slide_id!r} contains a slash or an unprintable character.",
            "Use letters, digits, spaces, dots, dashes and underscores.",
        )
    return slide_id


def _existing(path: Path, what: str) -> Path:
    if not path.exists():
        raise UsageError(f"{what} {path} does not exist.", "Correct the path or remove the row.")
    return path


def _slide_files(paths: Sequence[Path], manifest: Manifest | None) -> list[Path]:
    found: dict[Path, Path] = {}
    for path in paths:
        if not path.exists():
            raise UsageError(f"{path} does not exist.", "Check the path.")
        files = _in_folder(path, manifest) if path.is_dir() else [first_file(path)]
        if not files:
            raise UsageError(
                f"The folder {path} holds no slides ({', '.join(sorted(SLIDE_SUFFIXES))}).",
                "PNG and JPEG pictures are slides where a manifest gives their mpp.",
            )
        for file in files:
            found.setdefault(file.resolve(), file)
    return list(found.values())


def _in_folder(folder: Path, manifest: Manifest | None) -> list[Path]:
    plain = _plain_slides(manifest)
    files, dicom = [], []
    for file in sorted(folder.rglob("*")):
        if file.name.startswith(".") or not file.is_file():
            continue
        suffix = file.suffix.lower()
        if suffix == ".dcm":
            dicom.append(file)
        elif suffix in SLIDE_SUFFIXES or (suffix in PLAIN_SUFFIXES and (file.resolve() in plain or file.stem in plain)):
            files.append(file)
    return files + [series[0] for series in dicom_series(dicom)]


def _plain_slides(manifest: Manifest | None) -> set[Path | str]:
    """What the manifest calls a slide and gives an mpp: resolved paths, and ids where no path is given."""
    names: set[Path | str] = set()
    for row in manifest.rows if manifest else ():
        if row.mpp is not None and row.path is not None:
            names.add(row.path.resolve())
        elif row.mpp is not None and row.slide_id is not None:
            names.add(row.slide_id)
    return names


def _described(files: Iterable[Path], manifest: Manifest | None, folders: bool) -> list[SlideEntry]:
    if manifest is None:
        return [SlideEntry(slide_id=series_name(file), path=file) for file in files]
    by_path = {row.path.resolve(): row for row in manifest.rows if row.path is not None}
    by_id = {row.slide_id: row for row in manifest.rows if row.path is None}
    entries, used = [], set()
    for file in files:
        row = by_path.get(file.resolve()) or by_id.get(series_name(file))
        if row is None:
            entries.append(SlideEntry(slide_id=series_name(file), path=file))
        else:
            used.add(row.line)
            entries.append(_entry(file, row))
    # A row that names a file elsewhere was not asked for; an id that no file of a whole folder has is a mistake.
    unmatched = [row for row in by_id.values() if row.line not in used] if folders else []
    if unmatched:
        raise UsageError(
            f"{manifest.file}, line {unmatched[0].line}: no slide file has the id {unmatched[0].slide_id}"
            f"{f' ({len(unmatched)} such rows)' if len(unmatched) > 1 else ''}.",
            "The id is the file's name without its ending; correct it, fill in the path, or remove the row.",
        )
    return entries


def _entry(path: Path, row: ManifestRow) -> SlideEntry:
    return SlideEntry(
        slide_id=row.slide_id or series_name(path),
        path=path,
        mpp=row.mpp,
        patient_id=row.patient_id,
        site_id=row.site_id,
        cohort=row.cohort,
        mask=row.mask,
        extra=row.extra,
    )


def _refuse_repeats(manifest: Manifest) -> None:
    seen: dict[Path | str, int] = {}
    for row in manifest.rows:
        key: Path | str = row.path.resolve() if row.path is not None else (row.slide_id or "")
        if key in seen:
            raise UsageError(
                f"{manifest.file}, lines {seen[key]} and {row.line}: {row.path or row.slide_id} is named twice.",
                "Keep one row per slide.",
            )
        seen[key] = row.line


def _refuse_shared_ids(entries: Sequence[SlideEntry]) -> None:
    seen: dict[str, Path] = {}
    for entry in entries:
        if entry.slide_id in seen:
            raise UsageError(
                f"Two files have the slide id {entry.slide_id}: {seen[entry.slide_id]} and {entry.path}.",
                "Give each a slide_id of its own in the manifest, or leave one out.",
            )
        seen[entry.slide_id] = entry.path


def resolved(entry: SlideEntry) -> SlideEntry:
    """The same entry with absolute paths, fit to be kept in a store."""
    return replace(entry, path=entry.path.resolve(), mask=None if entry.mask is None else entry.mask.resolve())
