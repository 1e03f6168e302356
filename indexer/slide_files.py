"""The files of a slide: which endings are slides, which files belong together, and their fingerprint."""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

SLIDE_SUFFIXES = frozenset(
    {".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".czi", ".dcm"}
)
PLAIN_SUFFIXES = frozenset({".png", ".jpg", ".jpeg"})
_MIB = 1 << 20
# Elements come in the order of their tags, so a header is read no further than this one.
_SERIES_UID = (0x0020, 0x000E)
_LONG_VRS = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}


def fingerprint(path: Path) -> str:
    """Hash size, first and last MiB of a slide's file and of its companions: cheap, and stable under copying.

    Companions are the data folder of an MRXS file, the pictures of a VMS file, the other files of a DICOM series.
    """
    digest = hashlib.sha256()
    for file in [path, *companions(path)]:
        size = file.stat().st_size
        digest.update(f"{file.name if file != path else ''}:{size}:".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(_MIB))
            if size > _MIB:
                stream.seek(max(_MIB, size - _MIB))
                digest.update(stream.read(_MIB))
    return digest.hexdigest()[:32]


def companions(path: Path) -> list[Path]:
    """The other files that a slide consists of, sorted by name."""
    suffix = path.suffix.lower()
    if suffix == ".mrxs":
        folder = path.with_suffix("")
        return sorted(file for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else []
    if suffix in {".vms", ".vmu"}:
        named = re.findall(r"=\s*([^\r\n=]+\.\w+)\s*$", path.read_text(errors="replace"), flags=re.MULTILINE)
        return sorted({path.with_name(name) for name in named if path.with_name(name).is_file()})
    if suffix == ".dcm":
        return [file for file in _series_members(path) if file != path]
    return []


def dicom_series(files: Sequence[Path]) -> list[list[Path]]:
    """Group DICOM files by folder and series; a file whose header cannot be read stands alone."""
    groups: dict[tuple[Path, str], list[Path]] = {}
    for file in sorted(files):
        groups.setdefault((file.parent, _series_uid(file) or file.name), []).append(file)
    return list(groups.values())


def first_file(path: Path) -> Path:
    """The file that stands for the slide: of a DICOM series its first one, else the file itself."""
    return _series_members(path)[0] if path.suffix.lower() == ".dcm" else path


def series_name(path: Path) -> str:
    """Name a slide by its file's stem; a DICOM series that has a folder of its own by that folder."""
    if path.suffix.lower() != ".dcm":
        return path.stem
    members = _series_members(path)
    slides = [file for file in path.parent.iterdir() if file.suffix.lower() in SLIDE_SUFFIXES]
    return path.resolve().parent.name if len(members) > 1 and len(members) == len(slides) else members[0].stem


def _series_members(path: Path) -> list[Path]:
    uid = _series_uid(path)
    if uid is None:
        return [path]
    siblings = sorted(file for file in path.parent.iterdir() if file.suffix.lower() == ".dcm")
    return [file for file in siblings if _series_uid(file) == uid]


def _series_uid(path: Path) -> str | None:
    """Read SeriesInstanceUID from a DICOM header in explicit little endian, as slides are stored.

    None where the file cannot be read: it is a slide by itself until it is opened, where that can be said.
    """
    try:
        with path.open("rb") as stream:
            return _uid_in(stream)
    except OSError:
        return None


def _uid_in(stream: BinaryIO) -> str | None:
    if stream.read(132)[128:] != b"DICM":
        return None
    while (element := _element(stream)) is not None:
        tag, _, length = element
        if tag == _SERIES_UID:
            return stream.read(length).decode("ascii", "replace").strip("\0 ")
        if tag > _SERIES_UID and tag[0] < 0xFFFE:
            return None
        if not _skip(stream, length):
            return None
    return None


def _element(stream: BinaryIO) -> tuple[tuple[int, int], bytes, int] | None:
    head = stream.read(8)
    if len(head) < 8:
        return None
    group, number = struct.unpack("<HH", head[:4])
    if group == 0xFFFE:  # an item or the end of a sequence: no VR
        return (group, number), b"", struct.unpack("<I", head[4:])[0]
    vr = head[4:6]
    if vr not in _LONG_VRS:
        return (group, number), vr, struct.unpack("<H", head[6:])[0]
    tail = stream.read(4)
    return None if len(tail) < 4 else ((group, number), vr, struct.unpack("<I", tail)[0])


def _skip(stream: BinaryIO, length: int) -> bool:
    """Skip a value; one of undefined length holds items and ends with a delimiter of its own."""
    if length != 0xFFFFFFFF:
        stream.seek(length, 1)
        return True
    while (element := _element(stream)) is not None:
        tag, _, inner = element
        if tag in {(0xFFFE, 0xE0DD), (0xFFFE, 0xE00D)}:
            return True
        if not _skip(stream, inner):
            return False
    return False
