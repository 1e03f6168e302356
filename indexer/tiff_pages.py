"""The pages of a TIFF file: sizes, tiling and compression, read from its directories alone."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_WIDTH, _HEIGHT, _COMPRESSION, _SAMPLES, _TILE_WIDTH, _TILE_BYTES = 256, 257, 259, 277, 322, 325
_FORMATS = {1: "B", 3: "H", 4: "I", 16: "Q"}  # the TIFF types in which these tags come
JPEG = 7
_MAX_PAGES = 1024


@dataclass(frozen=True)
class TiffPage:
    """One page.

    Attributes:
        number: its place in the file.
        samples: channels per pixel.
        tile_width: 0 where the page is not tiled.
        missing_tiles: tiles without data, which readers fill each in their own way.
    """

    number: int
    width: int
    height: int
    compression: int
    samples: int
    tile_width: int
    missing_tiles: int


def tiff_pages(path: Path) -> list[TiffPage]:
    """List the pages of a TIFF or BigTIFF file; empty where the file is neither or is damaged."""
    pages: list[TiffPage] = []
    with path.open("rb") as stream:
        head = stream.read(16)
        order = {b"II": "<", b"MM": ">"}.get(head[:2])
        if order is None or len(head) < 16:
            return []
        version = struct.unpack(order + "H", head[2:4])[0]
        if version not in {42, 43}:
            return []
        big = version == 43
        offset = struct.unpack(order + "Q", head[8:16])[0] if big else struct.unpack(order + "I", head[4:8])[0]
        seen: set[int] = set()
        try:
            while offset and offset not in seen and len(pages) < _MAX_PAGES:
                seen.add(offset)
                page, offset = _page(stream, order, big, offset, len(pages))
                pages.append(page)
        except (struct.error, OSError, OverflowError):
            return []
    return pages


def _page(stream: BinaryIO, order: str, big: bool, offset: int, number: int) -> tuple[TiffPage, int]:
    stream.seek(offset)
    count = struct.unpack(order + ("Q" if big else "H"), stream.read(8 if big else 2))[0]
    size = 20 if big else 12
    if count > 4096:
        raise struct.error("a directory of more than 4096 tags is damage")
    body = stream.read(count * size)
    following = struct.unpack(order + ("Q" if big else "I"), stream.read(8 if big else 4))[0]
    tags = {}
    for start in range(0, count * size, size):
        tag, kind = struct.unpack(order + "HH", body[start : start + 4])
        tags[tag] = (kind, body[start + 4 : start + size])
    numbers = {
        tag: _values(stream, order, big, *tags[tag]) if tag in tags else ()
        for tag in (_WIDTH, _HEIGHT, _COMPRESSION, _SAMPLES, _TILE_WIDTH, _TILE_BYTES)
    }

    def first(tag: int, default: int) -> int:
        return numbers[tag][0] if numbers[tag] else default

    page = TiffPage(
        number=number,
        width=first(_WIDTH, 0),
        height=first(_HEIGHT, 0),
        compression=first(_COMPRESSION, 1),
        samples=first(_SAMPLES, 1),
        tile_width=first(_TILE_WIDTH, 0),
        missing_tiles=numbers[_TILE_BYTES].count(0),
    )
    return page, following


def _values(stream: BinaryIO, order: str, big: bool, kind: int, field: bytes) -> tuple[int, ...]:
    """The numbers of a tag; they lie in the field itself where they fit, else where it points."""
    letter = _FORMATS.get(kind)
    if letter is None:
        return ()
    wide = 8 if big else 4
    count = struct.unpack(order + ("Q" if big else "I"), field[:wide])[0]
    length = count * struct.calcsize(order + letter)
    data = field[wide : 2 * wide]
    if length > wide:
        stream.seek(struct.unpack(order + ("Q" if big else "I"), data)[0])
        data = stream.read(length)
    return struct.unpack(f"{order}{count}{letter}", data[:length])
