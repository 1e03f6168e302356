"""What a filter is built from, against plain loops; conditions against Python's comparisons, by real searches."""

from __future__ import annotations

from datetime import UTC, date, datetime

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from encoder.errors import QueryError
from query import open_cohort
from query.facets import MOST_CHOICES, Choice, Condition, describe, facets, to_where

ODD = 'Größe "in" mm; --'
TEXTS = ["o'hare", 'say "hi"', "a;b -- c", "line\nbreak", "100%_", "\\", "unknown", "NULL", "🔬 x", "Ünï", "", None]
DAYS = [date(2020, 1, n + 1) for n in range(11)]


@pytest.fixture(scope="module")
def nasty(tmp_path_factory, write_store):
    """Twelve slides whose columns bear names and values that a filter could stumble over."""
    slides = [
        {
            "slide_id": f"s'{n}",
            "patient_id": f"p{n % 3}",
            "site_id": "one",
            "cohort": None,
            ODD: text,
            "select": None if n == 3 else float(n),
            "tissue": "tumour" if n % 2 else "normal",  # a tile column bears this name too
            "grown": None if n == 5 else n * 0.25 - 1,
            "nan": float("nan") if n < 4 else float(n),
            "blood": [True, False, None][n % 3],
            "day": None if n == 11 else DAYS[n],
            "seen at": datetime(2021, 2, 3, n, 30, tzinfo=UTC),
            "count": n // 2,
            "constant": "same",
            "one or none": "x" if n == 7 else None,
        }
        for n, text in enumerate(TEXTS)
    ]
    kinds = {ODD: pa.string(), "select": pa.float64(), "tissue": pa.string(), "grown": pa.float64()}
    kinds |= {"nan": pa.float64(), "blood": pa.bool_(), "day": pa.date32(), "seen at": pa.timestamp("us", tz="UTC")}
    kinds |= {"count": pa.int32(), "constant": pa.string(), "one or none": pa.string(), "blank": pa.string()}
    path = tmp_path_factory.mktemp("nasty") / "store"
    return write_store(path, slides, side=3, extra=kinds), {row["slide_id"]: row for row in slides}


@pytest.fixture(scope="module")
def cohort(nasty):
    return open_cohort(str(nasty[0].path))


def matching(cohort, conditions):
    """Slides of all hits of a real search; every tile that matches is one."""
    hits = cohort.search(np.ones(16), k=1000, where=to_where(conditions))
    return set(hits.table["slide_id"].to_pylist()), len(hits)


def unknown(value):
    return value is None or value == "" or value != value


def expected(rows, conditions):
    def holds(row, condition):
        value = row[condition.column]
        if unknown(value):
            return condition.include_unknown
        if condition.values is not None and value not in condition.values:
            return False
        if condition.low is not None and value < condition.low:
            return False
        if condition.high is not None and value > condition.high:
            return False
        return condition.contains is None or condition.contains.lower() in value.lower()

    return {name for name, row in rows.items() if all(holds(row, one) for one in conditions)}


def test_columns_are_what_they_hold(cohort):
    found = {(facet.relation, facet.column): facet for facet in facets(cohort)}
    assert set(found) == {
        *(("slides", name) for name in ("patient_id", "slide_id", ODD, "select", "tissue", "grown", "nan", "blood")),
        *(("slides", name) for name in ("day", "seen at", "count", "one or none")),
        ("tiles", "tissue"),
    }
    odd = found["slides", ODD]
    assert odd.kind == "choice" and odd.unknown == 2 and odd.distinct == 10
    assert {choice.value for choice in odd.choices} == {text for text in TEXTS if text}
    assert all(choice.slides == 1 for choice in odd.choices)
    assert found["slides", "tissue"].choices == (Choice("normal", 6), Choice("tumour", 6))
    assert found["slides", "patient_id"].choices == (Choice("p0", 4), Choice("p1", 4), Choice("p2", 4))
    assert found["slides", "one or none"].choices == (Choice("x", 1),)
    flag = found["slides", "blood"]
    assert flag.kind == "flag" and flag.choices == (Choice(False, 4), Choice(True, 4)) and flag.unknown == 4
    numbers = found["slides", "select"]
    assert (numbers.kind, numbers.low, numbers.high, numbers.whole, numbers.unknown) == ("range", 0, 11, True, 1)
    grown = found["slides", "grown"]
    assert (grown.low, grown.high, grown.whole) == (-1, 1.75, False)
    assert (found["slides", "nan"].low, found["slides", "nan"].unknown) == (4, 4)
    assert found["slides", "count"].whole and found["slides", "count"].high == 5
    day = found["slides", "day"]
    assert (day.kind, day.low, day.high, day.whole) == ("range", DAYS[0], DAYS[-1], False)
    tissue = found["tiles", "tissue"]
    tiles = cohort.vectors(columns=["tissue"]).table["tissue"].to_numpy()
    assert tissue.kind == "range" and (tissue.low, tissue.high) == (float(tiles.min()), float(tiles.max()))


