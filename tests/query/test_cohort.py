"""A cohort on a small store: search, vectors, SQL, status, errors, and what it imports."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from encoder.errors import QueryError, StoreError
from query import open_cohort
from query.queries import PointQuery, TileQuery, VectorQuery


@pytest.fixture(scope="module")
def cohort(small):
    return open_cohort(str(small.path))


def expected(small, vector, k, allowed, per_slide=None, itself=None):
    """Plain float64 loop over the truth of the small store."""
    unit = np.asarray(vector, np.float64) / np.linalg.norm(np.asarray(vector, np.float64))
    scored = []
    for row in range(len(small.matrix)):
        if allowed(row):
            wide = small.matrix[row].astype(np.float64)
            distance = 0.0 if row == itself else max(0.0, 1 - float((wide * unit).sum() / np.linalg.norm(wide)))
            scored.append(
                (distance, row != itself, small.slide_ids[small.slide[row]], small.y0[row], small.x0[row], row)
            )
    scored.sort()
    kept, used = [], {}
    for item in scored:
        used[item[2]] = used.get(item[2], 0) + 1
        if per_slide is None or used[item[2]] <= per_slide:
            kept.append(item)
    return [(small.key(item[-1]), item[0]) for item in kept[:k]]


def found(results):
    return list(zip(results.table["tile_key"].to_pylist(), results.table["distance"].to_pylist(), strict=True))


def same(left, right):
    assert [key for key, _ in left] == [key for key, _ in right]
    np.testing.assert_allclose([d for _, d in left], [d for _, d in right], rtol=0, atol=1e-12)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    row=st.integers(0, 215),
    k=st.integers(1, 230),
    organ=st.sampled_from([None, "liver", "colon", "brain"]),
    tissue=st.sampled_from([None, 0.4, 0.95]),
    exclude=st.sets(st.sampled_from(["slide", "patient", "site"])),
    per_slide=st.sampled_from([None, 1, 3]),
)
def test_search_equals_oracle(small, cohort, row, k, organ, tissue, exclude, per_slide):
    slide_rows = {r["slide_id"]: r for r in cohort.slides.to_pylist()}
    mine = slide_rows[small.slide_ids[small.slide[row]]]

    def allowed(other):
        its = slide_rows[small.slide_ids[small.slide[other]]]
        if organ is not None and its["organ"] != organ:
            return False
        if tissue is not None and not small.tissue[other] > np.float32(tissue):
            return False
        if exclude and its["slide_id"] == mine["slide_id"]:
            return False
        if "patient" in exclude and mine["patient_id"] and its["patient_id"] == mine["patient_id"]:
            return False
        return not ("site" in exclude and its["site_id"] == mine["site_id"])

    terms = []
    if organ is not None:
        terms.append(f"organ = '{organ}'")
    if tissue is not None:
        terms.append(f"tissue > {tissue}::FLOAT")
    where = " AND ".join(terms) or None
    results = cohort.search(small.key(row), k, where, exclude, per_slide)
    same(found(results), expected(small, small.matrix[row], k, allowed, per_slide, row))
    assert results.table["rank"].to_pylist() == list(range(1, len(results) + 1))
    assert results.plan.rows_total == 216
    assert results.plan.rows_matching == sum(map(allowed, range(216)))


def test_a_tile_finds_itself_first(small, cohort):
    for row in (0, 100, 215):
        results = cohort.search(TileQuery(small.key(row)), k=3)
        assert results.table["tile_key"][0].as_py() == small.key(row)
        assert results.table["distance"][0].as_py() <= 1e-6
        assert results.table["extent_px0"][0].as_py() == 128


def test_a_filter_that_leaves_seven_rows_returns_seven(small, cohort):
    low = np.sort(small.tissue)[-7]
    results = cohort.search(small.key(0), k=20, where=f"tissue >= {float(low)!r}::FLOAT")
    assert len(results) == 7
    assert any("Only 7 of the 20" in note for note in results.plan.notes)
    assert results.plan.rows_scanned == 7


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"k": 20, "per_slide": 1}, "Only 6 of the 20 asked tiles exist with per_slide 1."),
        ({"k": 300}, "Only 216 of the 300 asked tiles exist in these vectors."),
        ({"k": 20, "where": "x0 < 0"}, "Only 0 of the 20 asked tiles exist after the filters."),
        ({"k": 9, "where": "organ = 'liver'", "per_slide": 2}, "exist after the filters and with per_slide 2."),
    ],
)
def test_fewer_hits_than_asked_are_explained(cohort, options, says):
    notes = [note for note in cohort.search(np.ones(16), **options).plan.notes if "Nothing close" not in note]
    assert [note for note in notes if note.endswith(says)] == list(notes)


def test_k_beyond_the_table_returns_every_row_once(small, cohort):
    results = cohort.search(VectorQuery(np.ones(16)), k=100_000)
    assert sorted(results.table["tile_key"].to_pylist()) == sorted(small.key(row) for row in range(216))


def test_rows_of_an_unfinished_slide_are_not_seen(small, cohort):
    assert small.store.count(f"vectors_{small.encoder_id}_{small.grid_id}") == 252
    assert "crashed" not in cohort.search(np.ones(16), k=1000).table["slide_id"].to_pylist()
    assert cohort.vectors().matrix.shape == (216, 16)
    assert cohort.sql("SELECT count(*) AS n FROM tiles").to_pylist() == [{"n": 216}]
    with pytest.raises(QueryError, match="crashed has no vectors"):
        cohort.search("crashed@0,0")


def test_point_takes_the_tile_that_holds_it(small, cohort):
    results = cohort.search(PointQuery("s2", 300, 140), k=1)
    assert results.table["tile_key"].to_pylist() == ["s2@256,128"]
    assert "s2@256,128" in results.plan.notes[0]
    with pytest.raises(QueryError, match="outside"):
        cohort.search(PointQuery("s2", 5000, 0))
    with pytest.raises(QueryError, match=r"cannot be read at 1900,1900"):  # no tile there, and no file
        cohort.search(PointQuery("s2", 1900, 1900))


def test_plan_says_what_was_done(small, cohort):
    plan = cohort.search(small.key(200), k=2, where="organ IS NULL", exclude=["patient"]).plan
    assert plan.excluded == 1 and plan.rows_matching == 0
    assert any("1 of 7 slides have no known patient, the query's among them" in note for note in plan.notes)
    assert set(plan.seconds) == {"load", "query", "filter", "plan", "scan", "percentiles", "rows"}
    assert "organ IS NULL" in str(plan) and "exact" in str(plan)


@pytest.mark.parametrize(
    ("query", "options", "says"),
    [
        ("s0@5,0", {}, "nearest is s0@0,0"),
        ("s9@0,0", {}, "no slide 's9'"),
        ("S0@0,0", {}, "Did you mean 's0'"),
        ("nothing", {}, "neither a tile key nor a picture"),
        (np.ones(15), {}, "16 numbers"),
        (np.full(16, np.nan), {}, "not finite"),
        (np.zeros(16), {}, "all zeros"),
        (np.ones((2, 16)), {}, "cannot be"),
        ("s0@0,0", {"k": 0}, "at least 1"),
        ("s0@0,0", {"k": 2.5}, "at least 1"),
        ("s0@0,0", {"per_slide": 0}, "at least 1"),
        ("s0@0,0", {"encoder": "other"}, "toy-12345678"),
        ("s0@0,0", {"grid": "other"}, "no vectors of grid 'other'"),
        ("s0@0,0", {"where": "orgn = 'liver'"}, "Did you mean 'organ'"),
        ("s0@0,0", {"exclude": ["organ"]}, "exclude does not know 'organ'"),
        (np.ones(16), {"exclude": ["slide"]}, "has no slide"),
    ],
)
def test_wrong_questions_get_one_sentence(cohort, query, options, says):
    with pytest.raises(QueryError) as caught:
        cohort.search(query, **options)
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_vectors_are_aligned_and_read_only(small, cohort):
    everything = cohort.vectors()
    np.testing.assert_array_equal(everything.matrix, small.matrix)
    assert everything.table["slide_id"].to_pylist() == [small.slide_ids[s] for s in small.slide]
    assert np.shares_memory(everything.matrix, cohort.vectors(columns=()).matrix)
    with pytest.raises(ValueError, match="read-only"):
        everything.matrix[0, 0] = 1
    some = cohort.vectors("organ = 'liver' AND x0 = 128", ["tile_id", "organ", "y0"])
    rows = [r for r in range(216) if small.slide[r] < 2 and small.x0[r] == 128]
    np.testing.assert_array_equal(some.matrix, small.matrix[rows])
    assert some.table["tile_id"].to_pylist() == small.tile_id[rows].tolist()
    assert set(some.table["organ"].to_pylist()) == {"liver"}
    assert not some.matrix.flags.writeable
    with pytest.raises(QueryError, match="'organ'"):
        cohort.vectors(columns=["orgn"])


def test_memory_budget_is_kept(small):
    needed = 216 * 4 * 16
    assert "resident" in open_cohort(str(small.path), memory_budget=needed).search("s0@0,0").plan.engine
    tight = open_cohort(str(small.path), memory_budget=needed - 1)
    assert "streaming" in tight.search("s0@0,0").plan.engine
    with pytest.raises(QueryError, match=r"216 vectors of 16 numbers need .* GiB"):
        tight.vectors()
    assert tight.vectors(where="slide_id = 's1'").matrix.shape == (36, 16)


def test_sql_over_the_relations(cohort):
    per_organ = cohort.sql("SELECT organ, count(*) AS n FROM tiles JOIN slides USING (slide_no) GROUP BY organ")
    assert {row["organ"]: row["n"] for row in per_organ.to_pylist()} == {
        "liver": 72,
        "colon": 72,
        "o'hare": 36,
        None: 36,
    }
    grid = cohort.grids["grid_id"][0].as_py()
    assert cohort.sql(f'SELECT count(*) AS n FROM "tiles_{grid}"').to_pylist() == [{"n": 216}]
    assert "thumb" not in cohort.sql("SELECT * FROM tiles LIMIT 1").column_names
    assert "thumbnail" not in cohort.sql("SELECT * FROM slides LIMIT 1").column_names
    states = cohort.sql("SELECT status, count(*) AS n FROM slides GROUP BY status ORDER BY status").to_pylist()
    assert states == [{"status": "indexed", "n": 6}, {"status": "registered", "n": 1}]
    for name in ("annotations", "runs", "quarantine"):
        assert cohort.sql(f"SELECT count(*) AS n FROM {name}").to_pylist() == [{"n": 0}]
    with pytest.raises(QueryError, match="Relations are: slides, annotations"):
        cohort.sql("SELECT * FROM nothing")
    with pytest.raises(QueryError, match="sql"):
        cohort.sql("DROP TABLE slides")


def test_status_is_json(cohort):
    status = json.loads(json.dumps(cohort.status()))
    assert status["slides"] == {"registered": 1, "indexed": 6, "empty": 0, "quarantined": 0}
    assert status["vectors"][0]["rows"] == 252 and status["rows"]["slides"] == 7
    assert status["last_run"] is None


def test_several_encoders_must_be_chosen_and_new_rows_are_seen(tmp_path, write_store):
    slides = [{"slide_id": "a"}, {"slide_id": "b"}]
    path = tmp_path / "store"
    first = write_store(path, slides, side=3, unfinished=("b",))
    cohort = open_cohort(str(path))
    assert len(cohort.search("a@0,0", k=100)) == 9
    name = f"vectors_{first.encoder_id}_{first.grid_id}"
    row = {"table_name": name, "slide_no": 1, "slide_id": "b", "rows": 9, "tiles": 9, "reasons": "{}"}
    schema = first.store.table_schema("done")
    done = pa.Table.from_pylist([dict.fromkeys(schema.names) | row], schema=schema)
    first.store.lance.append("done", "done", done)
    assert len(cohort.search("a@0,0", k=100)) == 18
    assert cohort.slides["status"].to_pylist() == ["indexed", "indexed"]
    write_store(path, slides, side=3, seed=5, dim=8, encoder_id="second-00000000")
    with pytest.raises(QueryError, match=r"2 sets of vectors fit.*second-00000000"):
        cohort.search("a@0,0")
    assert cohort.search("a@0,0", encoder="second").plan.encoder_id == "second-00000000"
    assert cohort.vectors(encoder="toy-12345678").matrix.shape == (18, 16)


def test_a_slide_that_is_being_replaced_is_left_out(tmp_path, write_store):
    small = write_store(tmp_path / "store", [{"slide_id": "a"}, {"slide_id": "b"}], side=3)
    cohort = open_cohort(str(small.path))
    assert len(cohort.search("a@0,0", k=100)) == 18
    small.store.lance.delete("x", f"vectors_{small.encoder_id}_{small.grid_id}", "slide_no = 1 AND x0 = 0")
    results = cohort.search("a@0,0", k=100)
    assert set(results.table["slide_id"].to_pylist()) == {"a"}
    assert any("1 slides are being indexed again" in note for note in results.plan.notes)


def test_new_columns_are_seen_without_reading_vectors_again(tmp_path, write_store):
    small = write_store(tmp_path / "store", [{"slide_id": "b"}], side=3)
    cohort = open_cohort(str(small.path))
    before = cohort.vectors().matrix
    small.store.lance.add_columns("x", "slides", [pa.field("grade", pa.string())])
    schema = small.store.table_schema("slides")
    row = dict.fromkeys(schema.names) | {"slide_id": "a", "slide_no": 1, "path": "x", "grade": "high"}
    small.store.lance.append("x", "slides", pa.Table.from_pylist([row], schema=schema))
    results = cohort.search("b@0,0", k=3, where="grade IS NULL")
    assert len(results) == 3 and set(results.table["slide_id"].to_pylist()) == {"b"}
    assert np.shares_memory(cohort.vectors().matrix, before)


def test_threads_may_search_at_once(small):
    cohort = open_cohort(str(small.path))
    keys = [small.key(row) for row in range(0, 216, 9)]
    alone = open_cohort(str(small.path))
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda key: found(cohort.search(key, k=5, where="tissue > 0.4")), keys))
    assert answers == [found(alone.search(key, k=5, where="tissue > 0.4")) for key in keys]


def test_absent_and_empty_stores(tmp_path, write_store):
    with pytest.raises(StoreError, match="no store"):
        open_cohort(str(tmp_path / "nothing"))
    from indexer.store import create_store

    create_store(str(tmp_path / "empty"))
    cohort = open_cohort(str(tmp_path / "empty"))
    assert cohort.slides.num_rows == 0
    with pytest.raises(QueryError, match="no vectors yet"):
        cohort.search(np.ones(4))
    assert cohort.status()["slides"]["indexed"] == 0


def test_opening_and_searching_import_neither_torch_nor_openslide(small):
    program = (
        "import sys; from query import open_cohort; c = open_cohort(sys.argv[1]);"
        "r = c.search('s0@0,0', k=2, where='x0 > 0'); r.montage(); c.sql('SELECT 1 FROM slides'); c.status();"
        "print([m for m in ('torch', 'openslide', 'pyvips', 'streamlit', 'scipy', 'timm') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", program, str(small.path)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "[]" and ran.stderr == ""
