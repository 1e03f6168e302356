"""What a search found: a frozen table of hits with their pictures."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from indexer.store import Store
from query.plan import Plan
from query.tile_list import TileList, decoded, json_rows

if TYPE_CHECKING:
    import pandas


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
        return decoded(self._store.thumbs(self.plan.grid_id, [self._query_tile_id]).get(self._query_tile_id))

    def explain(self) -> str:
        """How the search was answered: engine and why, expected recall, rows, notes, time of each step."""
        return str(self.plan)

    def to_pandas(self) -> pandas.DataFrame:
        """The table as a data frame."""
        return self.table.to_pandas()

    @property
    def listed(self) -> TileList:
        """The hits as they are written and drawn."""
        values = zip(self.table["rank"].to_pylist(), self.table["distance"].to_pylist(), strict=True)
        return TileList(
            table=self.table,
            tile_ids=self.tile_ids,
            grid_id=self.plan.grid_id,
            labels=tuple(f"{rank}: distance {distance:.4f}" for rank, distance in values),
            noun="hit",
            heading="Query",
            words=self.plan.query,
            _store=self._store,
            picture=lambda: self.query_image,
        )

    def to_json_rows(self) -> list[dict[str, Any]]:
        """The table as a list of objects that JSON can hold: no number in it is NaN or infinite."""
        return json_rows(self.table)

    def to_csv(self) -> bytes:
        """The table as CSV; see `TileList.to_csv`."""
        return self.listed.to_csv()

    def to_geojson(self, slide_id: str | None = None) -> dict[str, Any]:
        """Outlines of the hits, of one slide or of all; see `TileList.to_geojson`."""
        return self.listed.to_geojson(slide_id)

    def thumbnails(self) -> list[bytes | None]:
        """JPEG thumbnails of the hits in their order, as the store keeps them; None where it has none."""
        return self.listed.thumbnails()

    def images(self) -> list[Image.Image | None]:
        """Thumbnails of the hits in their order, from the store; None where it has none."""
        return self.listed.images()

    def montage(self, path: Path | str | None = None, columns: int = 5) -> Image.Image:
        """Draw the query and the hits as one labelled sheet; see `TileList.montage`."""
        return self.listed.montage(path, columns)
