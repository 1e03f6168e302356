"""`where` taken apart: the same rows as the whole expression on tiles joined to their slides."""

from __future__ import annotations

import gc
import subprocess
import sys
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from encoder.errors import QueryError
from query import filters
from query.database import LimitError, Limits, shared_database
from query.expression import parse_expression, renamed, texts_of
from query.filters import RowFilter

SLIDES = 9


def make(rows=400, contiguous=True, homeless=False, limits=None, small=400):
    rng = np.random.default_rng(rows)
    code = rng.integers(SLIDES, size=rows)
    code = np.sort(code).astype(np.int32) if contiguous else code
    slides = pa.table(
        {
            "slide_no": pa.array(rng.permutation(SLIDES).astype(np.int32)),
            "organ": ["liver", "Liver", None, "o'hare", "kölon", "", "7", "12", "liver"],
            "age": pa.array([50.0, None, float("nan"), 70.0, -1.5, 1e300, 0.0, 61.5, None]),
            "flag": pa.array([True, False, None] * 3),
            "count": pa.array([1, 2, None, 4, 2**31 - 1, -6, 7, 0, 9], pa.int32()),
            "taken": ["2020-01-01", "x", None, "1999-12-31", "2020-02-29", "", "2021-07-01", "2020-01-01", "y"],
            "matches": pa.array(np.arange(SLIDES)),
            "Größe, cm": pa.array(np.linspace(0, 2, SLIDES)),
            "kind": pa.array(["a", "b", None] * 3).dictionary_encode(),
            "tissue": pa.array(np.linspace(0, 1, SLIDES)),
        }
    )
    number = slides["slide_no"].to_numpy()[code]
    if homeless:
        code, number = code.copy(), number.copy()
        code[::7], number[::7] = -1, 99
    tiles = pa.table(
        {
            "tile_id": np.arange(rows),
            "slide_no": number,
            "x0": rng.integers(0, 1000, rows).astype(np.int32),
            "y0": pa.array(rng.integers(0, 9, rows).astype(np.int32), mask=rng.random(rows) < 0.2),
            "tissue": pa.array(
                np.where(rng.random(rows) < 0.1, np.nan, rng.random(rows)).astype(np.float32),
                mask=rng.random(rows) < 0.1,
            ),
        }
    )
    return RowFilter(slides, tiles, code, limits, small), slides, tiles


def whole(connection, rows, text):
    """The oracle: one SELECT over the join; None where DuckDB refuses it."""
    mask = np.zeros(rows, np.bool_)
    query = f"SELECT tile_id FROM tiles JOIN slides USING (slide_no) WHERE ({text}\n)"
    try:
        mask[connection.sql(query).fetchnumpy()["tile_id"]] = True
    except duckdb.Error:
        return None
    return mask


@cache
def prepared(contiguous, homeless):
    """Filters that take the terms in turn and all at once, and the oracle's connection."""
    in_turn, slides, tiles = make(contiguous=contiguous, homeless=homeless, small=0)
    at_once = make(contiguous=contiguous, homeless=homeless)[0]
    connection = duckdb.connect(":memory:")
    connection.register("slides", slides)
    connection.register("tiles", tiles)
    return (in_turn, at_once), connection


def teardown_module():
    for contiguous, homeless in ((True, True), (True, False), (False, True), (False, False)):
        prepared(contiguous, homeless)[1].close()
    prepared.cache_clear()


