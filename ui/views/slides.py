"""The slides that a page offers, looked up by id without unpacking a table of thousands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from query.choice import VectorTable
from query.cohort import Cohort


@dataclass(frozen=True)
class Slides:
    """Slides that can be searched.

    Attributes:
        ids: of those that have vectors, sorted.
        numbers: of all slides by id.
    """

    ids: tuple[str, ...]
    numbers: dict[str, int]
    _table: pa.Table
    _rows: dict[str, int]

    def __contains__(self, slide_id: object) -> bool:
        return slide_id in self._rows

    def row(self, slide_id: str) -> dict[str, Any]:
        """What the store knows of one of them."""
        return dict(self._table.slice(self._rows[slide_id], 1).to_pylist()[0])


def searchable(cohort: Cohort, tables: Sequence[VectorTable]) -> Slides:
    """Slides that have vectors in at least one of the tables."""
    table = cohort.slides
    all_ids = table["slide_id"].to_pylist()
    rows = {slide_id: number for number, slide_id in enumerate(all_ids)}
    found = {slide_id for one in tables for slide_id in cohort.searchable_slides(one.encoder_id, one.grid_id)}
    ids = tuple(slide_id for slide_id in all_ids if slide_id in found)
    numbers = dict(zip(all_ids, table["slide_no"].to_pylist(), strict=True))
    return Slides(ids, numbers, table, {slide_id: rows[slide_id] for slide_id in ids})
