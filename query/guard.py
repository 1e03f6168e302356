"""What SQL a user may write: one expression or one SELECT, without reach beyond the store."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from encoder.errors import QueryError
from query.parsing import check_statement, dicts, nesting_told, parse_statement, short
from query.sql_functions import REFUSED_FUNCTIONS, REFUSED_TYPES, TABLE_FUNCTIONS


def check_select(text: str) -> set[str]:
    """Check that `text` is one SELECT (WITH allowed) and name the tables that it reads, lower case.

    Raises:
        QueryError: a syntax error, several statements, another kind of statement, or a function whose use
            of memory or time DuckDB does not limit.
    """
    fix = "Give one SELECT; WITH is allowed, PRAGMA, ATTACH, COPY, INSTALL, SHOW and the like are not."
    check_statement(text, "sql", fix)  # the tree alone does not tell a SELECT from all that is written as one
    with nesting_told(text, "sql"):
        statement = parse_statement(text, "sql", fix)
        _check_functions(statement)
        items = list(dicts(statement))
    names: set[str] = set()
    for item in items:
        kind = item.get("type")
        if isinstance(kind, str) and kind.endswith(("INSERT", "UPDATE", "DELETE", "_QUERY_NODE")):
            raise QueryError(f"sql reads and never writes: {short(text)!r}.", fix)
        if kind == "SHOW_REF":
            raise QueryError(f"sql is not a SELECT: {short(text)!r}.", fix)
        if kind == "BASE_TABLE":
            names.add(str(item["table_name"]).lower())
    return names


def nearest_name(name: str, known: Iterable[str]) -> str:
    """Say which known name is nearest to a wrong one, or list them: the end of an error's sentence."""
    names = list(known)
    close = get_close_matches(name.lower(), [item.lower() for item in names], n=1, cutoff=0.5)
    if close:
        match = next(item for item in names if item.lower() == close[0])
        return f"Did you mean {match!r}?"
    return f"Known are: {', '.join(names)}." if names else "There is none."


def _check_functions(statement: dict[str, Any]) -> None:
    """Refuse functions and types of a SELECT that pass by its limits."""
    nodes = list(dicts(statement))
    after_from = {id(node["function"]) for node in nodes if node.get("type") == "TABLE_FUNCTION"}
    for item in nodes:
        if item.get("class") == "FUNCTION":
            name = item["function_name"].lower()
            if id(item) in after_from:
                if name not in TABLE_FUNCTIONS:
                    raise QueryError(
                        f"sql may not read from {name}(): what is not in the store is disabled by configuration.",
                        f"Read the store's relations; after FROM may stand {', '.join(sorted(TABLE_FUNCTIONS))}.",
                    )
            elif name in REFUSED_FUNCTIONS or name.startswith("__"):
                raise QueryError(
                    f"sql may not use the function {name!r} here: its time and memory cannot be limited.",
                    "Compute it on the result.",
                )
        if item.get("class") == "TYPE" and item["type_name"].lower() in REFUSED_TYPES:
            raise QueryError("sql may not use arrays of a fixed length.", "Cast to a list, such as INTEGER[].")