SLIDE_TERMS = [
    "organ = 'liver'",
    "organ = 'o''hare'",
    "organ COLLATE NOCASE = 'LIVER'",
    "organ ILIKE 'L%' -- livers\n",
    "organ IN ('liver', NULL, 'kölon')",
    "organ NOT IN ('liver', NULL)",
    "organ IS NULL",
    "Organ IS DISTINCT FROM 'liver'",
    "CAST(organ AS INTEGER) > 5",
    "organ BETWEEN 'a' AND 'm'",
    "TRY_CAST(taken AS DATE) > DATE '2020-01-15' - INTERVAL 3 WEEK",
    "CAST(taken AS DATE) < '2020-06-01'",
    "age > 55",
    "age NOT BETWEEN 0 AND 1e10",
    "age = 'nan'",
    "flag",
    "NOT flag",
    "count",
    "count * 2 > -5",
    "-count < 3",
    "10 / count > 1",
    "matches % 2 = 1",
    '"Größe, cm" >= .5',
    "kind = 'a'",
    "CASE WHEN flag THEN organ = 'liver' WHEN age > 60 THEN NULL ELSE true END",
    "slides.tissue < 0.7",
    "slide_no IN (1, 3, 5)",
    "slide_no = 4",
    "slides.slide_no >= 2",
    "lower(organ) LIKE '%l_v%' ESCAPE '!'",
]
TILE_TERMS = [
    "x0 > 500",
    "x0 BETWEEN 100 AND 900",
    "y0 IS NULL",
    "y0 NOT IN (1, 2, 3)",
    "y0",
    "tiles.tissue > 0.3",
    "NOT (tiles.tissue > 0.9::FLOAT)",
    "tiles.tissue = tiles.tissue",
    "x0 % 3 = 0 OR y0 > 5",
    "1000 / y0 > 300",
    "x0 * 5000000 > 1",
    "CASE WHEN y0 > 3 THEN x0 < 300 END",
    "tiles.slide_no > 3",
    "x0 > slide_no * 100",
    "tile_id < 4",
]
MIXED_TERMS = [
    "organ = 'liver' OR x0 > 900",
    "tiles.tissue > slides.tissue",
    "coalesce(age, 50) * 10 < x0",
    "CASE WHEN kind = 'a' THEN y0 > 2 ELSE flag END",
    "NOT (flag AND y0 > 3)",
    "count > y0 OR organ IS NULL",
    "(CAST(organ AS INTEGER) > 5 AND y0 = 1) OR x0 < 10",
    "if(slides.slide_no > 4, x0, matches) > 5",
    "concat(organ, x0) LIKE '%r1%'",
    "slide_no + tiles.slide_no + slides.slide_no + x0 > count",
]
CONSTANTS = ["true", "false", "NULL", "1", "'yes'"]
terms = st.one_of(*(st.sampled_from(group) for group in (SLIDE_TERMS, TILE_TERMS, MIXED_TERMS, CONSTANTS)))
negated = st.one_of(terms, terms.map(lambda term: f"NOT ({term}\n)"))
either = st.lists(negated, min_size=2, max_size=3).map(lambda some: " OR ".join(f"({term}\n)" for term in some))
conjunctions = st.lists(st.one_of(terms, terms, negated, either), min_size=1, max_size=4).map(
    lambda some: " AND ".join(f"({term}\n)" for term in some)
)
nested = st.lists(conjunctions, min_size=1, max_size=2).map(lambda some: " and ".join(f"({term}\n)" for term in some))


@settings(max_examples=400, deadline=None)
@given(text=nested, contiguous=st.booleans(), homeless=st.booleans())
@example("organ IN ('7', '12') AND CAST(organ AS INTEGER) > 8", True, False)
@example("organ IN ('7', '12') AND x0 > 8 AND CAST(organ AS INTEGER) * x0 > 8", True, False)
@example("y0 <> 0 AND 1000 / y0 > 300 AND flag", False, True)
@example(
    "organ = 'o''hare' AND concat(organ, x0) LIKE '%r1%' AND ((CAST(organ AS INTEGER) > 5 AND y0 = 1) OR x0 < 10)",
    False,
    False,
)
def test_taken_apart_or_not_the_rows_are_the_same(text, contiguous, homeless):
    both, connection = prepared(contiguous, homeless)
    expected = whole(connection, 400, text)
    for rows in both:
        try:
            found = rows._resolve(text)
        except QueryError as error:
            assert expected is None or "true or false" in error.message
        else:
            assert expected is None or found.tolist() == expected.tolist()


@pytest.mark.parametrize("term", [*SLIDE_TERMS, *TILE_TERMS, *MIXED_TERMS])
@pytest.mark.parametrize("beside", ["true", "x0 >= 0", "flag", "x0 + matches >= 0"])
def test_each_term_beside_others(term, beside):
    both, connection = prepared(True, True)
    text = f"({term}\n) AND {beside}"
    expected = whole(connection, 400, text)
    if expected is not None:
        for rows in both:
            np.testing.assert_array_equal(rows.mask(text), expected)


