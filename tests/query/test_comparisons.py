"""Comparisons that are known by their form: what is taken for one is what the parser finds, and nothing else."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoder.errors import QueryError
from query.comparisons import compared_columns
from query.expression import parse_expression

COLUMNS = {"slides": ["organ", "slide_no", 'Size "in cm"'], "tiles": ["x0", "tissue", "slide_no"]}
KNOWN = frozenset({"organ", "x0", "tissue", "slide_no", 'size "in cm"'})


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("tissue < 0.1", {"tissue"}),
        ("organ = 'o''hare AND x0 > 1' AND Tissue >= -1.5e-3", {"organ", "tissue"}),
        ("x0 BETWEEN 3 AND 5 and slide_no NOT IN (1, 2,3)", {"x0", "slide_no"}),
        ("slide_no % 10 = 0 AND organ is not null AND organ NOT ILIKE 'l%'", {"slide_no", "organ"}),
        ('"Size ""in cm""" <> x0 * 2 + 1', {'size "in cm"', "x0"}),
        ("organ = true", {"organ"}),
        ("1 = 1", set()),
    ],
)
def test_comparisons_name_their_columns(text, columns):
    assert compared_columns(text) == columns
    terms = parse_expression(text, COLUMNS).terms
    assert {name for term in terms for _, name in term.columns} == columns


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x0",
        "x0 = 1;",
        "x0 = 1 OR x0 = 2",
        "(x0 = 1)",
        "x0 = 1) OR (x0 = 2",
        "x0 = 1, x0 = 2",
        "x0 = 1 -- a remark",
        "x0 = 1 /* a remark */",
        "x0 --5 = 3",
        "x0 - -5 = 3",
        "length(organ) = 3",
        "tiles.x0 = 1",
        "x0 = 1.",
        "x0 = 0x1F",
        "x0 = 1_000",
        "organ = E'\\''",
        "organ = $$a$$",
        "organ = 'a",
        "organ = 'a\0'",
        "organ = 'a' 'b'",
        "DATE '2020-01-01' = organ",
        "organ::INTEGER = 3",
        "x0 = ?",
        "x0 = (SELECT 1)",
        "x0 IN (SELECT 1)",
        "x0 = 1 GROUP BY x0",
        "x0 = 1 UNION SELECT 1",
        "x0 = [1]",
        "x0\u00a0= 1",
    ],
)
def test_anything_else_is_for_the_parser(text):
    assert compared_columns(text) is None


PARTS = [
    "x0",
    "organ",
    "slide_no",
    "Tissue",
    '"Size ""in cm"""',
    "1",
    "2.5",
    "1e3",
    "-",
    "'a'",
    "''",
    "'a''b'",
    "=",
    "<",
]
PARTS += ["<>", "<=", "+", "*", "/", "%", "(", ")", ",", ";", "AND", "OR", "NOT", "IS", "NULL", "IN", "LIKE"]
PARTS += [
    "BETWEEN",
    "true",
    "--",
    "/*",
    "*/",
    ".",
    "::INTEGER",
    "length",
    "E'\\'",
    "$$",
    "SELECT",
    "x0 = 1 AND",
    "tissue < 0.5",
]


@settings(max_examples=1500, deadline=None)
@given(st.lists(st.sampled_from(PARTS), min_size=1, max_size=9), st.sampled_from([" ", " ", "", "\n"]))
def test_what_is_taken_for_comparisons_is_parsed_as_such(parts, space):
    text = space.join(parts)
    compared = compared_columns(text)
    if compared is None or not compared <= KNOWN:
        return
    try:
        expression = parse_expression(text, COLUMNS)
    except QueryError as error:
        # What DuckDB will not parse, it will not run either.
        assert "error" in error.message.lower(), text
        return
    read = {name for term in expression.terms for _, name in term.columns}
    assert read == compared, text


@pytest.mark.parametrize(
    "text",
    [
        "x0 = " + "1+" * 50_000,
        "x0 = '" + "x''" * 50_000,
        "x0 = 1 AND " * 20_000 + "!",
        "true+" * 50_000,
        "x" * 100_000,
        " " * 100_000,
        '"' * 100_001,
        "x0 IN (" + "1," * 50_000,
        "x0 BETWEEN 1 AND " * 20_000,
    ],
)
def test_a_long_text_takes_no_longer_than_it_is(text):
    started = time.perf_counter()
    assert compared_columns(text) is None
    assert time.perf_counter() - started < 1
