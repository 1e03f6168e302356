"""The table of hits: few are made in another way than many, and are the same."""

from __future__ import annotations

import datetime
import math
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest

from indexer.grid import tile_key
from query import hit_table
from query.engines.contract import Hits
from query.hit_table import FEW_HITS, HitTables
from query.rows import TileRows

SLIDES = pa.table(
    {
        "slide_id": ["a", "b", "c"],
        "path": ["/a", "/b", "/c"],
        "slide_no": pa.array([2, 0, 1], pa.int32()),
        "mpp": [0.25, None, math.nan],
        "organ": pa.chunked_array([["liver", None], ["kölon"]]),
        "distance": pa.array([1, 2, None], pa.int64()),
        "x0": ["p", "q", "r"],
        "flag": [True, None, False],
        "nothing": pa.nulls(3),
        "kind": pa.array(["u", "v", "u"]).dictionary_encode(),
        "taken": pa.array([datetime.date(2020, 2, 29), None, datetime.date(1, 1, 1)]),
        "seen": pa.array([datetime.datetime(2026, 1, 2, 3, 4, 5, 678901), None, None], pa.timestamp("us", tz="UTC")),
        "price": pa.array([Decimal("1.50"), None, Decimal("-0.01")]),
        "marks": pa.array([["x", None], [], None], pa.list_(pa.string())),
        "half": pa.array([0.1, None, 3e38], pa.float32()),
    }
)
TOLD = ["mpp", "organ", "slide_distance", "slide_x0", "flag", "nothing", "kind", "taken", "seen", "price", "marks"]


def rows_and_hits(count):
    rng = np.random.default_rng(count)
    numbers = {"x0": 10**6, "y0": 10**6, "extent_px0": 512}
    drawn = {name: rng.integers(0, most, 500).astype(np.int32) for name, most in numbers.items()}
    codes = rng.integers(0, 3, 500).astype(np.int32)
    rows = TileRows(
        "encoder", "grid", 1, 8, np.arange(500), codes, codes, **drawn,
        tissue=rng.random(500).astype(np.float32), table_rows=500,
    )  # fmt: skip
    found = rng.permutation(500)[:count]
    percentiles = np.where(rng.random(count) < 0.5, np.nan, rng.random(count))
    return rows, Hits(found, np.sort(rng.random(count))), percentiles


@pytest.mark.parametrize("count", [0, 1, 10, FEW_HITS, FEW_HITS + 1, 500])
def test_few_and_many_hits_have_the_same_table(count, monkeypatch):
    rows, hits, percentiles = rows_and_hits(count)
    tables = []
    for few in (0, 500):
        monkeypatch.setattr(hit_table, "FEW_HITS", few)
        tables.append(HitTables(SLIDES).table(hits, percentiles, rows))
    by_columns, by_rows = tables
    assert by_columns.schema.equals(by_rows.schema, check_metadata=True)
    assert by_columns.to_pylist().__repr__() == by_rows.to_pylist().__repr__()  # NaN is not equal to itself
    by_rows.validate(full=True)
    by_columns.validate(full=True)


def test_slides_of_which_nothing_is_known_are_told_by_their_ids():
    rows, hits, percentiles = rows_and_hits(3)
    table = HitTables(SLIDES.select(["slide_id", "path"])).table(hits, percentiles, rows)
    assert table.num_columns == 9
    assert table["slide_id"].to_pylist() == ["abc"[code] for code in rows.slide_code[hits.rows]]


def test_each_hit_is_told_with_its_slide():
    rows, hits, percentiles = rows_and_hits(20)
    table = HitTables(SLIDES).table(hits, percentiles, rows)
    assert table.column_names[9:] == [*TOLD, "half"]
    slides = SLIDES.to_pylist()
    for place, told in enumerate(table.to_pylist()):
        row, slide = hits.rows[place], slides[rows.slide_code[hits.rows[place]]]
        assert told["rank"] == place + 1 and told["slide_id"] == slide["slide_id"]
        assert (told["x0"], told["y0"], told["extent_px0"]) == (rows.x0[row], rows.y0[row], rows.extent_px0[row])
        assert told["tile_key"] == tile_key(slide["slide_id"], int(rows.x0[row]), int(rows.y0[row]))
        assert told["distance"] == hits.distances[place] and told["tissue"] == rows.tissue[row]
        assert (told["slide_x0"], told["slide_distance"]) == (slide["x0"], slide["distance"])
        assert all(told[name] == slide[name] for name in ("organ", "taken", "seen", "price", "marks", "kind"))
