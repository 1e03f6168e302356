"""What SQL a user may write: one expression or one SELECT, without reach beyond the store."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import duckdb
import pyarrow as pa

from encoder.errors import QueryError
from query.sql_functions import REFUSED_FUNCTIONS, REFUSED_TYPES, ROW_FUNCTIONS, ROW_TYPES, TABLE_FUNCTIONS

# The parser's classes of an expression that looks at one row only.
_ROW_CLASSES = frozenset(
    {"BETWEEN", "CASE", "CAST", "COLLATE", "COLUMN_REF", "COMPARISON", "CONJUNCTION"}
    | {"CONSTANT", "FUNCTION", "OPERATOR", "TYPE"}
)


@dataclass(frozen=True)
class Limits:
    """What one statement may use.

    Attributes:
        seconds: running time.
        memory_mib: DuckDB's memory, and the size of a result.
    """

    seconds: float = 30.0
    memory_mib: int = 1024


def locked_connection(limits: Limits) -> duckdb.DuckDBPyConnection:
    """Open an empty database in memory that reads no file, no network and no Python variable.

    Relations may still be registered; the configuration can no longer be changed.
    """
    connection = duckdb.connect(
        ":memory:",
        config={
            "enable_external_access": "false",
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
            "python_enable_replacements": "false",
            "memory_limit": f"{limits.memory_mib}MiB",
            "temp_directory": "",
        },
    )
    connection.execute("SET lock_configuration = true")
    return connection


def check_expression(connection: duckdb.DuckDBPyConnection, text: str, columns: dict[str, Sequence[str]]) -> set[str]:
    """Check that `text` is one expression over known columns and name the relations that it reads.

    Args:
        connection: parses the text; runs nothing of it.
        text: the expression.
        columns: names of the columns of each relation.

    Raises:
        QueryError: a syntax error, several statements, anything but an expression over single rows, a
            function or type that is not among the allowed ones, an unknown column, or one that two relations
            have.
    """
    node = _bare_where(connection, text)
    known = {relation: {name.lower() for name in names} for relation, names in columns.items()}
    read = set()
    for item in _expressions(node):
        if item["class"] not in _ROW_CLASSES:
            kind = item["class"].lower().replace("_", " ")
            raise QueryError(f"where may not hold a {kind}: {text!r}.", "Compare columns of slides and tiles only.")
        _check_row_item(item)
        if item["class"] == "COLUMN_REF":
            read.add(_relation_of(item["column_names"], known, columns, text))
    return read


def check_select(connection: duckdb.DuckDBPyConnection, text: str) -> set[str]:
    """Check that `text` is one SELECT (WITH allowed) and name the tables that it reads, lower case.

    Raises:
        QueryError: a syntax error, several statements, another kind of statement, or a function whose use
            of memory or time DuckDB does not limit.
    """
    fix = "Give one SELECT; WITH is allowed, PRAGMA, ATTACH, COPY, INSTALL, SHOW and the like are not."
    statement = _statement(connection, text, "sql", fix)
    names: set[str] = set()
    _check_functions(statement)
    for item in _dicts(statement):
        kind = item.get("type")
        if isinstance(kind, str) and kind.endswith(("INSERT", "UPDATE", "DELETE", "_QUERY_NODE")):
            raise QueryError(f"sql reads and never writes: {_short(text)!r}.", fix)
        if kind == "SHOW_REF":
            raise QueryError(f"sql is not a SELECT: {_short(text)!r}.", fix)
        if kind == "BASE_TABLE":
            names.add(str(item["table_name"]).lower())
    return names


def fetch(connection: duckdb.DuckDBPyConnection, text: str, limits: Limits, what: str) -> pa.Table:
    """Run one checked statement within its limits.

    Args:
        what: the option that the user wrote, named in errors.

    Raises:
        QueryError: DuckDB refuses it, or it passes its time or memory.
    """
    timer = threading.Timer(limits.seconds, connection.interrupt)
    timer.daemon = True
    timer.start()
    try:
        reader = connection.sql(text).to_arrow_reader(65_536)
        batches, size = [], 0
        for batch in reader:
            batches.append(batch)
            size += batch.nbytes
            if size > limits.memory_mib << 20:
                raise QueryError(f"{what}: the result is larger than {limits.memory_mib} MiB.", "Add a LIMIT.")
        return pa.Table.from_batches(batches, reader.schema)
    except duckdb.InterruptException as error:
        raise QueryError(
            f"{what}: stopped after {limits.seconds:g} s.", "Ask for less: fewer rows, no cross join."
        ) from error
    except duckdb.OutOfMemoryException as error:
        raise QueryError(
            f"{what}: needs more than {limits.memory_mib} MiB of memory.", "Ask for fewer rows or groups."
        ) from error
    except duckdb.Error as error:
        raise QueryError(f"{what}: {_first_line(str(error))}") from error
    finally:
        timer.cancel()


def nearest_name(name: str, known: Iterable[str]) -> str:
    """Say which known name is nearest to a wrong one, or list them: the end of an error's sentence."""
    names = list(known)
    close = get_close_matches(name.lower(), [item.lower() for item in names], n=1, cutoff=0.5)
    if close:
        match = next(item for item in names if item.lower() == close[0])
        return f"Did you mean {match!r}?"
    return f"Known are: {', '.join(names)}." if names else "There is none."