TEXT_SETS = st.sets(st.sampled_from([text for text in TEXTS if text] + ["nowhere"]), max_size=4).map(tuple)
NUMBERS = st.one_of(st.none(), st.integers(-3, 12), st.floats(-3, 12))
CONDITIONS = st.one_of(
    st.builds(Condition, st.just(ODD), values=TEXT_SETS, include_unknown=st.booleans()),
    st.builds(Condition, st.just(ODD), contains=st.sampled_from(["'", '"', "B", "%", "🔬", "ü", "\\"])),
    st.builds(
        Condition,
        st.sampled_from(["select", "grown", "nan", "count"]),
        low=NUMBERS,
        high=NUMBERS,
        include_unknown=st.booleans(),
    ),
    st.builds(Condition, st.just("blood"), values=st.sampled_from([(True,), (False,), (True, False), ()])),
    st.builds(
        Condition,
        st.just("day"),
        low=st.one_of(st.none(), st.sampled_from(DAYS)),
        high=st.one_of(st.none(), st.sampled_from(DAYS)),
        include_unknown=st.booleans(),
    ),
    st.builds(Condition, st.just("tissue"), values=st.just(("tumour",))),
    st.builds(Condition, st.just("slide_id"), values=st.just(("s'0", "s'7", "s'11"))),
    st.builds(Condition, st.sampled_from([ODD, "select", "one or none", "day"]), include_unknown=st.booleans()),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(CONDITIONS, max_size=3))
def test_conditions_find_what_python_finds(nasty, cohort, conditions):
    _, rows = nasty
    for condition in conditions:
        if condition.column == "nan" and condition.low is None and condition.high is None:
            return  # without a bound nothing says that it is a number
    wanted = expected(rows, conditions)
    assert matching(cohort, conditions) == (wanted, 9 * len(wanted))
    assert bool(describe(conditions)) == any(not condition.is_open for condition in conditions)


def test_every_choice_finds_as_many_slides_as_it_says(cohort):
    for facet in facets(cohort):
        for choice in facet.choices:
            found, _ = matching(cohort, [Condition(facet.column, (choice.value,))])
            assert len(found) == choice.slides
        if facet.relation == "slides" and facet.unknown and facet.column != "nan":
            found, _ = matching(cohort, [Condition(facet.column, (), include_unknown=True)])
            assert len(found) == facet.unknown
        if facet.kind == "range":
            whole = Condition(facet.column, low=facet.low, high=facet.high, relation=facet.relation)
            found, tiles = matching(cohort, [whole])
            assert len(found) == 12 - (facet.unknown if facet.relation == "slides" else 0)
            assert facet.relation == "slides" or tiles == 108


def test_a_column_that_tiles_have_too_is_told_apart(nasty, cohort):
    small, _ = nasty
    conditions = [Condition("tissue", ("tumour",)), Condition("tissue", low=0.6, relation="tiles")]
    hits = cohort.search(np.ones(16), k=1000, where=to_where(conditions))
    assert len(hits) == sum(small.tissue[row] >= 0.6 and small.slide[row] % 2 for row in range(108))


def test_times_are_compared_in_their_zone(cohort):
    facet = next(facet for facet in facets(cohort) if facet.column == "seen at")
    assert facet.low == datetime(2021, 2, 3, 0, 30, tzinfo=UTC)
    found, _ = matching(cohort, [Condition("seen at", low=datetime(2021, 2, 3, 9, 0, tzinfo=UTC))])
    assert found == {"s'9", "s'10", "s'11"}


def test_many_values_are_text(tmp_path, write_store):
    slides = [{"slide_id": f"s{n:03}", "patient_id": f"p{n}" if n else None} for n in range(MOST_CHOICES + 2)]
    store = write_store(tmp_path / "store", slides, side=1, unfinished=("s001",))
    found = {facet.column: facet for facet in facets(open_cohort(str(store.path)))}
    assert found["patient_id"].kind == "choice" and found["patient_id"].distinct == MOST_CHOICES
    assert found["slide_id"].kind == "text" and found["slide_id"].distinct == MOST_CHOICES + 1
    assert found["slide_id"].choices == () and found["patient_id"].unknown == 1


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        (Condition("organ", ("colon",)), "organ is colon"),
        (Condition("organ", ("colon", "lung")), "organ is colon or lung"),
        (Condition("organ", ("a", "b", "c", "d"), include_unknown=True), "organ is a, b, c or d or is unknown"),
        (Condition("organ", ("a", "b", "c", "d", "e")), "organ is a, b, c or 2 others"),
        (Condition("organ", (), include_unknown=True), "organ is unknown"),
        (Condition("organ", ()), "organ is none of its values"),
        (Condition("organ"), "organ is known"),
        (Condition("age", low=40, high=60.5), "age is from 40 to 60.5"),
        (Condition("age", low=40.0, include_unknown=True), "age is at least 40 or is unknown"),
        (Condition("age", high=date(2020, 1, 2)), "age is at most 2020-01-02"),
        (Condition("blood", (True,)), "blood is yes"),
        (Condition("note", contains="x"), "note contains “x”"),
        (Condition("note", include_unknown=True), ""),
    ],
)
def test_conditions_read_as_words(condition, words):
    assert describe([condition]) == words


def test_no_condition_is_no_filter():
    assert to_where([]) is None and describe([]) == ""
    assert to_where([Condition("organ", include_unknown=True)]) is None


def test_a_value_that_no_column_has_is_refused():
    with pytest.raises(QueryError, match="cannot ask for None"):
        to_where([Condition("organ", (None,))])  # type: ignore[arg-type]