# A cast that its AND keeps from failing is for the join.
@pytest.mark.parametrize(
    "text", [*(term for term in MIXED_TERMS if "CAST" not in term), "flag AND y0", "count AND tiles.tissue > 0.5"]
)
@pytest.mark.parametrize("small", [0, 50])
def test_plain_terms_are_not_joined(text, small, monkeypatch):
    monkeypatch.setattr(RowFilter, "_as_a_whole", lambda *_: pytest.fail("joined"))
    make(50, small=small)[0].mask(text)


def test_of_one_form_only_the_first_text_is_parsed(monkeypatch):
    rows, slides, tiles = make()
    rows.mask("lower(organ) = 'liver' OR x0 < 10")
    parse = filters.parse_expression
    monkeypatch.setattr(filters, "parse_expression", lambda text, _: pytest.fail(f"parsed {text}"))
    names = dict(zip(slides["slide_no"].to_pylist(), slides["organ"].to_pylist(), strict=True))
    organs = np.array([(names[number] or "").lower() for number in tiles["slide_no"].to_pylist()])
    for organ, most in (("12", 200), ("liver", 0), ("", 50)):
        found = rows.mask(f"lower(organ) = '{organ}' OR x0 < {most}")
        known = np.array([names[number] is not None for number in tiles["slide_no"].to_pylist()])
        np.testing.assert_array_equal(found, (known & (organs == organ)) | (tiles["x0"].to_numpy() < most))
    monkeypatch.setattr(filters, "parse_expression", parse)
    with pytest.raises(QueryError, match="no column 'orgn'"):
        rows.mask("lower(orgn) = 'liver' OR x0 < 10")
    with pytest.raises(QueryError, match="may not use the function 'repeat'"):
        rows.mask("repeat(organ) = 'liver' OR x0 < 10")


def test_what_is_written_several_times_is_computed_once():
    rows, _, _ = make(20_000, small=20_000)
    term = "length(reverse(lower(concat(organ, organ, organ, organ)))) <> "

    def seconds(terms: int) -> float:
        times = []
        for turn in range(4):
            text = " OR ".join(f"{term}{1000 * terms + 100 * turn + n}" for n in range(terms))
            started = time.process_time()
            rows.mask(text)
            times.append(time.process_time() - started)
        return min(times[1:])

    assert seconds(40) < 12 * seconds(1)


@pytest.mark.parametrize("small", [0, 400])
@pytest.mark.parametrize(
    "text", ["NOT " * 500 + "flag", "abs(" * 900 + "x0" + ")" * 900 + " > 1", "CASE WHEN flag THEN " * 400 + "flag END"]
)
def test_what_is_nested_too_deeply_is_refused_in_one_sentence(text, small):
    rows, _, _ = make(small=small)
    with pytest.raises(QueryError):
        rows.mask(text)
    with pytest.raises(QueryError):
        rows.slides(text)


def test_a_constant_that_does_not_fit_is_refused_whatever_fitted_before():
    rows, _, _ = make()
    assert rows.mask("x0 + 0 = '5' OR false").sum() == rows.mask("x0 = 5").sum()
    with pytest.raises(QueryError, match="Could not convert string 'five'"):
        rows.mask("x0 + 0 = 'five' OR false")
    expected = rows.mask("slides.age > 60 OR x0 < 5")
    np.testing.assert_array_equal(rows.mask("slides.age > 60 OR x0 < 6"), expected | rows.mask("x0 = 5"))


def test_a_cast_may_fail_in_rows_that_another_term_excludes():
    rows, slides, _ = make()
    text = "organ IN ('7', '12') AND CAST(organ AS INTEGER) > 8"
    assert rows.slides(text).tolist() == [organ == "12" for organ in slides["organ"].to_pylist()]
    found = rows.mask("x0 >= 0 AND " + text)
    np.testing.assert_array_equal(found, rows.mask("organ = '12'"))


