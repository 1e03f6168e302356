"""The table of a search's hits: where each tile lies and how far away it is, and what is known of its slide."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from indexer.grid import tile_key
from query.engines.contract import Hits
from query.rows import TileRows
from query.slide_columns import slide_columns, told_columns

_OF_THE_HIT = pa.schema(
    {
        "rank": pa.int32(),
        "tile_key": pa.string(),
        "slide_id": pa.string(),
        "x0": pa.int32(),
        "y0": pa.int32(),
        "extent_px0": pa.int32(),
        "distance": pa.float64(),
        "percentile": pa.float64(),
        "tissue": pa.float32(),
    }
)
# Measured: a call of Arrow costs 10 to 100 us where a scan has emptied the processor's caches. Up to so many hits it is
# quicker to make rows of them in Python and convert those in one call than to take and convert each column.
FEW_HITS = 50


class HitTables:
    """Makes the tables of hits among the tiles of some slides.

    Args:
        slides: the cohort's slides, sorted by id.
    """

    def __init__(self, slides: pa.Table) -> None:
        told = told_columns(slides)
        about = slide_columns(told, _OF_THE_HIT.names)
        # Rows of one batch are taken faster than a table's.
        self._about = pa.record_batch([column.combine_chunks() for column in about.values()], names=list(about))
        self._slide_ids = told["slide_id"].to_pylist()
        self._schema = pa.schema([*_OF_THE_HIT, *self._about.schema])
        self._row = pa.struct(self._schema)

    def table(self, hits: Hits, percentiles: NDArray[np.float64], rows: TileRows) -> pa.Table:
        """The table of `Results` for hits among `rows`, with the percentiles of their distances [hits]."""
        found = hits.rows
        of_the_hit = (
            rows.slide_code[found],
            rows.x0[found],
            rows.y0[found],
            rows.extent_px0[found],
            hits.distances,
            percentiles,
            rows.tissue[found],
        )
        return self._by_rows(*of_the_hit) if len(hits) <= FEW_HITS else self._by_columns(*of_the_hit)

    @cached_property
    def _spelled(self) -> list[dict[str, Any]]:
        """What is told of each slide, in Python."""
        return self._about.to_pylist() or [{}] * len(self._slide_ids)  # a batch without columns has no rows

    def _by_rows(self, *of_the_hit: NDArray[Any]) -> pa.Table:
        out = []
        listed = zip(*(values.tolist() for values in of_the_hit), strict=True)
        for rank, (code, x0, y0, extent_px0, distance, percentile, tissue) in enumerate(listed, 1):
            slide_id = self._slide_ids[code]
            out.append(
                {
                    "rank": rank,
                    "tile_key": tile_key(slide_id, x0, y0),
                    "slide_id": slide_id,
                    "x0": x0,
                    "y0": y0,
                    "extent_px0": extent_px0,
                    "distance": distance,
                    "percentile": percentile,
                    "tissue": tissue,
                    **self._spelled[code],
                }
            )
        batch = pa.RecordBatch.from_struct_array(pa.array(out, self._row))
        return pa.Table.from_batches([batch], self._schema)

    def _by_columns(
        self,
        codes: NDArray[np.int32],
        x0: NDArray[np.int32],
        y0: NDArray[np.int32],
        extents_px0: NDArray[np.int32],
        distances: NDArray[np.float64],
        percentiles: NDArray[np.float64],
        tissue: NDArray[np.float32],
    ) -> pa.Table:
        slide_ids = [self._slide_ids[code] for code in codes.tolist()]
        keys = [tile_key(*place) for place in zip(slide_ids, x0.tolist(), y0.tolist(), strict=True)]
        ranks = np.arange(1, codes.size + 1, dtype=np.int32)
        about = self._about.take(pa.array(codes)).columns
        columns = [ranks, keys, slide_ids, x0, y0, extents_px0, distances, percentiles, tissue, *about]
        arrays = [pa.array(values, field.type) for values, field in zip(columns, self._schema, strict=True)]
        return pa.Table.from_arrays(arrays, schema=self._schema)