def _bare_where(connection: duckdb.DuckDBPyConnection, text: str) -> dict[str, Any]:
    if not text.strip():
        raise QueryError("where is empty.", "Leave it out to search every tile.")
    fix = "Give one expression such as: organ = 'liver' AND tissue > 0.5"
    # Parsed once as it stands, where nothing may follow it, and once in the brackets it will be run in.
    statement = _statement(connection, f"SELECT 1 WHERE {text}", "where", fix)
    _statement(connection, f"SELECT 1 WHERE ({text}\n)", "where", fix)
    node = statement["node"]
    bare = (
        node.get("type") == "SELECT_NODE"
        and node["from_table"]["type"] == "EMPTY"
        and node["where_clause"] is not None
        and not any(node.get(part) for part in ("modifiers", "group_expressions", "having", "qualify", "sample"))
    )
    if not bare:
        raise QueryError(f"where is more than one expression: {_short(text)!r}.", fix)
    return dict(node["where_clause"])


def _statement(connection: duckdb.DuckDBPyConnection, text: str, what: str, fix: str) -> dict[str, Any]:
    try:
        statements = connection.extract_statements(text)
        if len(statements) == 1 and statements[0].type == duckdb.StatementType.SELECT:
            rows = connection.execute("SELECT json_serialize_sql(?)", [text]).fetchall()
            tree = json.loads(rows[0][0])
            if not tree["error"]:
                return dict(tree["statements"][0])
    except duckdb.Error as error:
        raise QueryError(f"{what}: {_first_line(str(error))} in {_short(text)!r}.", fix) from error
    raise QueryError(f"{what} is not a single SELECT or expression: {_short(text)!r}.", fix)


def _relation_of(path: list[str], known: dict[str, set[str]], columns: dict[str, Sequence[str]], text: str) -> str:
    name = path[-1].lower()
    if len(path) == 2 and path[0].lower() in known and name in known[path[0].lower()]:
        return path[0].lower()
    if len(path) == 1:
        holders = [relation for relation, names in known.items() if name in names]
        if len(holders) == 1 or (holders and name == "slide_no"):
            return holders[0]
        if holders:
            choice = " or ".join(f"{relation}.{path[0]}" for relation in holders)
            raise QueryError(f"where: {path[0]!r} is a column of {' and '.join(holders)}.", f"Write {choice}.")
    every = list(dict.fromkeys(column for names in columns.values() for column in names))
    raise QueryError(f"where: there is no column {'.'.join(path)!r} in {text!r}.", nearest_name(path[-1], every))


def _check_row_item(item: dict[str, Any]) -> None:
    """Refuse a function or type that `where` may not use."""
    if item["class"] == "FUNCTION":
        name = item["function_name"].lower()
        if name not in ROW_FUNCTIONS:
            close = get_close_matches(name, ROW_FUNCTIONS, n=1, cutoff=0.7)
            hint = (
                f"Did you mean {close[0]!r}?" if close else "Use comparisons and plain functions of text and numbers."
            )
            raise QueryError(f"where may not use the function {name!r}.", hint)
    if item["class"] == "TYPE" and item["type_name"].lower() not in ROW_TYPES:
        raise QueryError(f"where may not use the type {item['type_name']!r}.", "Cast to numbers, text or dates only.")


def _check_functions(statement: dict[str, Any]) -> None:
    """Refuse functions and types of a SELECT that pass by its limits."""
    nodes = list(_dicts(statement))
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


def _expressions(node: Any) -> Iterator[dict[str, Any]]:
    return (item for item in _dicts(node) if "class" in item and "query_location" in item)


def _dicts(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
        for value in node.values():
            yield from _dicts(value)
    elif isinstance(node, list):
        for value in node:
            yield from _dicts(value)


def _first_line(message: str) -> str:
    return " ".join(message.split("LINE 1:")[0].split())


def _short(text: str) -> str:
    text = " ".join(text.removeprefix("SELECT 1 WHERE ").split())
    if text.startswith("(") and text.endswith(" )"):
        text = text[1:-2]
    return text if len(text) <= 120 else text[:117] + "..."