def test_slides_are_told_where_only_they_are_read():
    rows, slides, _ = make()
    expected = [organ == "liver" for organ in slides["organ"].to_pylist()]
    found = rows.slides("organ = 'liver'")
    assert found.tolist() == expected
    assert not found.flags.writeable
    assert rows.slides("organ = 'liver'") is found
    assert rows.slides("slide_no < 3").tolist() == [number < 3 for number in slides["slide_no"].to_pylist()]
    assert rows.slides("true").all()
    assert rows.slides("organ = 'liver' AND x0 > 1") is None
    assert rows.slides("tiles.slide_no = 1") is None
    with pytest.raises(QueryError, match="Did you mean 'organ'"):
        rows.slides("orgn = 'liver'")
    with pytest.raises(QueryError, match="true or false"):
        rows.slides("age + 1")


def test_slides_that_were_found_are_used_again(monkeypatch):
    rows, _, _ = make(small=0)
    answer = rows.slides("organ = 'liver'")
    monkeypatch.setattr(filters, "parse_expression", lambda *_: pytest.fail("parsed again"))
    monkeypatch.setattr(filters._Request, "truth", lambda *_: pytest.fail("asked again"))
    assert rows.slides("organ = 'liver'") is answer
    np.testing.assert_array_equal(rows.mask("organ = 'liver'"), answer[rows._slide_code])


def test_tiles_of_slides_that_do_not_match_are_not_looked_at(monkeypatch):
    rows, _, _ = make(4000)
    seen = []
    truth = filters._Request.truth

    def spy(self, text, relation):
        given = self.connection.sql(f"FROM {relation}")
        seen.append((relation, len(given), given.columns))
        return truth(self, text, relation)

    monkeypatch.setattr(filters._Request, "truth", spy)
    of_slide = int(np.count_nonzero(rows.mask("matches = 3")))
    seen.clear()
    rows.mask("x0 > 500 AND matches = 3")
    assert seen[0][:2] == ("slides", SLIDES)
    assert seen[1] == ("tiles", of_slide, ["x0"])


@pytest.mark.parametrize("share", [1.0, 0.5, 0.1, 0.01, 0.0001, 0.0])
def test_every_selectivity(share):
    rows, _, tiles = make(20_000, contiguous=False)
    expected = (tiles["tile_id"].to_numpy() < 20_000 * share) & (tiles["x0"].to_numpy() >= 0)
    np.testing.assert_array_equal(rows.mask(f"tile_id < {20_000 * share:g} AND matches >= 0"), expected)


def test_no_slides_and_no_tiles():
    _, slides, tiles = make()
    empty = RowFilter(slides.slice(0, 0), tiles.slice(0, 0), np.empty(0, np.int32))
    for text in ("flag", "x0 > 1", "flag AND x0 > 1", "flag OR x0 > 1"):
        assert empty.mask(text).shape == (0,)
    orphans = RowFilter(slides.slice(0, 0), tiles, np.full(tiles.num_rows, -1, np.int32))
    for text in ("flag", "x0 > 1", "flag AND x0 > 1", "flag OR x0 > 1", "true"):
        assert not orphans.mask(text).any()


def test_a_column_of_nothing_compares_with_anything():
    _, slides, tiles = make(20)
    code = np.zeros(20, np.int32)
    empty = slides.append_column("empty", pa.nulls(SLIDES))
    for small in (0, 20):
        rows = RowFilter(empty, tiles, code, small=small)
        assert not rows.mask("empty = 'x'").any() and not rows.mask("empty > 5").any()
        assert rows.mask("empty IS NULL").all()


def test_comparisons_of_few_tiles_are_not_parsed(monkeypatch):
    rows, _, _ = make()
    monkeypatch.setattr(filters, "parse_expression", lambda *_: pytest.fail("parsed"))
    assert rows.mask("organ = 'liver' AND x0 % 7 < 5 AND y0 IS NOT NULL AND \"Größe, cm\" >= 0.1").any()


