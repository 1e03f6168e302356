"""Forms of filters: texts of one form are parsed to one tree, but for the constants."""

from __future__ import annotations

import itertools
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoder.errors import QueryError
from query.expression import parse_expression
from query.forms import form_of
from query.parsing import LOCATIONS

COLUMNS = {"slides": ["organ", "slide_no", "d"], "tiles": ["x0", "tissue", "slide_no"]}


def without_constants(tree: Any) -> Any:
    if isinstance(tree, dict):
        # The name of a collation may be written as a text; it is checked by nobody but DuckDB.
        kept = {key: without_constants(value) for key, value in tree.items() if key not in (*LOCATIONS, "collation")}
        return kept | ({"literal": kept["literal"]["kind"]} if "literal" in kept else {})
    return [without_constants(item) for item in tree] if isinstance(tree, list) else tree


def parsed(text: str) -> Any:
    """What the parser makes of a text, less the constants; the kind of refusal where it makes nothing."""
    try:
        expression = parse_expression(text, COLUMNS)
    except QueryError:
        return "refused"
    return without_constants(expression.statement), expression.qualifiers


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("abs(tissue) < 0.5", "abs(tissue) < 1e-9"),
        ("organ COLLATE 'nocase' = 'a'", "organ COLLATE 'noaccent' = 'b'"),
        ("organ = 'liver' OR x0 > 3", "organ = '' OR x0 > 123456789"),
        ("x0 NOT IN (1, 2) OR d::DECIMAL(9, 2) > 1", "x0 NOT IN (3, 456) OR d::DECIMAL(18, 3) > 2"),
        ("  d > DATE '2020-01-01'", "  d > DATE '1999-12-31'"),
    ],
)
def test_texts_that_differ_in_constants_have_one_form(one, other):
    assert form_of(one) == form_of(other) is not None
    assert parsed(one) == parsed(other) != "refused"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("abs(x0) = 1", "abs(x0) = 1.5"),
        ("abs(x0) = 1", "sin(x0) = 1"),
        ("x0 = 1", "x0 = '1'"),
        ("x0 = 1", "x0  = 1"),
        ("x0 = 1", "x0 = 12345678901"),
        ("x0 = -1", "x0 = 1"),
        ("x0 IN (1, 2)", "x0 IN (1, 2, 3)"),
        ("organ = 'a'", "organ = 'it''s'"),
        ("organ = 'a'", "organ = 'a--b'"),
        ("organ = 'a'", "organ = E'a'"),
        ("organ = 'a'", "organ = $$a$$"),
        ('organ = "a"', 'organ = "b"'),
        ("d::TIMESTAMP(6) > d", "d::TIMESTAMP(3) > d"),
        ("d::TIMESTAMP( 6\n) > d", "d::TIMESTAMP( 3\n) > d"),
        ("x0 = 1e", "x0 = 2e"),
        ("x0 = 1_000", "x0 = 2_000"),
        ("x0 = 0x1", "x0 = 0x2"),
    ],
)
def test_what_else_differs_stays_in_the_form(one, other):
    assert form_of(one) != form_of(other)


@pytest.mark.parametrize(
    "text", ["", " ", "x0 = 1 -- 2", "x0 = 1 /* 2 */", "organ = 'ü'", "x0\u00a0= 1", "organ = 'a\0'"]
)
def test_some_texts_have_no_form(text):
    assert form_of(text) is None


PARTS = ["x0", "organ", "tiles.", "abs", "(", ")", ",", "=", "<", "+", "-", "--", "/*", "*/", "\n", "AND", "OR", "NOT"]
PARTS += ["IN", "LIKE", "BETWEEN", "CASE WHEN", "THEN", "END", "::", "INTEGER", "DECIMAL", "DATE", "INTERVAL", "DAY"]
PARTS += ["::TIMESTAMP(", "FLOAT(", "VARCHAR(", "COLLATE", "{", "}", ":", "AT TIME ZONE", "ESCAPE", "?", "USING SAMPLE"]
PARTS += ["E", "X", "U&", "$$", "$", "#", "'", '"', "'a", "[", "]", ".", "_", "e", "e5", "::VARCHAR", "abs(x0) <", ";"]
PARTS += ["x0 <", "organ =", "AND x0 =", "OR organ =", "AND abs(tissue) >", "OR x0 BETWEEN 1 AND", "organ LIKE"] * 3
CONSTANTS = {
    "i": ["0", "7", "999999999"],
    "f": ["0.5", "12.25", "1e5", "2.5e-3"],
    "t": ["''", "'a'", "'Colon (left), 5 %'", "'-'", "'1.5'"],
    "none": ["1.", ".5", "0x1F", "12345678901", "'it''s'", "'--'", "'/*'", "'$$'", "'\\'", "'\n'"],
}
WORDS = st.one_of(
    st.sampled_from(PARTS).map(lambda part: (part, part)),
    st.sampled_from([*CONSTANTS.values()]).flatmap(lambda of: st.tuples(st.sampled_from(of), st.sampled_from(of))),
    st.sampled_from(list(itertools.chain(*CONSTANTS.values()))).flatmap(
        lambda one: st.sampled_from(list(itertools.chain(*CONSTANTS.values()))).map(lambda other: (one, other))
    ),
)


@settings(max_examples=1500, deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=8), st.sampled_from([" ", " ", "", "\n"]))
def test_texts_of_one_form_are_parsed_alike(words, space):
    one, other = (space.join(word[side] for word in words) for side in (0, 1))
    form = form_of(one)
    if form is not None and form == form_of(other):
        assert parsed(one) == parsed(other), (one, other)


def test_a_long_text_takes_no_longer_than_it_is():
    started = time.perf_counter()
    for text in ("1+" * 50_000, "'" * 100_001, "'a' " * 30_000, "x0 = '" + "a" * 100_000, "-" * 100_000):
        form_of(text)
    assert time.perf_counter() - started < 2
