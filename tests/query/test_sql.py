"""`run_sql`: what a SELECT reads from disk, what it may see, and its limits."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest

from encoder.errors import QueryError
from indexer import schema
from query.database import Limits
from query.sql import run_sql


@pytest.fixture
def reads(small, monkeypatch):
    """Columns and filter of each scan of a table on disk."""
    scans: list[tuple[list[str] | None, str]] = []
    kind = type(small.store.lance.dataset(schema.tiles_table_name(small.grid_id)))
    scanner = kind.scanner

    def spy(self, *args, **kwargs):
        scans.append((kwargs.get("columns"), str(kwargs.get("filter"))))
        return scanner(self, *args, **kwargs)

    monkeypatch.setattr(kind, "scanner", spy)
    return scans


def run(small, text, limits=Limits()):  # noqa: B008 - frozen
    return run_sql(small.store, small.store.slides(), text, limits).to_pylist()


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("SELECT count(*) FROM tiles", {"slide_no"}),
        ("SELECT count(*) FROM tiles WHERE tissue > 0.9", {"slide_no", "tissue"}),
        ("SELECT avg(x0) FROM tiles WHERE slide_id IN ('s0', 's1')", {"slide_no", "x0"}),
        ("SELECT tile_key FROM tiles WHERE y0 = 0 LIMIT 2", {"slide_no", "x0", "y0"}),
        ("SELECT * FROM tiles", {"tile_id", "slide_no", "x0", "y0", "extent_px0", "tissue"}),
        ("SELECT * FROM slides JOIN tiles USING (slide_no)", set(schema.TILES.names) - {"thumb", "image"}),
        ("SELECT 1 FROM slides", None),
        ("WITH a AS (SELECT x0 FROM tiles) SELECT max(x0) FROM a", {"slide_no", "x0"}),
    ],
)
def test_only_the_columns_that_are_needed_are_read(small, reads, text, columns):
    run(small, text)
    if columns is None:
        assert not reads
    for names, _ in reads:
        assert set(names) == columns
    assert len(reads) == (columns is not None)


def test_filters_reach_the_table(small, reads):
    assert run(small, "SELECT count(*) AS n FROM tiles WHERE slide_no IN (1, 3)") == [{"n": 72}]
    assert run(small, "SELECT count(*) AS n FROM tiles WHERE x0 > 128 AND y0 = 0 AND slide_no = 2") == [{"n": 4}]
    (_, several), (_, one) = reads
    assert "slide_no" in several
    assert all(name in one for name in ("x0", "y0", "slide_no"))


def test_tiles_of_unfinished_slides_are_not_seen(small):
    assert small.store.count(schema.tiles_table_name(small.grid_id)) == 7 * 36
    for name in ("tiles", f'"{schema.tiles_table_name(small.grid_id)}"', "TILES"):
        assert run(small, f"SELECT count(*) AS n, count(DISTINCT slide_id) AS s FROM {name}") == [{"n": 216, "s": 6}]
        assert run(small, f"SELECT count(*) AS n FROM {name} WHERE slide_id = 'crashed' OR slide_no = 6") == [{"n": 0}]


@pytest.mark.parametrize(
    "text",
    [
        'SELECT thumb FROM "tiles#rows"',
        'SELECT count(*) FROM "TILES#Rows", tiles',
        'SELECT * FROM tiles WHERE slide_no IN (SELECT slide_no FROM temp."tiles#slides")',
        'WITH a AS (SELECT * FROM "tiles#rows") SELECT 1 FROM a, tiles',
        'FROM tiles, (FROM main."tiles_{grid}#rows")',
    ],
)
def test_what_tiles_are_made_of_is_hidden(small, text):
    with pytest.raises(QueryError, match="there is no relation") as caught:
        run(small, text.format(grid=small.grid_id))
    assert "Relations are: slides" in str(caught.value)


@pytest.mark.parametrize(
    "text", ["SELECT thumb FROM tiles", "SELECT t.image FROM tiles t", "SELECT thumbnail FROM slides"]
)
def test_no_picture_is_offered(small, text):
    with pytest.raises(QueryError, match=r"not found|does not have a column"):
        run(small, text)


def test_rows_are_those_of_the_table(small):
    found = run(small, "SELECT tile_key, tissue FROM tiles ORDER BY tile_key")
    rows = sorted(range(len(small.x0)), key=small.key)
    assert [row["tile_key"] for row in found] == [small.key(n) for n in rows]
    assert [row["tissue"] for row in found] == pytest.approx(small.tissue[rows])


def test_every_relation_can_be_read(small):
    for name in ("annotations", "runs", "quarantine", "indexes"):
        assert run(small, f"SELECT count(*) AS n FROM {name}") == [{"n": 0}]
        run(small, f"SELECT * FROM {name}")


def test_annotations_are_filtered_on_disk(write_store, tmp_path, monkeypatch):
    made = write_store(tmp_path / "store", [{"slide_id": "a"}, {"slide_id": "b"}], side=2)
    made.store.annotate("grade", ["3", "o'x", None], [0, 1, 1], author="me")
    made.store.annotate("score", [1.5, float("nan")], [0, 0], made.tile_id[:2].tolist(), made.grid_id)
    for where, count in {
        "name = 'grade'": 3,
        "name = 'score' AND number > 1": 2,  # NaN is the largest number
        "number IN (1.5, 2)": 1,
        "number = 'nan'": 1,
        "value LIKE 'o%' AND author >= 'me'": 1,
        "value = 'o''x' OR tile_id IS NOT NULL": 3,
        "tile_id IS NULL AND slide_no BETWEEN 1 AND 5": 2,
        "\"at\" > TIMESTAMPTZ '2020-01-01 00:00:00+00' AND grid_id IS NULL": 3,
        "\"at\"::DATE > DATE '2020-01-01'": 5,
        "NOT (name = 'grade')": 2,
        "name IN ('a', 'grade') AND value IS DISTINCT FROM '3'": 2,
        "tile_id % 2 = 5": 0,
    }.items():
        assert run(made, f"SELECT count(*) AS n FROM annotations WHERE {where}") == [{"n": count}], where
    joined = "SELECT value FROM annotations a JOIN tiles t USING (tile_id) WHERE a.number < 2"
    assert json.dumps(run(made, joined)) == '[{"value": "1.5"}]'


def test_a_store_without_tiles_can_be_asked(tmp_path):
    from indexer.store import create_store

    store = create_store(str(tmp_path / "store"))
    slides = store.slides().append_column("status", pa.nulls(0, pa.string()))
    assert run_sql(store, slides, "SELECT count(*) AS n FROM slides", Limits()).to_pylist() == [{"n": 0}]
    with pytest.raises(QueryError, match="does not exist"):
        run_sql(store, slides, "SELECT * FROM tiles", Limits())


def test_limits_hold_for_what_is_on_disk(small):
    with pytest.raises(QueryError, match=r"stopped after 0\.3 s"):
        run(
            small,
            "SELECT count(*) FROM tiles a, tiles b, tiles c, tiles d WHERE a.x0 * b.x0 + c.y0 * d.y0 = 7",
            Limits(seconds=0.3),
        )
    with pytest.raises(QueryError, match="LIMIT"):
        run(small, "SELECT a.* FROM tiles a, tiles b, tiles c", Limits(memory_mib=16))