def test_long_texts_of_slides_are_not_repeated_for_each_tile(monkeypatch):
    monkeypatch.setattr(filters, "_lay_out_small", lambda *_, **__: pytest.fail("laid out"))
    _, slides, tiles = make(2000)
    reports = slides.append_column("report", pa.array([f"{n}" * 40_000 for n in range(SLIDES)]))
    code = np.full(2000, 3, np.int32)
    assert RowFilter(reports, tiles, code).mask("report LIKE '3%' AND x0 >= 0").all()


def test_an_error_in_a_term_is_told_even_where_no_slide_matches():
    rows, _, _ = make()
    with pytest.raises(QueryError, match="where"):
        rows.mask("organ = 'nowhere' AND x0 > DATE '2020-01-01'")


def test_time_is_limited_for_all_terms_together():
    rows, _, _ = make(200_000, limits=Limits(seconds=0.4))
    slow = " + ".join(f"length(regexp_extract(concat(x0, organ, y0, {n}), '(.*?)*(.*?)*z'))" for n in range(40))
    started = time.perf_counter()
    with pytest.raises(LimitError, match=r"stopped after 0\.4 s"):
        rows.mask(f"organ IS NOT NULL AND {slow} > 1")
    assert time.perf_counter() - started < 5
    assert rows.mask("x0 > 5").any()  # the others' database goes on


def test_many_threads_at_once():
    both, connection = prepared(True, False)
    texts = [f"x0 > {n * 10} AND matches >= {n % 5} AND (flag OR y0 > {n % 7})" for n in range(60)]
    with ThreadPoolExecutor(6) as pool:
        found = [mask for rows in both for mask in pool.map(rows._resolve, texts)]
    for text, mask in zip(2 * texts, found, strict=True):
        np.testing.assert_array_equal(mask, whole(connection, 400, text))


@pytest.mark.parametrize("small", [0, 400])
def test_nothing_is_held_after_the_filter_goes(small):
    rows, slides, tiles = make(small=small)
    rows.mask("flag AND x0 > 5")
    held = [weakref.ref(slides), weakref.ref(tiles)]
    del rows, slides, tiles
    gc.collect()
    assert [ref() for ref in held] == [None, None]


def test_requests_do_not_see_each_other():
    first, second = shared_database(Limits()).connect(), shared_database(Limits()).connect()
    try:
        first.register("mine", pa.table({"a": [1]}))
        with pytest.raises(duckdb.Error, match="does not exist"):
            second.sql("SELECT * FROM mine")
    finally:
        first.close()
        second.close()


def test_a_process_ends_quietly_and_may_be_forked():
    code = (
        "import os, numpy as np, pyarrow as pa\n"
        "from query.filters import RowFilter\n"
        "number = pa.array([0, 1], pa.int32())\n"
        "slides, tiles = pa.table({'slide_no': number, 'a': [1, 2]}), pa.table({'slide_no': number, 'x0': [1, 2]})\n"
        "both = [RowFilter(slides, tiles, np.array([0, 1]), small=small) for small in (0, 2)]\n"
        "for rows in both: assert rows.mask('a = 2 AND x0 > 1').tolist() == [False, True]\n"
        "child = os.fork() if hasattr(os, 'fork') else 0\n"
        "for rows in both: assert rows.mask('a = 1 AND abs(x0) > 0').tolist() == [True, False]\n"
        "if child: assert os.waitpid(child, 0)[1] == 0\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


def test_terms_are_written_as_they_were_read():
    columns = {"slides": ["organ", "slide_no"], "tiles": ["x0", "slide_no"]}
    expression = parse_expression("organ = 'a' AND (x0 > 1 AND (x0 < organ OR x0 = slide_no))", columns)
    assert [sorted(term.reads) for term in expression.terms] == [["slides"], ["tiles"], ["slides", "tiles"]]
    assert texts_of(expression, [expression.terms[:2], expression.terms[2:]]) == [
        "((organ = 'a') AND (x0 > 1))",
        "((x0 < organ) OR (x0 = slide_no))",
    ]
    term = renamed(expression.terms[2], {("slides", "organ"): "c0", ("tiles", "x0"): "c 1", ("", "slide_no"): "c2"})
    assert texts_of(expression, [[term]]) == ["""((\"c 1\" < c0) OR (\"c 1\" = c2))"""]
