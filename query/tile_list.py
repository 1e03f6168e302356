"""Tiles in an order, as hits and collections have them, on their way out: a table, outlines, pictures, a sheet."""

from __future__ import annotations

import csv
import io
import json
import unicodedata
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from encoder.errors import UsageError
from indexer.store import Store
from query.montage import Entry, draw_montage
from query.output_path import check_output_file, whole_file

MAX_SHEET_TILES = 500
# What the sheet can be written as, by the ending of the file.
SHEET_FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".pdf": "PDF",
}

# A spreadsheet takes a cell that begins like this for a formula, and may run it.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class TileList:
    """Tiles in an order.

    Attributes:
        table: one row per tile: tile_key, slide_id, x0, y0, extent_px0 in level-0 pixels, and what else is known.
        tile_ids: int64 [tiles].
        grid_id: the grid that they belong to.
        labels: a short text for each.
        noun: what one of them is called.
        heading, words: of the sheet.
        picture: gives the picture of what was asked, None where there is none; itself None where nothing was.
    """

    table: pa.Table
    tile_ids: NDArray[np.int64]
    grid_id: str
    labels: tuple[str, ...]
    noun: str
    heading: str
    words: str
    _store: Store = field(repr=False)
    picture: Callable[[], Image.Image | None] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def slide_ids(self) -> tuple[str, ...]:
        """Slides of the tiles, in the order in which they first occur."""
        return tuple(dict.fromkeys(self.table["slide_id"].to_pylist()))

    def part(self, first: int, count: int) -> TileList:
        """Some of the tiles, from a position on."""
        chosen = slice(first, first + count)
        table, labels = self.table.slice(first, count), self.labels[chosen]
        return replace(self, table=table, tile_ids=self.tile_ids[chosen], labels=labels)

    def to_json_rows(self) -> list[dict[str, Any]]:
        """The table as a list of objects that JSON can hold: no number in it is NaN or infinite."""
        return json_rows(self.table)

    def to_csv(self) -> bytes:
        """All columns as CSV in UTF-8, with the mark that spreadsheets want.

        A text that a spreadsheet would take for a formula, since it begins with = + - @, a tab or a carriage return,
        gets an apostrophe before it. Numbers are written so that they read back the same.
        """
        names = self.table.column_names
        columns = [map(_cell, self.table[name].to_pylist()) for name in names]
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(map(_cell, names))
        writer.writerows(zip(*columns, strict=True))
        return text.getvalue().encode("utf-8-sig")

    def to_geojson(self, slide_id: str | None = None) -> dict[str, Any]:
        """Outlines as a GeoJSON feature collection, as QuPath imports annotations.

        Args:
            slide_id: of the slide whose tiles are wanted; coordinates are its level-0 pixels. None for the tiles
                of all slides, which then share one collection: each names its slide.
        """
        return _gathered([outline for place, outline in self._outlines() if slide_id in (None, place)])

    def to_geojson_zip(self) -> bytes:
        """One GeoJSON file per slide, in one ZIP file: QuPath imports outlines into one slide at a time."""
        by_slide: dict[str, list[dict[str, Any]]] = {}
        for slide_id, outline in self._outlines():
            by_slide.setdefault(slide_id, []).append(outline)
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, outlines in zip(file_names(by_slide), by_slide.values(), strict=True):
                archive.writestr(f"{name}.geojson", json.dumps(_gathered(outlines), allow_nan=False))
        return buffer.getvalue()

    def _outlines(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Slide and GeoJSON feature of each tile."""
        measures = [name for name in ("distance", "percentile") if name in self.table.column_names]
        for label, row in zip(self.labels, self.to_json_rows(), strict=True):
            left, top, side = row["x0"], row["y0"], row["extent_px0"]
            corners = [(left, top), (left + side, top), (left + side, top + side), (left, top + side), (left, top)]
            about = {"slide_id": row["slide_id"], "tile_key": row["tile_key"], **{name: row[name] for name in measures}}
            yield (
                row["slide_id"],
                {
                    "type": "Feature",
                    "geometry": {"type": "Polygon", "coordinates": [[list(corner) for corner in corners]]},
                    "properties": {"objectType": "annotation", "name": f"{self.noun} {label}", **about},
                },
            )

    def thumbnails(self) -> list[bytes | None]:
        """JPEG thumbnails in the order of the tiles, as the store keeps them; None where it has none."""
        contents = self._store.thumbs(self.grid_id, self.tile_ids.tolist())
        return [contents.get(tile_id) for tile_id in self.tile_ids.tolist()]

    def images(self) -> list[Image.Image | None]:
        """Thumbnails as pictures; None where the store has none."""
        return [decoded(content) for content in self.thumbnails()]

    def montage(self, path: Path | str | None = None, columns: int = 5) -> Image.Image:
        """Draw the tiles as one labelled sheet.

        Args:
            path: where to write it; the ending chooses PNG, JPEG, TIFF or PDF. None writes nothing.
            columns: tiles per row.

        Raises:
            UsageError: there are more than 500 tiles, or no such picture can be written there.
        """
        target = None if path is None else check_output_file(path, SHEET_FORMATS)
        if len(self) > MAX_SHEET_TILES:
            raise UsageError(
                f"A sheet shows at most {MAX_SHEET_TILES} tiles, these are {len(self):,}.", "Take fewer of them."
            )
        places = self.table.select(["slide_id", "x0", "y0"]).to_pylist()
        entries = [
            Entry(image, label, row["slide_id"], f"{row['x0']}, {row['y0']}")
            for row, label, image in zip(places, self.labels, self.images(), strict=True)
        ]
        asked = self.picture is not None
        picture = None if self.picture is None else self.picture()
        sheet = draw_montage(picture, self.words, entries, columns, heading=self.heading, framed=asked)
        if target is not None:
            with whole_file(target) as part:
                sheet.save(part, SHEET_FORMATS[target.suffix.lower()])
        return sheet

    def to_png(self, columns: int = 5) -> bytes:
        """The sheet of `montage` as the bytes of a PNG."""
        buffer = io.BytesIO()
        self.montage(columns=columns).save(buffer, "PNG")
        return buffer.getvalue()


def json_rows(table: pa.Table) -> list[dict[str, Any]]:
    """A table as a list of objects that JSON can hold: no number in it is NaN or infinite."""
    return [{key: _plain(value) for key, value in row.items()} for row in table.to_pylist()]


def decoded(content: bytes | None) -> Image.Image | None:
    """A JPEG as a picture."""
    return None if content is None else Image.open(io.BytesIO(content)).convert("RGB")


def file_names(slide_ids: Iterable[str]) -> list[str]:
    """Names of files for slides, of which no two become one where capitals and small letters are the same."""
    taken: set[str] = set()
    names = []
    for slide_id in slide_ids:
        plain = slide_id.replace("/", "_").replace("\\", "_")
        name, number = plain, 1
        while _folded(name) in taken:
            number += 1
            name = f"{plain} ({number})"
        taken.add(_folded(name))
        names.append(name)
    return names


def _folded(name: str) -> str:
    """The same for names that some file system takes for one."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _gathered(outlines: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "FeatureCollection", "features": outlines}


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _cell(value: Any) -> Any:
    """What a CSV file says of a value: nothing for none, and no text that would be run."""
    if isinstance(value, str) and value.startswith(_FORMULA_STARTS):
        return f"'{value}"
    if value is None or value != value:
        return ""
    return repr(value) if isinstance(value, float) else value
