"""What a search found: a frozen table of hits with their pictures."""

from __future__ import annotations

import io
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from encoder.errors import UsageError
from indexer.grid import tile_key
from indexer.store import Store
from query.engines.contract import Hits
from query.montage import Entry, draw_montage
from query.output_path import check_output_file, whole_file
from query.plan import Plan
from query.rows import TileRows

if TYPE_CHECKING:
    import pandas

MAX_SHEET_HITS = 500
# What the sheet can be written as, by the ending of the file.
SHEET_FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".pdf": "PDF",
}

# Columns of `slides` that say nothing about a hit.
_BOOKKEEPING = frozenset({"slide_id", "slide_no", "path", "fingerprint", "vendor", "registered_at", "mask"})


@dataclass(frozen=True)
class TilePlace:
    """Where a tile lies: its slide, corner and side in level-0 pixels."""

    slide_id: str
    x0: int
    y0: int
    extent_px0: int


@dataclass(frozen=True)
class Results:
    """Hits of one search, nearest first.

    Attributes:
        table: one row per hit: rank, tile_key, slide_id, x0, y0, extent_px0, distance, percentile, tissue,
            then the slide's columns; a slide's column that bears one of these names is called `slide_<name>`.
            The percentile is the percent of random pairs of tiles (see `plan.percentiles`) that are at most
            as distant; 0 where none of those measured was.
        tile_ids: int64 [hits].
        plan: how the search was answered.
        nothing_close: whether even the nearest hit is no nearer than random tiles often are.
        query_place: the indexed tile that was the query; None where the query was none.
    """

    table: pa.Table
    tile_ids: NDArray[np.int64]
    plan: Plan
    nothing_close: bool
    _store: Store = field(repr=False)
    query_place: TilePlace | None = None
    _query_tile_id: int | None = field(default=None, repr=False)
    _query_picture: Image.Image | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def query_image(self) -> Image.Image | None:
        """The query's picture; None for a vector."""
        if self._query_picture is not None or self._query_tile_id is None:
            return self._query_picture
        return self._thumbs([self._query_tile_id])[0]

    def explain(self) -> str:
        """How the search was answered: engine and why, expected recall, rows, notes, time of each step."""
        return str(self.plan)

    def to_pandas(self) -> pandas.DataFrame:
        """The table as a data frame."""
        return self.table.to_pandas()

    def to_json_rows(self) -> list[dict[str, Any]]:
        """The table as a list of objects that JSON can hold: no number in it is NaN or infinite."""
        return [{key: _plain(value) for key, value in row.items()} for row in self.table.to_pylist()]

    def to_geojson(self, slide_id: str | None = None) -> dict[str, Any]:
        """Outlines of the hits as a GeoJSON feature collection, as QuPath imports annotations.

        Args:
            slide_id: of the slide whose hits are wanted; coordinates are its level-0 pixels. None for the hits
                of all slides, which then share one collection: each names its slide.
        """
        features = []
        for row in self.to_json_rows():
            if slide_id is None or row["slide_id"] == slide_id:
                left, top, side = row["x0"], row["y0"], row["extent_px0"]
                corners = [(left, top), (left + side, top), (left + side, top + side), (left, top + side), (left, top)]
                features.append(
                    {
                        "type": "Feature",
                        "geometry": {"type": "Polygon", "coordinates": [[list(corner) for corner in corners]]},
                        "properties": {
                            "objectType": "annotation",
                            "name": f"hit {row['rank']}: distance {row['distance']:.4f}",
                            "slide_id": row["slide_id"],
                            "tile_key": row["tile_key"],
                            "distance": row["distance"],
                            "percentile": row["percentile"],
                        },
                    }
                )
        return {"type": "FeatureCollection", "features": features}

    def thumbnails(self) -> list[bytes | None]:
        """JPEG thumbnails of the hits in their order, as the store keeps them; None where it has none."""
        contents = self._store.thumbs(self.plan.grid_id, self.tile_ids.tolist())
        return [contents.get(tile_id) for tile_id in self.tile_ids.tolist()]

    def images(self) -> list[Image.Image | None]:
        """Thumbnails of the hits in their order, from the store; None where it has none."""
        return self._thumbs(self.tile_ids.tolist())

    def montage(self, path: Path | str | None = None, columns: int = 5) -> Image.Image:
        """Draw the query and the hits as one labelled sheet.

        Args:
            path: where to write it; the ending chooses PNG, JPEG, TIFF or PDF. None writes nothing.
            columns: hits per row.

        Raises:
            UsageError: there are more than 500 hits, or no such picture can be written there.
        """
        target = None if path is None else check_output_file(path, SHEET_FORMATS)
        if len(self) > MAX_SHEET_HITS:
            raise UsageError(f"A sheet shows at most {MAX_SHEET_HITS} hits, these are {len(self):,}.", "Ask for fewer.")
        rows = zip(self.table.to_pylist(), self.images(), strict=True)
        entries = [
            Entry(image, f"{row['rank']}: distance {row['distance']:.4f}", row["slide_id"], f"{row['x0']}, {row['y0']}")
            for row, image in rows
        ]
        sheet = draw_montage(self.query_image, self.plan.query, entries, columns)
        if target is not None:
            with whole_file(target) as part:
                sheet.save(part, SHEET_FORMATS[target.suffix.lower()])
        return sheet

    def _thumbs(self, tile_ids: Sequence[int]) -> list[Image.Image | None]:
        contents = self._store.thumbs(self.plan.grid_id, tile_ids)
        return [_decode(contents.get(tile_id)) for tile_id in tile_ids]


def told_columns(slides: pa.Table) -> pa.Table:
    """The columns of slides that results tell, and their ids."""
    return slides.select([name for name in slides.column_names if name == "slide_id" or name not in _BOOKKEEPING])


def hit_table(hits: Hits, percentiles: NDArray[np.float64], rows: TileRows, told: pa.Table) -> pa.Table:
    """The table of `Results` for rows found in `rows`, with what `told_columns` gave."""
    found = hits.rows
    about = told.take(pa.array(rows.slide_code[found]))
    slide_ids = about["slide_id"].to_pylist()
    x0, y0 = rows.x0[found], rows.y0[found]
    columns: dict[str, Any] = {
        "rank": np.arange(1, found.size + 1, dtype=np.int32),
        "tile_key": pa.array(
            [tile_key(*item) for item in zip(slide_ids, x0.tolist(), y0.tolist(), strict=True)], pa.string()
        ),
        "slide_id": about["slide_id"],
        "x0": x0,
        "y0": y0,
        "extent_px0": rows.extent_px0[found],
        "distance": hits.distances,
        "percentile": percentiles,
        "tissue": rows.tissue[found],
    }
    columns |= slide_columns(about, columns)
    return pa.table(columns)


def slide_columns(about: pa.Table, taken: Collection[str]) -> dict[str, Any]:
    """Columns of slides that say something about a tile; `slide_<name>` where a name is taken."""
    return {
        f"slide_{name}" if name in taken else name: about[name]
        for name in about.column_names
        if name not in _BOOKKEEPING
    }


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _decode(content: bytes | None) -> Image.Image | None:
    return None if content is None else Image.open(io.BytesIO(content)).convert("RGB")
