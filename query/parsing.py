"""DuckDB's parser: SQL to its tree and back. Nothing of what is parsed is run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal

import duckdb

from encoder.errors import QueryError
from query.database import Database, Limits, first_line, run

_PREPARED = {
    "to_tree": "SELECT json_serialize_sql($1)",
    "to_text": "SELECT json_deserialize_sql($1)",
}


@cache
def _parser() -> Database:
    # One thread starts sooner, what is prepared is not planned again, and nothing of it can be optimised: together
    # they halve the time.
    return Database(Limits(), threads=1, prepared=_PREPARED, optimizers=())


def parse_statement(text: str, what: str, fix: str) -> dict[str, Any]:
    """Parse one SELECT, or what is written as one: `check_statement` tells them apart.

    Args:
        what: the option that the user wrote, named in errors.
        fix: how to write it, said in errors.

    Returns:
        the parser's tree.

    Raises:
        QueryError: a syntax error, several statements, or another kind of statement.
        RecursionError: it is nested too deeply for Python; see `nesting_told`.
    """
    try:
        parsed = json.loads(_answer("to_tree", text))
    except duckdb.Error as error:
        check_statement(text, what, fix)
        raise _refused(text, what, fix, error) from error
    if parsed["error"] or len(parsed["statements"]) != 1:
        check_statement(text, what, fix)  # says what is wrong with it
        raise QueryError(f"{what} is not a single SELECT or expression: {short(text)!r}.", fix)
    return dict(parsed["statements"][0])


def check_statement(text: str, what: str, fix: str) -> None:
    """Find out whether a text is one SELECT.

    Raises:
        QueryError: a syntax error, several statements, or another kind of statement.
    """
    try:
        with _parser().lend() as connection:
            statements = connection.extract_statements(text)
    except duckdb.Error as error:
        raise _refused(text, what, fix, error) from error
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        raise QueryError(f"{what} is not a single SELECT or expression: {short(text)!r}.", fix)


_CONSTANTS = (duckdb.token_type.numeric_const, duckdb.token_type.string_const)


def tokens(text: str) -> list[tuple[int, Literal["constant", "remark", "other"]]]:
    """Where the words of an ASCII text begin, and what they are; a text may hold what the parser refuses."""
    return [
        (start, "constant" if kind in _CONSTANTS else "remark" if kind == duckdb.token_type.comment else "other")
        for start, kind in duckdb.tokenize(text)
    ]


def write_statements(statements: Sequence[dict[str, Any]]) -> list[str] | None:
    """Write trees as SQL again; None where what was written does not read back as the same tree."""
    texts = []
    for statement in statements:
        text = _answer("to_text", json.dumps({"error": False, "statements": [statement]}))
        read = json.loads(_answer("to_tree", text))
        if read["error"] or _unplaced(read["statements"][0]) != _unplaced(statement):
            return None
        texts.append(text)
    return texts


LOCATIONS = ("query_location", "query_location_length")


def _unplaced(tree: Any) -> Any:
    """A tree without the places in the text."""
    if isinstance(tree, dict):
        return {key: _unplaced(value) for key, value in tree.items() if key not in LOCATIONS}
    return [_unplaced(item) for item in tree] if isinstance(tree, list) else tree


def _answer(prepared: str, text: str) -> str:
    quoted = text.replace("'", "''")
    with _parser().lend() as connection:
        rows = run(connection, f"EXECUTE {prepared}('{quoted}')").fetchall()
    return str(rows[0][0])


@contextmanager
def nesting_told(text: str, what: str) -> Iterator[None]:
    """Tell in one sentence that a text is nested more deeply than Python can follow.

    Raises:
        QueryError: it is.
    """
    try:
        yield
    except RecursionError as error:
        raise QueryError(f"{what} is nested too deeply: {short(text)!r}.", "Write it flatter.") from error


def _refused(text: str, what: str, fix: str, error: duckdb.Error) -> QueryError:
    return QueryError(f"{what}: {first_line(str(error))} in {short(text)!r}.", fix)


def dicts(node: Any) -> Iterator[dict[str, Any]]:
    """Every object in a parsed tree, outer ones first."""
    if isinstance(node, dict):
        yield node
        for value in node.values():
            yield from dicts(value)
    elif isinstance(node, list):
        for value in node:
            yield from dicts(value)


def short(text: str) -> str:
    """A user's text on one line, as errors show it."""
    text = " ".join(text.removeprefix("SELECT 1 WHERE ").split())
    if text.startswith("(") and text.endswith(" )"):
        text = text[1:-2]
    return text if len(text) <= 120 else text[:117] + "..."
